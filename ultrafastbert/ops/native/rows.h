// Operations on the row of one token between the large layers.
#pragma once

#include "vectors.h"

namespace {

constexpr int64_t FLOATS = VECTOR_BYTES / sizeof(float);

// Reads FLOATS numbers in order. If `count` is less, the others are 0.
template <class T>
inline Vec<float> widen(const T* p, int64_t count) {
  if (count < FLOATS) {
    T values[FLOATS] = {};
    std::memcpy(values, p, count * sizeof(T));
    return widen(values, FLOATS);
  }
  if constexpr (std::is_same_v<T, BFloat16>) {
    auto bits = __builtin_convertvector((read<uint16_t, VECTOR_BYTES / 2>(p)), Vec<uint32_t>);
    return std::bit_cast<Vec<float>>(bits << 16);
  } else if constexpr (std::is_same_v<T, Half>) {
    return __builtin_convertvector((read<_Float16, VECTOR_BYTES / 2>(p)), Vec<float>);
  } else {
    return read<float>(p);
  }
}

// Writes the first `count` numbers, at most FLOATS.
template <class T>
inline void narrow(T* p, Vec<float> v, int64_t count) {
  if (count < FLOATS) {
    T values[FLOATS];
    narrow(values, v, FLOATS);
    std::memcpy(p, values, count * sizeof(T));
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    using Halves = typename VectorOf<uint16_t, VECTOR_BYTES / 2>::type;
    write(p, __builtin_convertvector(round_to_bfloat16(v) >> 16, Halves));
  } else if constexpr (std::is_same_v<T, Half>) {
    write(p, __builtin_convertvector(v, typename VectorOf<_Float16, VECTOR_BYTES / 2>::type));
  } else {
    write(p, v);
  }
}

// Rounds a row to 8 bits, with zero point 128. Returns the scale, which is NaN if a number is not finite.
template <class T>
float quantize_row(const T* x, int64_t count, uint8_t* to) {
  Vec<float> most = {}, nothing = {};
  for (int64_t i = 0; i < count; i += FLOATS) {
    auto v = widen(x + i, count - i);
    nothing += v - v;
    v = v < 0.0f ? -v : v;
    most = v > most ? v : most;
  }
  float largest = 0;
  for (int64_t lane = 0; lane < FLOATS; lane++) largest = std::max(largest, most[lane]);
  const float inverse = largest > 0 ? 127 / largest : 0;
  for (int64_t i = 0; i < count; i += FLOATS) {
    using Bytes = typename VectorOf<uint8_t, FLOATS>::type;
    auto bytes = __builtin_convertvector(
        __builtin_convertvector(widen(x + i, count - i) * inverse + 128.5f, Vec<int32_t>), Bytes);
    std::memcpy(to + i, &bytes, std::min(FLOATS, count - i));
  }
  return largest / 127 + sum_lanes<float>(nothing);
}

template <class T>
void multiply_row(T* x, int64_t count, float factor) {
  for (int64_t i = 0; i < count; i += FLOATS) narrow(x + i, widen(x + i, count - i) * factor, count - i);
}

// Rotates the pairs (i, half + i) of one head's query or key by angles whose cosines and sines are given, in place.
template <class T>
void rotate_row(T* x, int64_t half, const float* cosine, const float* sine) {
  for (int64_t i = 0; i < half; i += FLOATS) {
    const int64_t there = half - i;
    const auto a = widen(x + i, there), b = widen(x + half + i, there);
    const auto c = widen(cosine + i, there), s = widen(sine + i, there);
    narrow(x + i, a * c - b * s, there);
    narrow(x + half + i, b * c + a * s, there);
  }
}

// Adds the update to the stream and writes the layer normalization of the stream to `to`.
template <class T>
void add_norm_row(float* stream, const T* update, int64_t count, const float* weight, const float* bias, float eps,
                  T* to) {
  Vec<float> sum = {}, squares = {};
  for (int64_t i = 0; i < count; i += FLOATS) {
    auto v = widen(stream + i, count - i);
    if (update) {
      v += widen(update + i, count - i);
      narrow(stream + i, v, count - i);
    }
    sum += v;
  }
  const float mean = sum_lanes<float>(sum) / count;
  for (int64_t i = 0; i + FLOATS <= count; i += FLOATS) {
    auto v = read<float>(stream + i) - mean;
    squares += v * v;
  }
  float square = sum_lanes<float>(squares);
  for (int64_t i = count - count % FLOATS; i < count; i++) square += (stream[i] - mean) * (stream[i] - mean);
  const float factor = 1 / std::sqrt(square / count + eps);
  for (int64_t i = 0; i < count; i += FLOATS) {
    const int64_t there = count - i;
    auto v = (widen(stream + i, there) - mean) * factor;
    narrow(to + i, v * widen(weight + i, there) + widen(bias + i, there), there);
  }
}

}  // namespace

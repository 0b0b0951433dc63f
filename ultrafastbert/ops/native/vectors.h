// Vectors of numbers: reading, writing, dot products, weighted sums, exp and GELU.
//
// The vectors are the compiler's (vector_size of GCC and Clang), as wide as those of the processor it compiles for:
// one source gives AVX-512, AVX2, NEON or SSE. Only the dot product of bfloat16 uses an intrinsic. Numbers of 16 bits
// are read as float, and sums are in float (in double for double).
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

using c10::BFloat16;
using c10::Half;

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif

template <class A, int BYTES>
struct VectorOf {
  typedef A type __attribute__((vector_size(BYTES)));
  typedef A anywhere __attribute__((vector_size(BYTES), aligned(1), may_alias));  // in memory, at any address
};
template <class A>
using Vec = typename VectorOf<A, VECTOR_BYTES>::type;

template <class A, int BYTES = VECTOR_BYTES>
inline auto read(const void* p, int i = 0) {
  return typename VectorOf<A, BYTES>::type(static_cast<const typename VectorOf<A, BYTES>::anywhere*>(p)[i]);
}

template <class V>
inline void write(void* p, V v, int i = 0) {
  static_cast<typename VectorOf<std::remove_cvref_t<decltype(v[0])>, sizeof(V)>::anywhere*>(p)[i] = v;
}

template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Two vectors of accumulators: a widened vector of 16-bit numbers.
template <class A>
struct Pair {
  Vec<A> a, b;
};

template <class T>
constexpr int STEP = 2 * VECTOR_BYTES / sizeof(Accumulator<T>);  // numbers in a Pair

// Reads STEP numbers. Of bfloat16, `a` gets the even ones and `b` the odd ones, which takes only a shift and a mask;
// `store` restores the order.
template <class T>
inline Pair<Accumulator<T>> load(const T* p) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    auto bits = read<uint32_t>(p);
    return {std::bit_cast<Vec<float>>(bits << 16), std::bit_cast<Vec<float>>(bits & 0xffff0000u)};
  } else if constexpr (std::is_same_v<T, Half>) {
    return {__builtin_convertvector((read<_Float16, VECTOR_BYTES / 2>(p, 0)), Vec<float>),
            __builtin_convertvector((read<_Float16, VECTOR_BYTES / 2>(p, 1)), Vec<float>)};
  } else {
    return {read<T>(p, 0), read<T>(p, 1)};
  }
}

// Rounds to nearest, ties to even; the result is in the upper 16 bits. NaN stays NaN.
inline Vec<uint32_t> round_to_bfloat16(Vec<float> x) {
  auto bits = std::bit_cast<Vec<uint32_t>>(x);
  return x == x ? bits + 0x7fffu + ((bits >> 16) & 1u) : bits | 0x400000u;
}

template <class T>
inline void store(T* p, const Pair<Accumulator<T>>& v) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    write(p, (round_to_bfloat16(v.a) >> 16) | (round_to_bfloat16(v.b) & 0xffff0000u));
  } else if constexpr (std::is_same_v<T, Half>) {
    using Halves = typename VectorOf<_Float16, VECTOR_BYTES / 2>::type;
    write(p, __builtin_convertvector(v.a, Halves), 0);
    write(p, __builtin_convertvector(v.b, Halves), 1);
  } else {
    write(p, v.a, 0);
    write(p, v.b, 1);
  }
}

// The last numbers of a row (`count` < STEP), padded with zeros.
template <class T>
struct Tail {
  T values[STEP<T>] = {};
  Tail(const T* p, int64_t count) { std::memcpy(values, p, count * sizeof(T)); }
};

template <class T>
inline void multiply_add(Pair<Accumulator<T>>& sum, const T* x, const T* y) {
#ifdef __AVX512BF16__
  if constexpr (std::is_same_v<T, BFloat16>) {
    sum.a = _mm512_dpbf16_ps(sum.a, std::bit_cast<__m512bh>(read<uint32_t>(x)),
                             std::bit_cast<__m512bh>(read<uint32_t>(y)));
    return;
  }
#endif
  auto u = load(x), v = load(y);
  sum.a += u.a * v.a;
  sum.b += u.b * v.b;
}

template <class V, size_t... I>
inline auto add_halves(V v, std::index_sequence<I...>) {
  return __builtin_shufflevector(v, v, I...) + __builtin_shufflevector(v, v, (I + sizeof...(I))...);
}

template <class A, int LANES = VECTOR_BYTES / sizeof(A), class V>
inline A sum_lanes(V v) {
  if constexpr (LANES == 2) {
    return v[0] + v[1];
  } else {
    return sum_lanes<A, LANES / 2>(add_halves(v, std::make_index_sequence<LANES / 2>()));
  }
}

template <class T>
inline Accumulator<T> dot(const T* x, const T* y, int64_t size) {
  using A = Accumulator<T>;
  constexpr int CHAINS = 4;  // independent sums, to hide latency; unrolled, they stay in registers
  Pair<A> sums[CHAINS] = {};
  int64_t i = 0;
  for (; i + CHAINS * STEP<T> <= size; i += CHAINS * STEP<T>) {
#pragma GCC unroll 4
    for (int c = 0; c < CHAINS; c++) multiply_add(sums[c], x + i + c * STEP<T>, y + i + c * STEP<T>);
  }
  for (; i + STEP<T> <= size; i += STEP<T>) multiply_add(sums[0], x + i, y + i);
  if (i < size) multiply_add(sums[1], Tail<T>(x + i, size - i).values, Tail<T>(y + i, size - i).values);
  return sum_lanes<A>(((sums[0].a + sums[1].a) + (sums[2].a + sums[3].a)) +
                      ((sums[0].b + sums[1].b) + (sums[2].b + sums[3].b)));
}

constexpr int MANY = 4;  // Pairs summed at once: half of AVX2's registers, and enough to hide latency

// Calls `body(pairs, column, size)` for all columns. `pairs` is a constant, MANY and then 1. `size` is the number of
// columns in them, less than those of a Pair only at the end.
template <class T, class Body>
inline void for_columns(int64_t columns, const Body& body) {
  int64_t column = 0;
  for (; column + MANY * STEP<T> <= columns; column += MANY * STEP<T>) {
    body(std::integral_constant<int, MANY>(), column, MANY * STEP<T>);
  }
  for (; column < columns; column += STEP<T>) {
    body(std::integral_constant<int, 1>(), column, std::min<int64_t>(STEP<T>, columns - column));
  }
}

template <class T>
inline Pair<Accumulator<T>> load(const T* p, int64_t count) {
  return count == STEP<T> ? load(p) : load(Tail<T>(p, count).values);
}

template <class T>
inline void store(T* p, const Pair<Accumulator<T>>& v, int64_t count) {
  if (count == STEP<T>) return store(p, v);
  T values[STEP<T>];
  store(values, v);
  std::memcpy(p, values, count * sizeof(T));
}

// Weighted sums of rows in PAIRS * STEP columns. With one Pair only the first `size` columns exist.
template <class T, int PAIRS>
struct Sums {
  Pair<Accumulator<T>> sums[PAIRS] = {};

  inline void add(Accumulator<T> weight, const T* row, int64_t size) {
#pragma GCC unroll 4
    for (int j = 0; j < PAIRS; j++) {
      auto v = load(row + j * STEP<T>, PAIRS > 1 ? STEP<T> : size);
      sums[j].a += weight * v.a;
      sums[j].b += weight * v.b;
    }
  }

  inline void write(T* row, int64_t size) const {
#pragma GCC unroll 4
    for (int j = 0; j < PAIRS; j++) store(row + j * STEP<T>, sums[j], PAIRS > 1 ? STEP<T> : size);
  }
};

// out = sum of weights[i] * rows[i]
template <class T>
inline void weighted_sum(const T* const* rows, const Accumulator<T>* weights, int64_t count, int64_t hidden, T* out) {
  for_columns<T>(hidden, [&](auto pairs, int64_t column, int64_t size) {
    Sums<T, decltype(pairs)::value> sums;
    for (int64_t i = 0; i < count; i++) sums.add(weights[i], rows[i] + column, size);
    sums.write(out + column, size);
  });
}

// e^x for x <= 0, as 2^n e^r with |r| <= log(2) / 2. The Taylor series of e^r ends where float precision does.
inline Vec<float> exp_negative(Vec<float> x) {
  x = x < -87.0f ? Vec<float>{} - 87.0f : x;  // e^x is not a normal number below
  constexpr float MAGIC = 12582912.0f;        // 1.5 * 2^23: after adding it, the low bits hold the nearest integer
  Vec<float> shifted = x * 1.44269504f + MAGIC, n = shifted - MAGIC;
  Vec<float> r = x - n * 0.693145752f - n * 1.42860677e-6f;  // log(2) in two parts
  Vec<float> p = 1.0f / 720 + r * (1.0f / 5040);
  p = 1.0f / 120 + r * p;
  p = 1.0f / 24 + r * p;
  p = 1.0f / 6 + r * p;
  p = 0.5f + r * p;
  p = 1.0f + r * p;
  p = 1.0f + r * p;
  return std::bit_cast<Vec<float>>(std::bit_cast<Vec<int32_t>>(p) + (std::bit_cast<Vec<int32_t>>(shifted) << 23));
}

inline Vec<double> exp_negative(Vec<double> x) {
  for (size_t i = 0; i < sizeof x / sizeof(double); i++) x[i] = std::exp(x[i]);
  return x;
}

// The normal distribution: its density at x and the probability below x. Abramowitz & Stegun, 7.1.26: the error is at
// most 1e-7, as in PyTorch's GELU.
inline void normal(Vec<float> x, Vec<float>& density, Vec<float>& below) {
  Vec<float> bell = exp_negative(-0.5f * x * x), size = x < 0.0f ? -x : x;
  Vec<float> t = 1.0f / (1.0f + 0.231641894f * size);  // 0.3275911 / sqrt(2)
  Vec<float> p = -1.453152027f + t * 1.061405429f;
  p = 1.421413741f + t * p;
  p = -0.284496736f + t * p;
  p = 0.254829592f + t * p;
  Vec<float> above = 0.5f * bell * t * p;  // the probability above |x|
  below = x < 0.0f ? above : 1.0f - above;
  density = 0.398942280f * bell;
}

inline void normal(Vec<double> x, Vec<double>& density, Vec<double>& below) {
  for (size_t i = 0; i < sizeof x / sizeof(double); i++) {
    density[i] = std::exp(-0.5 * x[i] * x[i]) * 0.398942280401432678;
    below[i] = 0.5 * std::erfc(-x[i] * 0.707106781186547524);
  }
}

// activation = gelu(z) and, if requested, slope = gelu'(z).
template <class A>
inline void gelu(const A* z, int64_t count, A* activation, A* slope = nullptr) {
  constexpr int64_t LANES = sizeof(Vec<A>) / sizeof(A);
  for (int64_t i = 0; i < count; i += LANES) {
    size_t bytes = std::min(LANES, count - i) * sizeof(A);
    Vec<A> x = {}, density, below;
    std::memcpy(&x, z + i, bytes);
    normal(x, density, below);
    Vec<A> y = x * below, dy = below + x * density;
    std::memcpy(activation + i, &y, bytes);
    if (slope) std::memcpy(slope + i, &dy, bytes);
  }
}

}  // namespace

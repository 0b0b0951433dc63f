// Self-attention over sequences that are stored one after the other, without padding.
//
// Both products of a head (scores and weighted values) multiply a few rows by a packed matrix of units: pairs of
// bfloat16 where the processor has a dot product for them, otherwise numbers widened to the accumulator's type. The
// scores of a few queries fit in the L1 cache, so an online softmax is not needed.
#pragma once

#include <limits>
#include <vector>

#include "vectors.h"

namespace {

#ifdef __AVX512BF16__
template <class T>
constexpr bool PAIRED = std::is_same_v<T, BFloat16>;
#else
template <class T>
constexpr bool PAIRED = false;
#endif

template <class T>
using Unit = std::conditional_t<PAIRED<T>, uint32_t, Accumulator<T>>;
template <class T>
constexpr int64_t LANES = STEP<T> / 2;  // accumulators in a vector
template <class T>
constexpr int64_t UNITS = PAIRED<T> ? LANES<T> : 2 * LANES<T>;  // units that hold STEP numbers

constexpr int ROWS = 6;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int TILE = 2;  // Pairs of columns at a time: the sums take 24 of 32 registers
#else
constexpr int TILE = 1;  // the sums take 12 of 16 registers
#endif

inline int64_t round_up(int64_t size, int64_t step) { return (size + step - 1) / step * step; }

// Reads STEP numbers as units. If `count` is less, the others are 0.
template <class T>
inline void read_units(const T* p, int64_t count, Vec<Unit<T>>* units) {
  if (count <= 0) {
    for (int64_t i = 0; i < UNITS<T> / LANES<T>; i++) units[i] = Vec<Unit<T>>{};
  } else if constexpr (PAIRED<T>) {
    units[0] = count >= STEP<T> ? read<uint32_t>(p) : read<uint32_t>(Tail<T>(p, count).values);
  } else {
    auto pair = count >= STEP<T> ? load(p) : load(Tail<T>(p, count).values);
    units[0] = pair.a;
    units[1] = pair.b;
  }
}

template <class T>
inline Vec<Accumulator<T>> multiply_add(Vec<Accumulator<T>> sum, Unit<T> x, Vec<Unit<T>> y) {
#ifdef __AVX512BF16__
  if constexpr (PAIRED<T>) {
    return _mm512_dpbf16_ps(sum, std::bit_cast<__m512bh>(Vec<uint32_t>{} + x), std::bit_cast<__m512bh>(y));
  } else
#endif
    return sum + x * y;
}

// sums[r] = row r of `x` (ROWS, depth) times PAIRS Pairs of columns of `y` (depth, columns).
template <class T, int PAIRS>
inline void product(const Unit<T>* x, int64_t depth, const Unit<T>* y, int64_t columns,
                    Pair<Accumulator<T>> (&sums)[ROWS][PAIRS]) {
  Pair<Accumulator<T>> c[ROWS][PAIRS] = {};
  for (int64_t k = 0; k < depth; k++) {
#pragma GCC unroll 2
    for (int j = 0; j < PAIRS; j++) {
      const Unit<T>* p = y + k * columns + j * 2 * LANES<T>;
      auto a = read<Unit<T>>(p, 0), b = read<Unit<T>>(p, 1);
#pragma GCC unroll 6
      for (int r = 0; r < ROWS; r++) {
        c[r][j].a = multiply_add<T>(c[r][j].a, x[r * depth + k], a);
        c[r][j].b = multiply_add<T>(c[r][j].b, x[r * depth + k], b);
      }
    }
  }
  std::memcpy(sums, c, sizeof c);
}

// Calls `body(pairs, column)` for all columns, whole Pairs. `pairs` is a constant: TILE, then 1.
template <class T, class Body>
inline void for_tiles(int64_t columns, const Body& body) {
  int64_t column = 0;
  for (; column + TILE * 2 * LANES<T> <= columns; column += TILE * 2 * LANES<T>) {
    body(std::integral_constant<int, TILE>(), column);
  }
  for (; column < columns; column += 2 * LANES<T>) body(std::integral_constant<int, 1>(), column);
}

// Exchanges the odd blocks of STRIDE numbers of x with the even ones of y.
template <int STRIDE, class V, size_t... I>
inline void swap_blocks(V& x, V& y, std::index_sequence<I...>) {
  constexpr int N = sizeof...(I);
  V low = __builtin_shufflevector(x, y, (I & STRIDE ? I - STRIDE + N : I)...);
  y = __builtin_shufflevector(x, y, (I & STRIDE ? I + N : I + STRIDE)...);
  x = low;
}

// Transposes a square matrix with a row in each vector.
template <class V, int N, int STRIDE = N / 2>
inline void transpose(V (&rows)[N]) {
#pragma GCC unroll 16
  for (int i = 0; i < N; i++) {
    if (!(i & STRIDE)) swap_blocks<STRIDE>(rows[i], rows[i + STRIDE], std::make_index_sequence<N>());
  }
  if constexpr (STRIDE > 1) transpose<V, N, STRIDE / 2>(rows);
}

// One head of one sequence. Consecutive queries, keys and values are `stride` apart.
template <class T>
class Head {
  using A = Accumulator<T>;
  using U = Unit<T>;
  static constexpr int64_t PER_UNIT = PAIRED<T> ? 2 : 1;

  // columns: keys rounded up; width: head_dim rounded up
  int64_t keys, columns, width, head_dim, stride;
  std::vector<U> key_units;    // (width / PER_UNIT, columns)
  std::vector<U> value_units;  // (columns / PER_UNIT, width)
  std::vector<U> query_units;  // (ROWS, width / PER_UNIT)
  std::vector<A> weights;      // (ROWS, columns)
  std::vector<U> weight_units;

  // The key in a column. With pairs, the order of the keys within STEP columns is the one that `store` reverses.
  static int64_t key_of(int64_t column) {
    const int64_t lane = column % LANES<T>, second = column / LANES<T> % 2, begin = column - column % STEP<T>;
    return begin + (PAIRED<T> ? 2 * lane + second : second * LANES<T> + lane);
  }

  void pack_keys(const T* k) {
    constexpr int VECTORS = UNITS<T> / LANES<T>;
    for (int64_t column = 0; column < columns; column += LANES<T>) {
      for (int64_t d = 0; d < width; d += STEP<T>) {
        Vec<U> units[VECTORS][LANES<T>];
        for (int64_t lane = 0; lane < LANES<T>; lane++) {
          const int64_t key = key_of(column + lane);
          Vec<U> row[VECTORS];
          read_units(k + key * stride + d, key < keys ? head_dim - d : 0, row);
          for (int i = 0; i < VECTORS; i++) units[i][lane] = row[i];
        }
        for (int i = 0; i < VECTORS; i++) {
          transpose(units[i]);
          for (int64_t lane = 0; lane < LANES<T>; lane++) {
            write(&key_units[(d / PER_UNIT + i * LANES<T> + lane) * columns + column], units[i][lane]);
          }
        }
      }
    }
  }

  void pack_values(const T* v) {
    for (int64_t key = 0; key < columns; key += PER_UNIT) {
      for (int64_t d = 0; d < width; d += STEP<T>) {
        U* to = &value_units[key / PER_UNIT * width + d];
        Vec<U> rows[2];
        read_units(v + key * stride + d, key < keys ? head_dim - d : 0, rows);
        if constexpr (PAIRED<T>) {  // pairs of two keys' numbers, first the even ones, then the odd ones
          read_units(v + (key + 1) * stride + d, key + 1 < keys ? head_dim - d : 0, rows + 1);
          write(to, (rows[0] & 0xffffu) | (rows[1] << 16), 0);
          write(to, (rows[0] >> 16) | (rows[1] & 0xffff0000u), 1);
        } else {
          write(to, rows[0], 0);
          write(to, rows[1], 1);
        }
      }
    }
  }

  // Replaces scores by e^(score - largest), written as units. Returns the sum.
  A softmax(A* row, U* units, A scale) const {
    for (int64_t column = columns - STEP<T>; column < columns; column++) {
      if (key_of(column) >= keys) row[column] = -std::numeric_limits<A>::infinity();
    }
    Vec<A> largest = read<A>(row), sum = {};
    for (int64_t i = 1; i < columns / LANES<T>; i++) {
      auto x = read<A>(row, i);
      largest = x > largest ? x : largest;
    }
    A most = largest[0];
    for (int64_t lane = 1; lane < LANES<T>; lane++) most = std::max(most, A(largest[lane]));
    for (int64_t column = 0; column < columns; column += STEP<T>) {
      Pair<A> x = {exp_negative((read<A>(row + column, 0) - most) * scale),
                   exp_negative((read<A>(row + column, 1) - most) * scale)};
      sum += x.a + x.b;
      if constexpr (PAIRED<T>) {
        store(reinterpret_cast<T*>(units) + column, x);
      } else {
        write(units + column, x.a, 0);
        write(units + column, x.b, 1);
      }
    }
    return sum_lanes<A>(sum);
  }

 public:
  Head(int64_t keys, int64_t head_dim, int64_t stride, const T* k, const T* v)
      : keys(keys), columns(round_up(keys, STEP<T>)), width(round_up(head_dim, STEP<T>)), head_dim(head_dim),
        stride(stride), key_units(width / PER_UNIT * columns), value_units(columns / PER_UNIT * width),
        query_units(ROWS * width / PER_UNIT), weights(ROWS * columns), weight_units(ROWS * columns / PER_UNIT) {
    pack_keys(k);
    pack_values(v);
  }

  void attend(const T* q, int64_t queries, A scale, T* out, int64_t out_stride) {
    const int64_t depth = width / PER_UNIT;
    for (int64_t begin = 0; begin < queries; begin += ROWS) {
      const int64_t rows = std::min<int64_t>(ROWS, queries - begin);
      for (int64_t r = 0; r < ROWS; r++) {
        for (int64_t d = 0; d < width; d += STEP<T>) {
          Vec<U> units[2];
          read_units(q + (begin + r) * stride + d, r < rows ? head_dim - d : 0, units);
          for (int64_t i = 0; i < UNITS<T> / LANES<T>; i++) write(&query_units[r * depth + d / PER_UNIT], units[i], i);
        }
      }
      for_tiles<T>(columns, [&](auto pairs, int64_t column) {
        Pair<A> sums[ROWS][decltype(pairs)::value];
        product<T>(query_units.data(), depth, &key_units[column], columns, sums);
        for (int64_t r = 0; r < ROWS; r++) std::memcpy(&weights[r * columns + column], sums[r], sizeof sums[r]);
      });
      A total[ROWS];
      for (int64_t r = 0; r < ROWS; r++) {
        total[r] = softmax(&weights[r * columns], &weight_units[r * columns / PER_UNIT], scale);
      }
      for_tiles<T>(width, [&](auto pairs, int64_t column) {
        Pair<A> sums[ROWS][decltype(pairs)::value];
        product<T>(weight_units.data(), columns / PER_UNIT, &value_units[column], width, sums);
        for (int64_t r = 0; r < rows; r++) {
          for (int j = 0; j < decltype(pairs)::value; j++) {
            const int64_t d = column + j * STEP<T>, there = std::min<int64_t>(STEP<T>, head_dim - d);
            Pair<A> mean = {sums[r][j].a / total[r], sums[r][j].b / total[r]};
            if (there > 0) store(out + (begin + r) * out_stride + d, mean, there);
          }
        }
      });
    }
  }
};

}  // namespace

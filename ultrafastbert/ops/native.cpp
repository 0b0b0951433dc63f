// The fast feedforward operator for CPUs: forward, routes and both halves of the backward pass.
//
// What is notable:
// - Vectors are those of the compiler (GCC's and Clang's vector_size), as wide as the machine it is built for has
//   them: AVX-512, AVX2, NEON or SSE from one text. Only bfloat16's dot product asks for an instruction by name.
// - Numbers of 16 bits are read as float, and everything is added up in float (double for double).
// - Tokens walk the trees in blocks, a level at a time, so that the loads of several tokens overlap, and get their
//   outputs in the order of their leaves, so that neighbours find rows in cache. (Prefetching the next rows by hand,
//   and sorting tokens by subtree on their way down, made it slower.)
// - Sorted by leaf, the tokens of a node are neighbours as well. Its gradient is a sum over a run of them, written
//   once. Threads share out trees and columns, not tokens, so nothing is added up in an order that depends on them.
// - What a token gets does not depend on the other tokens or on the number of threads, to the last bit.
// - A pre-activation that is not a number is not > 0: the token goes left.

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {

using at::BFloat16;
using at::Half;
using at::Tensor;

// ---------------------------------------------------------------------------------------------------- vectors

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

// Two vectors of accumulators: what a vector of 16-bit numbers widens to.
template <class A>
struct Pair {
  Vec<A> a, b;
};

template <class T>
constexpr int STEP = 2 * VECTOR_BYTES / sizeof(Accumulator<T>);  // numbers in a Pair

// Reads STEP numbers. Those of bfloat16 are dealt out, the even ones to `a` and the odd ones to `b`, which takes a
// shift and a mask; `store` collects them again.
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

template <class T>
inline void store(T* p, const Pair<Accumulator<T>>& v) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    auto round = [](Vec<float> x) {  // to nearest, ties to even, in the upper half; NaN stays NaN
      auto bits = std::bit_cast<Vec<uint32_t>>(x);
      return x == x ? bits + 0x7fffu + ((bits >> 16) & 1u) : bits | 0x400000u;
    };
    write(p, (round(v.a) >> 16) | (round(v.b) & 0xffff0000u));
  } else if constexpr (std::is_same_v<T, Half>) {
    using Halves = typename VectorOf<_Float16, VECTOR_BYTES / 2>::type;
    write(p, __builtin_convertvector(v.a, Halves), 0);
    write(p, __builtin_convertvector(v.b, Halves), 1);
  } else {
    write(p, v.a, 0);
    write(p, v.b, 1);
  }
}

// The last `count` < STEP numbers of a row, padded with zeros.
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
  constexpr int CHAINS = 4;  // sums that do not wait for each other; unrolled, they stay in registers
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

constexpr int MANY = 4;  // Pairs summed at once: half of AVX2's registers, and enough to keep the adders busy

// Calls `body(pairs, column, size)` for all columns: with a constant `pairs` of MANY and then 1, of whose numbers
// `size` are there.
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

// Sums of weighted rows in PAIRS * STEP columns, of which `size` are there.
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

// ------------------------------------------------------------------------------------------------------- GELU

// e^x for x <= 0: 2^n e^r with |r| <= log(2) / 2, and the Taylor series of e^r to the term that float still notices.
inline Vec<float> exp_negative(Vec<float> x) {
  x = x < -87.0f ? Vec<float>{} - 87.0f : x;  // below, float has no normal numbers
  constexpr float MAGIC = 12582912.0f;        // 1.5 * 2^23: added, it leaves the nearest integer in the low bits
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

// The normal distribution: its density, and the share of it below x. Abramowitz & Stegun, 7.1.26, which is off by
// 1e-7 at most, as is PyTorch's own GELU.
inline void normal(Vec<float> x, Vec<float>& density, Vec<float>& below) {
  Vec<float> bell = exp_negative(-0.5f * x * x), size = x < 0.0f ? -x : x;
  Vec<float> t = 1.0f / (1.0f + 0.231641894f * size);  // 0.3275911 / sqrt(2)
  Vec<float> p = -1.453152027f + t * 1.061405429f;
  p = 1.421413741f + t * p;
  p = -0.284496736f + t * p;
  p = 0.254829592f + t * p;
  Vec<float> above = 0.5f * bell * t * p;  // the share above |x|
  below = x < 0.0f ? above : 1.0f - above;
  density = 0.398942280f * bell;
}

inline void normal(Vec<double> x, Vec<double>& density, Vec<double>& below) {
  for (size_t i = 0; i < sizeof x / sizeof(double); i++) {
    density[i] = std::exp(-0.5 * x[i] * x[i]) * 0.398942280401432678;
    below[i] = 0.5 * std::erfc(-x[i] * 0.707106781186547524);
  }
}

// activation = gelu(z); and, where asked for, slope = gelu'(z).
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

// ------------------------------------------------------------------------------------------------------ trees

template <class T>
struct Trees {
  int64_t trees, nodes, levels, hidden;
  const T *weight_in, *bias_in, *weight_out;  // bias_in may be null

  int64_t path() const { return trees * levels; }  // neurons that a token uses
  int64_t row(int64_t tree, int64_t node) const { return tree * nodes + node; }
};

// The node of `level` on the path to `leaf`: counted from 1, a node's ancestors are its number's leading bits.
inline int64_t ancestor(int64_t leaf, int64_t level, int64_t levels) {
  return ((leaf + 1) >> (levels - 1 - level)) - 1;
}

// Walks tokens down all trees: fills leaf (tokens, trees) and pre_activation (tokens, trees, levels).
template <class T>
void walk(const Trees<T>& f, const T* x, int64_t tokens, int32_t* leaf, Accumulator<T>* pre_activation) {
  constexpr int64_t BLOCK = 4;
  for (int64_t begin = 0; begin < tokens; begin += BLOCK) {
    const int64_t end = std::min(tokens, begin + BLOCK);
    for (int64_t k = 0; k < f.trees; k++) {
      for (int64_t t = begin; t < end; t++) leaf[t * f.trees + k] = 0;
      for (int64_t level = 0; level < f.levels; level++) {
        for (int64_t t = begin; t < end; t++) {
          int32_t& node = leaf[t * f.trees + k];
          const int64_t row = f.row(k, node);
          auto z = dot(x + t * f.hidden, f.weight_in + row * f.hidden, f.hidden);
          if (f.bias_in) z += static_cast<Accumulator<T>>(f.bias_in[row]);
          pre_activation[t * f.path() + k * f.levels + level] = z;
          if (level + 1 < f.levels) node = 2 * node + 1 + (z > 0);
        }
      }
    }
  }
}

// Tokens in the order of their nodes on a level that begins with node `first` and has `width` of them; tokens of a
// node keep their order. Returns where each node's tokens begin, and at last their number.
std::vector<int64_t> sort_by_node(const int32_t* node, int64_t stride, int64_t tokens, int64_t first, int64_t width,
                                  int32_t* order) {
  std::vector<int64_t> begin(width + 1);
  for (int64_t t = 0; t < tokens; t++) begin[node[t * stride] - first + 1]++;
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  std::vector<int64_t> next(begin.begin(), begin.end() - 1);
  for (int64_t t = 0; t < tokens; t++) order[next[node[t * stride] - first]++] = t;
  return begin;
}

// The order in which to visit tokens so that neighbours share rows: by the leaves of the first tree.
template <class T>
std::vector<int32_t> visiting_order(const Trees<T>& f, const int32_t* leaf, int64_t tokens) {
  std::vector<int32_t> order(tokens);
  const int64_t leaves = (f.nodes + 1) / 2;
  if (tokens * 4 >= leaves && tokens > 1) {
    sort_by_node(leaf, f.trees, tokens, leaves - 1, leaves, order.data());
  } else {
    std::iota(order.begin(), order.end(), 0);
  }
  return order;
}

template <class T>
void path_rows(const Trees<T>& f, const T* weight, const int32_t* leaf, const T** rows) {
  for (int64_t k = 0; k < f.trees; k++) {
    for (int64_t level = 0; level < f.levels; level++) {
      *rows++ = weight + f.row(k, ancestor(leaf[k], level, f.levels)) * f.hidden;
    }
  }
}

template <class T>
void forward(const Trees<T>& f, const T* x, int64_t tokens, int32_t* leaf, Accumulator<T>* pre_activation, T* out) {
  walk(f, x, tokens, leaf, pre_activation);
  std::vector<const T*> rows(f.path());
  std::vector<Accumulator<T>> activation(f.path());
  for (int64_t t : visiting_order(f, leaf, tokens)) {
    path_rows(f, f.weight_out, leaf + t * f.trees, rows.data());
    gelu(pre_activation + t * f.path(), f.path(), activation.data());
    weighted_sum(rows.data(), activation.data(), f.path(), f.hidden, out + t * f.hidden);
  }
}

// The half of the backward pass that goes by tokens. In place of the pre-activations and beside them, what the other
// half needs: the gradient of each pre-activation, and each activation.
template <class T>
void backward_tokens(const Trees<T>& f, const T* grad, int64_t tokens, const int32_t* leaf,
                     const Accumulator<T>* pre_activation, T* grad_x, Accumulator<T>* grad_pre_activation,
                     Accumulator<T>* activation) {
  std::vector<const T*> rows(f.path());
  for (int64_t t : visiting_order(f, leaf, tokens)) {
    auto* slope = grad_pre_activation + t * f.path();
    gelu(pre_activation + t * f.path(), f.path(), activation + t * f.path(), slope);
    path_rows(f, f.weight_out, leaf + t * f.trees, rows.data());
    for (int64_t i = 0; i < f.path(); i++) slope[i] *= dot(grad + t * f.hidden, rows[i], f.hidden);
    path_rows(f, f.weight_in, leaf + t * f.trees, rows.data());
    weighted_sum(rows.data(), slope, f.path(), f.hidden, grad_x + t * f.hidden);
  }
}

// Tokens sorted by their leaves in one tree: those of any node are neighbours.
struct Runs {
  int64_t levels;
  std::vector<int32_t> order;
  std::vector<int64_t> begin;  // by leaf

  Runs(const int32_t* leaf, int64_t stride, int64_t tokens, int64_t levels) : levels(levels), order(tokens) {
    const int64_t leaves = int64_t(1) << (levels - 1);
    begin = sort_by_node(leaf, stride, tokens, leaves - 1, leaves, order.data());
  }

  // The tokens of the node at `position` on `level`.
  std::pair<int64_t, int64_t> of(int64_t level, int64_t position) const {
    const int64_t shift = levels - 1 - level;
    return {begin[position << shift], begin[(position + 1) << shift]};
  }
};

// The other half, by nodes, for PAIRS * STEP columns of one weight of one tree: each row is the sum over the node's
// tokens of `factor[t * path + level]` times the token's row of `x`. Small subtrees are finished one after the other,
// so that their tokens are in cache for all of their levels; the few nodes above them collect their sums meanwhile.
template <class T, int PAIRS>
void backward_columns(const Runs& runs, int64_t path, int64_t hidden, const T* x, const Accumulator<T>* factor,
                      int64_t size, T* grad_weight) {
  const int64_t levels = runs.levels, cut = levels / 2;
  auto add = [&](Sums<T, PAIRS>& sums, int64_t level, std::pair<int64_t, int64_t> run) {
    for (int64_t i = run.first; i < run.second; i++) {
      const int64_t t = runs.order[i];
      sums.add(factor[t * path + level], x + t * hidden, size);
    }
  };
  auto row = [&](int64_t level, int64_t position) {
    return grad_weight + ((int64_t(1) << level) - 1 + position) * hidden;
  };
  std::vector<Sums<T, PAIRS>> above(cut);
  for (int64_t subtree = 0; subtree < int64_t(1) << cut; subtree++) {
    for (int64_t level = cut; level < levels; level++) {
      const int64_t width = int64_t(1) << (level - cut);
      for (int64_t position = subtree * width; position < (subtree + 1) * width; position++) {
        Sums<T, PAIRS> sums;
        add(sums, level, runs.of(level, position));
        sums.write(row(level, position), size);
      }
    }
    for (int64_t level = 0; level < cut; level++) {
      const int64_t width = int64_t(1) << (cut - level);  // subtrees below a node of this level
      if (subtree % width == 0) above[level] = {};
      auto sums = above[level];  // in registers
      add(sums, level, runs.of(cut, subtree));
      above[level] = sums;
      if (subtree % width == width - 1) sums.write(row(level, subtree / width), size);
    }
  }
}

template <class T>
void backward_bias(const Runs& runs, int64_t path, const Accumulator<T>* factor, T* grad_bias) {
  for (int64_t level = 0; level < runs.levels; level++) {
    for (int64_t position = 0; position < int64_t(1) << level; position++) {
      Accumulator<T> sum = 0;
      auto [begin, end] = runs.of(level, position);
      for (int64_t i = begin; i < end; i++) sum += factor[runs.order[i] * path + level];
      *grad_bias++ = static_cast<T>(sum);
    }
  }
}

// -------------------------------------------------------------------------------------------------- operators

// Calls body(T()) for the dtype of `tensor`.
template <class Body>
auto with_dtype(const Tensor& tensor, const Body& body) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return body(float());
    case at::kBFloat16: return body(BFloat16());
    case at::kHalf: return body(Half());
    case at::kDouble: return body(double());
    default:
      TORCH_CHECK_TYPE(false, "x is of dtype ", tensor.scalar_type(),
                       "; for backend 'native' it should be float32, bfloat16, float16 or float64");
  }
}

at::ScalarType accumulator_dtype(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

void check(const Tensor& x, const Tensor& weight_in, const std::optional<Tensor>& bias_in, const Tensor& weight_out) {
  TORCH_CHECK_VALUE(weight_in.dim() == 3 && weight_in.numel() > 0, "weight_in has shape ", weight_in.sizes(),
                    "; it should be (trees, nodes, hidden), each at least 1");
  const int64_t nodes = weight_in.size(1);
  TORCH_CHECK_VALUE((nodes & (nodes + 1)) == 0 && nodes < int64_t(1) << 31, "weight_in has ", nodes,
                    " nodes a tree; it should be 2^(depth+1) - 1, of a depth of 30 at most");
  TORCH_CHECK_VALUE(x.dim() >= 1 && x.size(-1) == weight_in.size(2), "x has shape ", x.sizes(),
                    "; it should be (..., ", weight_in.size(2), "), as wide as weight_in");
  TORCH_CHECK_VALUE(x.numel() / weight_in.size(2) < int64_t(1) << 31, "x has ", x.numel() / weight_in.size(2),
                    " tokens; it should have fewer than 2^31");
  TORCH_CHECK_VALUE(weight_out.sizes() == weight_in.sizes(), "weight_out has shape ", weight_out.sizes(),
                    "; it should be that of weight_in, ", weight_in.sizes());
  auto same = [&](const Tensor& tensor, const char* name) {
    TORCH_CHECK_TYPE(tensor.scalar_type() == x.scalar_type(), name, " is of dtype ", tensor.scalar_type(),
                     "; it should be that of x, ", x.scalar_type());
    TORCH_CHECK_VALUE(tensor.is_cpu(), name, " is on device ", tensor.device(), "; it should be on cpu");
  };
  same(x, "x");
  same(weight_in, "weight_in");
  same(weight_out, "weight_out");
  if (bias_in) {
    same(*bias_in, "bias_in");
    TORCH_CHECK_VALUE(bias_in->dim() == 2 && bias_in->size(0) == weight_in.size(0) && bias_in->size(1) == nodes,
                      "bias_in has shape ", bias_in->sizes(), "; it should be (trees, nodes)");
  }
}

// Contiguous arguments, and the pointers into them.
template <class T>
struct Arguments {
  Tensor x, weight_in, bias_in, weight_out;
  Trees<T> trees;

  Arguments(const Tensor& x_, const Tensor& weight_in_, const std::optional<Tensor>& bias_in_,
            const Tensor& weight_out_)
      : x(x_.contiguous()), weight_in(weight_in_.contiguous()), weight_out(weight_out_.contiguous()) {
    if (bias_in_) bias_in = bias_in_->contiguous();
    const int64_t nodes = weight_in.size(1);
    trees = {weight_in.size(0), nodes, int64_t(std::bit_width(uint64_t(nodes))), weight_in.size(2),
             weight_in.const_data_ptr<T>(), bias_in_ ? bias_in.const_data_ptr<T>() : nullptr,
             weight_out.const_data_ptr<T>()};
  }

  int64_t tokens() const { return x.numel() / trees.hidden; }

  // A thread is worth waking for some ten microseconds of work.
  int64_t grain() const { return 1 + (1 << 18) / (trees.path() * trees.hidden); }
};

// Pages of large tensors cost more to get from the system than to fill; ask for large ones.
Tensor empty(at::IntArrayRef sizes, at::TensorOptions options) {
  Tensor tensor = at::empty(sizes, options);
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t HUGE_PAGE = 1 << 21;
  auto data = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
  const uintptr_t begin = (data + HUGE_PAGE - 1) & -HUGE_PAGE, end = (data + tensor.nbytes()) & -HUGE_PAGE;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return tensor;
}

Tensor fff_cpu(const Tensor& x, const Tensor& weight_in, const std::optional<Tensor>& bias_in,
               const Tensor& weight_out) {
  check(x, weight_in, bias_in, weight_out);
  Tensor out = empty(x.sizes(), x.options());
  with_dtype(x, [&](auto t) {
    using T = decltype(t);
    Arguments<T> a(x, weight_in, bias_in, weight_out);
    const T* x_data = a.x.template const_data_ptr<T>();
    T* out_data = out.template mutable_data_ptr<T>();
    at::parallel_for(0, a.tokens(), a.grain(), [&](int64_t begin, int64_t end) {
      const int64_t count = end - begin, hidden = a.trees.hidden;
      std::vector<int32_t> leaf(count * a.trees.trees);
      std::vector<Accumulator<T>> pre_activation(count * a.trees.path());
      forward(a.trees, x_data + begin * hidden, count, leaf.data(), pre_activation.data(), out_data + begin * hidden);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> fff_with_path_cpu(const Tensor& x, const Tensor& weight_in,
                                                     const std::optional<Tensor>& bias_in, const Tensor& weight_out) {
  check(x, weight_in, bias_in, weight_out);
  const int64_t tokens = x.numel() / x.size(-1), trees = weight_in.size(0);
  const int64_t levels = std::bit_width(uint64_t(weight_in.size(1)));
  Tensor out = empty(x.sizes(), x.options());
  Tensor leaf = empty({tokens, trees}, x.options().dtype(at::kInt));
  Tensor pre_activation = empty({tokens, trees, levels}, x.options().dtype(accumulator_dtype(x)));
  with_dtype(x, [&](auto t) {
    using T = decltype(t);
    Arguments<T> a(x, weight_in, bias_in, weight_out);
    const T* x_data = a.x.template const_data_ptr<T>();
    T* out_data = out.template mutable_data_ptr<T>();
    auto* leaf_data = leaf.mutable_data_ptr<int32_t>();
    auto* z_data = pre_activation.template mutable_data_ptr<Accumulator<T>>();
    at::parallel_for(0, tokens, a.grain(), [&](int64_t begin, int64_t end) {
      forward(a.trees, x_data + begin * a.trees.hidden, end - begin, leaf_data + begin * trees,
              z_data + begin * a.trees.path(), out_data + begin * a.trees.hidden);
    });
  });
  return {out, leaf, pre_activation};
}

Tensor route_cpu(const Tensor& x, const Tensor& weight_in, const std::optional<Tensor>& bias_in) {
  check(x, weight_in, bias_in, weight_in);
  const int64_t tokens = x.numel() / x.size(-1), trees = weight_in.size(0);
  const int64_t levels = std::bit_width(uint64_t(weight_in.size(1)));
  Tensor path = empty({tokens, trees, levels}, x.options().dtype(at::kLong));
  with_dtype(x, [&](auto t) {
    using T = decltype(t);
    Arguments<T> a(x, weight_in, bias_in, weight_in);
    const T* x_data = a.x.template const_data_ptr<T>();
    auto* path_data = path.mutable_data_ptr<int64_t>();
    at::parallel_for(0, tokens, a.grain(), [&](int64_t begin, int64_t end) {
      const int64_t count = end - begin;
      std::vector<int32_t> leaf(count * trees);
      std::vector<Accumulator<T>> pre_activation(count * a.trees.path());
      walk(a.trees, x_data + begin * a.trees.hidden, count, leaf.data(), pre_activation.data());
      for (int64_t i = 0; i < count * trees; i++) {
        for (int64_t level = 0; level < levels; level++) {
          path_data[(begin * trees + i) * levels + level] = ancestor(leaf[i], level, levels);
        }
      }
    });
  });
  return path;
}

// The two backward operators take what the forward pass made; only its layout is checked.
void check_path(const Tensor& leaf, const Tensor& by_neuron, const Tensor& x, int64_t trees) {
  TORCH_CHECK_VALUE(leaf.dim() == 2 && leaf.size(0) * x.size(-1) == x.numel() && leaf.size(1) == trees &&
                        by_neuron.dim() == 3 && by_neuron.sizes().slice(0, 2) == leaf.sizes(),
                    "leaf has shape ", leaf.sizes(), " and what goes with it ", by_neuron.sizes(),
                    "; they should be (tokens, trees) and (tokens, trees, levels)");
}

std::tuple<Tensor, Tensor, Tensor> backward_tokens_cpu(const Tensor& grad_, const Tensor& weight_in,
                                                       const Tensor& weight_out, const Tensor& leaf_,
                                                       const Tensor& pre_activation_) {
  check(grad_, weight_in, std::nullopt, weight_out);
  check_path(leaf_, pre_activation_, grad_, weight_in.size(0));
  const Tensor leaf = leaf_.contiguous(), pre_activation = pre_activation_.contiguous();
  Tensor grad_x = empty(grad_.sizes(), grad_.options());
  Tensor grad_pre_activation = empty(pre_activation.sizes(), pre_activation.options());
  Tensor activation = empty(pre_activation.sizes(), pre_activation.options());
  with_dtype(grad_, [&](auto t) {
    using T = decltype(t);
    using A = Accumulator<T>;
    Arguments<T> a(grad_, weight_in, std::nullopt, weight_out);
    const int64_t hidden = a.trees.hidden, path = a.trees.path();
    const T* grad = a.x.template const_data_ptr<T>();
    const auto* leaf_data = leaf.const_data_ptr<int32_t>();
    const A* z = pre_activation.template const_data_ptr<A>();
    T* dx = grad_x.template mutable_data_ptr<T>();
    A* dz = grad_pre_activation.template mutable_data_ptr<A>();
    A* y = activation.template mutable_data_ptr<A>();
    at::parallel_for(0, a.tokens(), a.grain(), [&](int64_t begin, int64_t end) {
      backward_tokens(a.trees, grad + begin * hidden, end - begin, leaf_data + begin * a.trees.trees,
                      z + begin * path, dx + begin * hidden, dz + begin * path, y + begin * path);
    });
  });
  return {grad_x, grad_pre_activation, activation};
}

std::tuple<Tensor, Tensor, Tensor> backward_weights_cpu(const Tensor& grad_, const Tensor& x_, const Tensor& leaf_,
                                                        const Tensor& grad_pre_activation_,
                                                        const Tensor& activation_) {
  check_path(leaf_, grad_pre_activation_, x_, leaf_.size(-1));
  check_path(leaf_, activation_, grad_, leaf_.size(-1));
  const Tensor grad = grad_.contiguous(), x = x_.contiguous(), leaf = leaf_.contiguous();
  const Tensor grad_pre_activation = grad_pre_activation_.contiguous(), activation = activation_.contiguous();
  const int64_t hidden = x.size(-1), tokens = leaf.size(0), trees = leaf.size(1), levels = activation.size(2);
  const int64_t nodes = (int64_t(1) << levels) - 1, path = trees * levels;
  Tensor grad_in = empty({trees, nodes, hidden}, x.options());
  Tensor grad_bias = empty({trees, nodes}, x.options());
  Tensor grad_out = empty({trees, nodes, hidden}, x.options());
  with_dtype(x, [&](auto t) {
    using T = decltype(t);
    using A = Accumulator<T>;
    const auto* leaf_data = leaf.const_data_ptr<int32_t>();
    const T* x_data = x.template const_data_ptr<T>();
    const T* grad_data = grad.template const_data_ptr<T>();
    const A* dz = grad_pre_activation.template const_data_ptr<A>();
    const A* y = activation.template const_data_ptr<A>();
    T* d_in = grad_in.template mutable_data_ptr<T>();
    T* d_bias = grad_bias.template mutable_data_ptr<T>();
    T* d_out = grad_out.template mutable_data_ptr<T>();
    std::vector<std::optional<Runs>> runs(trees);
    at::parallel_for(0, trees, 1, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; k++) {
        runs[k].emplace(leaf_data + k, trees, tokens, levels);
        backward_bias(*runs[k], path, dz + k * levels, d_bias + k * nodes);
      }
    });
    constexpr int64_t WIDTH = MANY * STEP<T>;
    const int64_t pieces = (hidden + WIDTH - 1) / WIDTH;
    at::parallel_for(0, trees * 2 * pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; item++) {
        const int64_t k = item / (2 * pieces), first = item / 2 % pieces * WIDTH;
        const bool out = item % 2;
        const T* rows = (out ? grad_data : x_data) + first;
        const A* factor = (out ? y : dz) + k * levels;
        T* grad_weight = (out ? d_out : d_in) + k * nodes * hidden + first;
        for_columns<T>(std::min(WIDTH, hidden - first), [&](auto pairs, int64_t column, int64_t size) {
          backward_columns<T, decltype(pairs)::value>(*runs[k], path, hidden, rows + column, factor, size,
                                                      grad_weight + column);
        });
      }
    });
  });
  return {grad_in, grad_bias, grad_out};
}

// With gradients the operator that keeps the path takes over; its formula is registered from Python.
Tensor fff_autograd(const Tensor& x, const Tensor& weight_in, const std::optional<Tensor>& bias_in,
                    const Tensor& weight_out) {
  const Tensor none;
  bool needed = false;
  for (const Tensor* tensor : {&x, &weight_in, bias_in ? &*bias_in : &none, &weight_out}) {
    if (!tensor->defined()) continue;
    needed |= tensor->requires_grad();
    TORCH_CHECK_NOT_IMPLEMENTED(!tensor->_fw_grad(0).defined(),
                                "backend 'native' has no forward-mode derivatives; use 'reference' or 'dense' for them");
  }
  if (needed && at::GradMode::is_enabled()) {
    static const auto with_path = c10::Dispatcher::singleton()
                                      .findSchemaOrThrow("ultrafastbert::fff_with_path", "")
                                      .typed<decltype(fff_with_path_cpu)>();
    return std::get<0>(with_path.call(x, weight_in, bias_in, weight_out));
  }
  static const auto plain =
      c10::Dispatcher::singleton().findSchemaOrThrow("ultrafastbert::fff", "").typed<decltype(fff_cpu)>();
  at::AutoDispatchBelowADInplaceOrView guard;
  return plain.call(x, weight_in, bias_in, weight_out);
}

}  // namespace

TORCH_LIBRARY(ultrafastbert, library) {
  library.def("fff(Tensor x, Tensor weight_in, Tensor? bias_in, Tensor weight_out) -> Tensor");
  library.def("fff_with_path(Tensor x, Tensor weight_in, Tensor? bias_in, Tensor weight_out) -> (Tensor, Tensor, Tensor)");
  library.def("route(Tensor x, Tensor weight_in, Tensor? bias_in) -> Tensor");
  library.def(
      "backward_tokens(Tensor grad, Tensor weight_in, Tensor weight_out, Tensor leaf, Tensor pre_activation)"
      " -> (Tensor, Tensor, Tensor)");
  library.def(
      "backward_weights(Tensor grad, Tensor x, Tensor leaf, Tensor grad_pre_activation, Tensor activation)"
      " -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(ultrafastbert, CPU, library) {
  library.impl("fff", fff_cpu);
  library.impl("fff_with_path", fff_with_path_cpu);
  library.impl("route", route_cpu);
  library.impl("backward_tokens", backward_tokens_cpu);
  library.impl("backward_weights", backward_weights_cpu);
}

TORCH_LIBRARY_IMPL(ultrafastbert, Autograd, library) { library.impl("fff", fff_autograd); }

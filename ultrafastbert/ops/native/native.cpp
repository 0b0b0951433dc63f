// The operators for CPUs: the fast feedforward one (forward, routes and both halves of the backward pass), and
// attention without padding.
//
// What is notable of the trees (of numbers and attention: vectors.h, attention.h):
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
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <numeric>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "attention.h"
#include "rows.h"
#include "vectors.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {

using at::Tensor;

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

// Calls body(T()) for the dtype of the tensor.
template <class Body>
auto with_dtype(const Tensor& tensor, const char* name, const Body& body) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return body(float());
    case at::kBFloat16: return body(BFloat16());
    case at::kHalf: return body(Half());
    case at::kDouble: return body(double());
    default:
      TORCH_CHECK_TYPE(false, name, " is of dtype ", tensor.scalar_type(),
                       "; for backend 'native' it should be float32, bfloat16, float16 or float64");
  }
}

// The same without double, which layers for inference do not come in.
template <class Body>
auto with_inference_dtype(const Tensor& tensor, const char* name, const Body& body) {
  TORCH_CHECK_TYPE(tensor.scalar_type() != at::kDouble, name, " is of dtype ", tensor.scalar_type(),
                   "; it should be float32, bfloat16 or float16");
  return with_dtype(tensor, name, [&](auto t) {
    if constexpr (!std::is_same_v<decltype(t), double>) body(t);
  });
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
  with_dtype(x, "x", [&](auto t) {
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
  with_dtype(x, "x", [&](auto t) {
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
  with_dtype(x, "x", [&](auto t) {
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
  with_dtype(grad_, "x", [&](auto t) {
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
  with_dtype(x, "x", [&](auto t) {
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

// qkv: a row [queries; keys; values] for each token, each of them (heads, head_dim). offsets: where in the rows each
// sequence begins, and at last their number. Inference only.
Tensor attention_cpu(const Tensor& qkv_, const Tensor& offsets_, int64_t heads) {
  TORCH_CHECK_VALUE(heads > 0 && qkv_.dim() == 2 && qkv_.size(1) > 0 && qkv_.size(1) % (3 * heads) == 0,
                    "qkv has shape ", qkv_.sizes(), "; it should be (tokens, 3 * heads * head_dim), heads is ", heads);
  TORCH_CHECK_TYPE(offsets_.scalar_type() == at::kLong, "offsets is of dtype ", offsets_.scalar_type(),
                   "; it should be int64");
  TORCH_CHECK_VALUE(qkv_.is_cpu() && offsets_.is_cpu(), "qkv and offsets should be on cpu");
  const Tensor qkv = qkv_.contiguous(), offsets = offsets_.contiguous();
  const int64_t tokens = qkv.size(0), hidden = qkv.size(1) / 3, head_dim = hidden / heads;
  const int64_t* begin = offsets.const_data_ptr<int64_t>();
  const int64_t sequences = offsets.numel() - 1;
  TORCH_CHECK_VALUE(offsets.dim() == 1 && sequences >= 0 && begin[0] == 0 && begin[sequences] == tokens &&
                        std::is_sorted(begin, begin + sequences + 1),
                    "offsets should be of one dimension and rise from 0 to the number of tokens, ", tokens);

  constexpr int64_t QUERIES = 128;  // long sequences are shared out in pieces
  std::vector<std::pair<int64_t, int64_t>> pieces;  // sequence, first query
  for (int64_t s = 0; s < sequences; s++) {
    for (int64_t q = begin[s]; q < begin[s + 1]; q += QUERIES) pieces.emplace_back(s, q);
  }
  const int64_t count = pieces.size();
  Tensor out = empty({tokens, hidden}, qkv.options());
  with_dtype(qkv, "qkv", [&](auto t) {
    using T = decltype(t);
    const T* data = qkv.template const_data_ptr<T>();
    T* out_data = out.template mutable_data_ptr<T>();
    const auto scale = static_cast<Accumulator<T>>(1 / std::sqrt(static_cast<double>(head_dim)));
    // heads outermost: equal shares of them are equal shares of work, however long the sequences are
    at::parallel_for(0, heads * count, 1, [&](int64_t first, int64_t last) {
      for (int64_t item = first; item < last; item++) {
        const auto [s, q] = pieces[item % count];
        const T* columns = data + item / count * head_dim;  // of this head's queries
        const T* rows = columns + begin[s] * 3 * hidden;
        Head<T> head(begin[s + 1] - begin[s], head_dim, 3 * hidden, rows + hidden, rows + 2 * hidden);
        head.attend(columns + q * 3 * hidden, std::min(QUERIES, begin[s + 1] - q), scale,
                    out_data + q * hidden + item / count * head_dim, hidden);
      }
    });
  });
  return out;
}

// x: (..., in). weight: int8, packed by PyTorch's onednn::qlinear_prepack; weight_scale: float (out). Each row of x is
// rounded to 8 bits by a scale of its own, so that a token does not depend on the others; oneDNN multiplies.
Tensor linear_int8_cpu(const Tensor& x_, const Tensor& weight, const Tensor& weight_scale, at::ScalarType dtype) {
  using Schema = Tensor(Tensor, double, int64_t, Tensor, Tensor, Tensor, std::optional<Tensor>, double, int64_t,
                        std::optional<at::ScalarType>, std::string_view, c10::List<std::optional<at::Scalar>>,
                        std::string_view);
  static const auto multiply =
      c10::Dispatcher::singleton().findSchemaOrThrow("onednn::qlinear_pointwise", "").typed<Schema>();
  constexpr int64_t ZERO = 128;  // numbers with a sign, for instructions that want one factor without
  const Tensor x = x_.contiguous();
  const int64_t width = x.size(-1), rows = x.numel() / width;
  Tensor quantized = empty({rows, width}, x.options().dtype(at::kByte));
  std::vector<float> scales(rows);
  const int64_t grain = 1 + (1 << 15) / width;
  with_inference_dtype(x, "x", [&](auto t) {
    using T = decltype(t);
    const T* data = x.template const_data_ptr<T>();
    uint8_t* to = quantized.mutable_data_ptr<uint8_t>();
    at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) scales[r] = quantize_row(data + r * width, width, to + r * width);
    });
  });
  const Tensor zeros = at::zeros({weight_scale.size(0)}, at::kInt);
  const c10::List<std::optional<at::Scalar>> no_scalars;
  Tensor out = multiply.call(quantized, 1.0, ZERO, weight, weight_scale, zeros, std::nullopt, 1.0, 0, dtype, "none",
                             no_scalars, "");
  with_inference_dtype(out, "dtype", [&](auto t) {
    using T = decltype(t);
    T* data = out.template mutable_data_ptr<T>();
    const int64_t columns = out.size(-1);
    at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) multiply_row(data + r * columns, columns, scales[r]);
    });
  });
  auto shape = x.sizes().vec();
  shape.back() = out.size(-1);
  return out.view(shape);
}

// stream += update, in place, and the layer normalisation of it: in `dtype`, which is the update's too. stream: float,
// (tokens, hidden); weight and bias: float, (hidden).
Tensor add_norm_cpu(Tensor& stream, const std::optional<Tensor>& update_, const Tensor& weight_, const Tensor& bias_,
                    double eps, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(stream.dim() == 2 && stream.is_contiguous() && stream.scalar_type() == at::kFloat,
                    "stream should be (tokens, hidden), contiguous, of dtype float32");
  const int64_t tokens = stream.size(0), hidden = stream.size(1);
  const Tensor weight = weight_.contiguous(), bias = bias_.contiguous();
  TORCH_CHECK_VALUE(weight.numel() == hidden && bias.numel() == hidden, "weight and bias should be (hidden)");
  Tensor update, out = empty(stream.sizes(), stream.options().dtype(dtype));
  if (update_) {
    update = update_->contiguous();
    TORCH_CHECK_VALUE(update.sizes() == stream.sizes() && update.scalar_type() == dtype, "update is of shape ",
                      update.sizes(), " and dtype ", update.scalar_type(), "; it should be ", stream.sizes(), " and ",
                      dtype);
  }
  const float *weight_data = weight.const_data_ptr<float>(), *bias_data = bias.const_data_ptr<float>();
  float* data = stream.mutable_data_ptr<float>();
  with_inference_dtype(out, "dtype", [&](auto t) {
    using T = decltype(t);
    const T* add = update_ ? update.const_data_ptr<T>() : nullptr;
    T* to = out.template mutable_data_ptr<T>();
    at::parallel_for(0, tokens, 1 + (1 << 15) / hidden, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) {
        add_norm_row(data + t * hidden, add ? add + t * hidden : nullptr, hidden, weight_data, bias_data, eps,
                     to + t * hidden);
      }
    });
  });
  return out;
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
  library.def("attention(Tensor qkv, Tensor offsets, int heads) -> Tensor");
  library.def("linear_int8(Tensor x, Tensor weight, Tensor weight_scale, ScalarType dtype) -> Tensor");
  library.def(
      "add_norm(Tensor(a!) stream, Tensor? update, Tensor weight, Tensor bias, float eps, ScalarType dtype) -> Tensor");
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
  library.impl("attention", attention_cpu);
  library.impl("linear_int8", linear_int8_cpu);
  library.impl("add_norm", add_norm_cpu);
  library.impl("route", route_cpu);
  library.impl("backward_tokens", backward_tokens_cpu);
  library.impl("backward_weights", backward_weights_cpu);
}

TORCH_LIBRARY_IMPL(ultrafastbert, MkldnnCPU, library) { library.impl("linear_int8", linear_int8_cpu); }

TORCH_LIBRARY_IMPL(ultrafastbert, Autograd, library) { library.impl("fff", fff_autograd); }

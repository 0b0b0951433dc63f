// Trees whose nodes only decide and whose leaves are feedforward networks with GELU: forward pass and both halves of
// the backward pass, organised as in trees.h. Decisions have no gradient.
#pragma once

#include <ATen/Parallel.h>

#include <tuple>

#include "tensors.h"
#include "trees.h"

namespace {

template <class T>
struct Leaves {
  int64_t depth, size, hidden;  // size: neurons of a leaf
  const T *node_weight, *node_bias;
  const T *weight_in, *bias_in, *weight_out, *bias_out;

  int64_t count() const { return int64_t(1) << depth; }
};

// The leaf of each token, from 0 on. Tokens walk in blocks, so that the loads of several tokens overlap.
template <class T>
void find_leaves(const Leaves<T>& f, const T* x, int64_t tokens, int32_t* leaf) {
  constexpr int64_t BLOCK = 4;
  for (int64_t begin = 0; begin < tokens; begin += BLOCK) {
    const int64_t end = std::min(tokens, begin + BLOCK);
    std::fill(leaf + begin, leaf + end, 0);
    for (int64_t level = 0; level < f.depth; level++) {
      for (int64_t t = begin; t < end; t++) {
        const int64_t node = leaf[t];
        const auto z = dot(x + t * f.hidden, f.node_weight + node * f.hidden, f.hidden) +
                       static_cast<Accumulator<T>>(f.node_bias[node]);
        leaf[t] = 2 * node + 1 + (z > 0);
      }
    }
    for (int64_t t = begin; t < end; t++) leaf[t] -= f.count() - 1;
  }
}

// An order of the tokens in which neighbours use the same leaf, unless tokens are few.
std::vector<int32_t> order_by_leaf(const int32_t* leaf, int64_t tokens, int64_t leaves) {
  std::vector<int32_t> order(tokens);
  if (tokens * 4 >= leaves && tokens > 1) {
    sort_by_node(leaf, 1, tokens, 0, leaves, order.data());
  } else {
    std::iota(order.begin(), order.end(), 0);
  }
  return order;
}

// The rows of a leaf in `weight`.
template <class T>
void leaf_rows(const T* weight, int64_t leaf, int64_t size, int64_t hidden, const T** rows) {
  for (int64_t i = 0; i < size; i++) rows[i] = weight + (leaf * size + i) * hidden;
}

// Fills leaf (tokens), pre_activation (tokens, size) and out (tokens, hidden).
template <class T>
void leaves_forward(const Leaves<T>& f, const T* x, int64_t tokens, int32_t* leaf, Accumulator<T>* pre_activation,
                    T* out) {
  find_leaves(f, x, tokens, leaf);
  std::vector<Accumulator<T>> activation(f.size + 1);
  std::vector<const T*> rows(f.size + 1);
  activation[f.size] = 1;  // of the bias
  for (int64_t t : order_by_leaf(leaf, tokens, f.count())) {
    auto* z = pre_activation + t * f.size;
    leaf_rows(f.weight_in, leaf[t], f.size, f.hidden, rows.data());
    for (int64_t i = 0; i < f.size; i++) {
      z[i] = dot(x + t * f.hidden, rows[i], f.hidden) + static_cast<Accumulator<T>>(f.bias_in[leaf[t] * f.size + i]);
    }
    gelu(z, f.size, activation.data());
    leaf_rows(f.weight_out, leaf[t], f.size, f.hidden, rows.data());
    rows[f.size] = f.bias_out + leaf[t] * f.hidden;
    weighted_sum(rows.data(), activation.data(), f.size + 1, f.hidden, out + t * f.hidden);
  }
}

// The half of the backward pass that goes through the tokens; see backward_tokens in trees.h.
template <class T>
void leaves_backward(const Leaves<T>& f, const T* grad, int64_t tokens, const int32_t* leaf,
                     const Accumulator<T>* pre_activation, T* grad_x, Accumulator<T>* grad_pre_activation,
                     Accumulator<T>* activation) {
  std::vector<const T*> rows(f.size);
  for (int64_t t : order_by_leaf(leaf, tokens, f.count())) {
    auto* slope = grad_pre_activation + t * f.size;
    gelu(pre_activation + t * f.size, f.size, activation + t * f.size, slope);
    leaf_rows(f.weight_out, leaf[t], f.size, f.hidden, rows.data());
    for (int64_t i = 0; i < f.size; i++) slope[i] *= dot(grad + t * f.hidden, rows[i], f.hidden);
    leaf_rows(f.weight_in, leaf[t], f.size, f.hidden, rows.data());
    weighted_sum(rows.data(), slope, f.size, f.hidden, grad_x + t * f.hidden);
  }
}

// Calls body(leaves, rows, first, count) in parallel for ranges of tokens; `rows` are the rows of x from `first` on.
template <class Body>
void for_tokens_of_leaves(const Tensor& x_, const Tensor& node_weight_, const Tensor& node_bias_,
                          const Tensor& weight_in_, const Tensor& bias_in_, const Tensor& weight_out_,
                          const Tensor& bias_out_, const Body& body) {
  const Tensor x = x_.contiguous(), node_weight = node_weight_.contiguous(), node_bias = node_bias_.contiguous();
  const Tensor weight_in = weight_in_.contiguous(), bias_in = bias_in_.contiguous();
  const Tensor weight_out = weight_out_.contiguous(), bias_out = bias_out_.contiguous();
  with_dtype(x, "x", [&](auto t) {
    using T = decltype(t);
    const int64_t depth = std::bit_width(uint64_t(weight_in.size(0))) - 1, hidden = weight_in.size(2);
    const Leaves<T> f = {depth,
                         weight_in.size(1),
                         hidden,
                         node_weight.const_data_ptr<T>(),
                         node_bias.const_data_ptr<T>(),
                         weight_in.const_data_ptr<T>(),
                         bias_in.const_data_ptr<T>(),
                         weight_out.const_data_ptr<T>(),
                         bias_out.const_data_ptr<T>()};
    const T* x_data = x.const_data_ptr<T>();
    // waking a thread pays from about ten microseconds of work on
    at::parallel_for(0, x.numel() / hidden, 1 + (1 << 18) / ((depth + f.size) * hidden),
                     [&](int64_t begin, int64_t end) { body(f, x_data + begin * hidden, begin, end - begin); });
  });
}

void check_leaves(const Tensor& x, const Tensor& node_weight, const Tensor& node_bias, const Tensor& weight_in,
                  const Tensor& bias_in, const Tensor& weight_out, const Tensor& bias_out) {
  auto check = [&](const Tensor& tensor, const char* name, at::IntArrayRef shape) {
    TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " has shape ", tensor.sizes(), "; it should be ", shape);
    TORCH_CHECK_TYPE(tensor.scalar_type() == x.scalar_type(), name, " has dtype ", tensor.scalar_type(),
                     "; it should have the dtype of x, ", x.scalar_type());
    TORCH_CHECK_VALUE(tensor.is_cpu(), name, " is on device ", tensor.device(), "; it should be on cpu");
  };
  TORCH_CHECK_VALUE(weight_in.dim() == 3 && weight_in.numel() > 0, "weight_in has shape ", weight_in.sizes(),
                    "; it should be (leaves, size, hidden), each at least 1");
  const int64_t leaves = weight_in.size(0), size = weight_in.size(1), hidden = weight_in.size(2);
  TORCH_CHECK_VALUE((leaves & (leaves - 1)) == 0 && leaves < int64_t(1) << 31, "weight_in has ", leaves,
                    " leaves; their number should be a power of two below 2^31");
  TORCH_CHECK_VALUE(x.dim() >= 1 && x.size(-1) == hidden && x.numel() / hidden < int64_t(1) << 31, "x has shape ",
                    x.sizes(), "; it should be (..., ", hidden, "), with fewer than 2^31 tokens");
  check(x, "x", x.sizes());
  check(weight_in, "weight_in", weight_in.sizes());
  check(node_weight, "node_weight", {leaves - 1, 1, hidden});
  check(node_bias, "node_bias", {leaves - 1, 1});
  check(bias_in, "bias_in", {leaves, size});
  check(weight_out, "weight_out", {leaves, size, hidden});
  check(bias_out, "bias_out", {leaves, hidden});
}

std::tuple<Tensor, Tensor> leaves_cpu(const Tensor& x, const Tensor& node_weight, const Tensor& node_bias,
                                      const Tensor& weight_in, const Tensor& bias_in, const Tensor& weight_out,
                                      const Tensor& bias_out) {
  check_leaves(x, node_weight, node_bias, weight_in, bias_in, weight_out, bias_out);
  Tensor out = empty(x.sizes(), x.options());
  Tensor leaf = empty({x.numel() / x.size(-1)}, x.options().dtype(at::kInt));
  for_tokens_of_leaves(x, node_weight, node_bias, weight_in, bias_in, weight_out, bias_out,
                       [&]<class T>(const Leaves<T>& f, const T* rows, int64_t first, int64_t count) {
    std::vector<Accumulator<T>> pre_activation(count * f.size);
    leaves_forward(f, rows, count, leaf.mutable_data_ptr<int32_t>() + first, pre_activation.data(),
                   out.mutable_data_ptr<T>() + first * f.hidden);
  });
  return {out, leaf};
}

std::tuple<Tensor, Tensor, Tensor> leaves_with_path_cpu(const Tensor& x, const Tensor& node_weight,
                                                        const Tensor& node_bias, const Tensor& weight_in,
                                                        const Tensor& bias_in, const Tensor& weight_out,
                                                        const Tensor& bias_out) {
  check_leaves(x, node_weight, node_bias, weight_in, bias_in, weight_out, bias_out);
  const int64_t tokens = x.numel() / x.size(-1);
  Tensor out = empty(x.sizes(), x.options());
  Tensor leaf = empty({tokens}, x.options().dtype(at::kInt));
  Tensor pre_activation = empty({tokens, weight_in.size(1)}, x.options().dtype(accumulator_dtype(x)));
  for_tokens_of_leaves(x, node_weight, node_bias, weight_in, bias_in, weight_out, bias_out,
                       [&]<class T>(const Leaves<T>& f, const T* rows, int64_t first, int64_t count) {
    leaves_forward(f, rows, count, leaf.mutable_data_ptr<int32_t>() + first,
                   pre_activation.mutable_data_ptr<Accumulator<T>>() + first * f.size,
                   out.mutable_data_ptr<T>() + first * f.hidden);
  });
  return {out, leaf, pre_activation};
}

// The two backward operators get what the forward pass computed. Only its shape is checked.
void check_leaf_path(const Tensor& leaf, const Tensor& by_neuron, const Tensor& x) {
  TORCH_CHECK_VALUE(leaf.is_cpu() && by_neuron.is_cpu() && x.is_cpu(), "all tensors should be on cpu");
  TORCH_CHECK_VALUE(leaf.dim() == 1 && leaf.size(0) * x.size(-1) == x.numel() && by_neuron.dim() == 2 &&
                        by_neuron.size(0) == leaf.size(0),
                    "leaf has shape ", leaf.sizes(), " and the values of its neurons ", by_neuron.sizes(),
                    "; they should be (tokens) and (tokens, size)");
}

std::tuple<Tensor, Tensor, Tensor> leaves_backward_tokens_cpu(const Tensor& grad, const Tensor& weight_in,
                                                              const Tensor& weight_out, const Tensor& leaf_,
                                                              const Tensor& pre_activation_) {
  check_leaf_path(leaf_, pre_activation_, grad);
  TORCH_CHECK_VALUE(weight_in.dim() == 3 && weight_out.sizes() == weight_in.sizes() && weight_in.is_cpu() &&
                        weight_out.is_cpu() && weight_in.size(1) == pre_activation_.size(1) &&
                        weight_in.size(2) == grad.size(-1),
                    "weight_in has shape ", weight_in.sizes(), " and weight_out ", weight_out.sizes(),
                    "; both should be (leaves, ", pre_activation_.size(1), ", ", grad.size(-1), ") on cpu");
  const Tensor leaf = leaf_.contiguous(), pre_activation = pre_activation_.contiguous();
  Tensor grad_x = empty(grad.sizes(), grad.options());
  Tensor grad_pre_activation = empty(pre_activation.sizes(), pre_activation.options());
  Tensor activation = empty(pre_activation.sizes(), pre_activation.options());
  // the nodes and biases are not used
  for_tokens_of_leaves(grad, weight_in, weight_in, weight_in, weight_in, weight_out, weight_in,
                       [&]<class T>(const Leaves<T>& f, const T* rows, int64_t first, int64_t count) {
    using A = Accumulator<T>;
    const int64_t neuron = first * f.size;
    leaves_backward(f, rows, count, leaf.const_data_ptr<int32_t>() + first,
                    pre_activation.const_data_ptr<A>() + neuron, grad_x.mutable_data_ptr<T>() + first * f.hidden,
                    grad_pre_activation.mutable_data_ptr<A>() + neuron, activation.mutable_data_ptr<A>() + neuron);
  });
  return {grad_x, grad_pre_activation, activation};
}

// Sums over the tokens of each leaf: of factor[t * size + i] * x[t] into row i of the leaf, and of factor alone.
// Threads divide leaves and columns among them, so that the order of a sum does not depend on their number.
template <class T>
void sum_over_leaves(const std::vector<int64_t>& begin, const std::vector<int32_t>& order, const T* x,
                     const Accumulator<T>* factor, int64_t size, int64_t hidden, T* sums, T* factor_sums) {
  using A = Accumulator<T>;
  const int64_t leaves = begin.size() - 1;
  constexpr int64_t WIDTH = MANY * STEP<T>;
  const int64_t pieces = (hidden + WIDTH - 1) / WIDTH;
  at::parallel_for(0, leaves * pieces, 1, [&](int64_t first_item, int64_t last_item) {
    for (int64_t item = first_item; item < last_item; item++) {
      const int64_t leaf = item / pieces, first = item % pieces * WIDTH;
      for (int64_t i = 0; i < size; i++) {
        T* row = sums + (leaf * size + i) * hidden + first;
        for_columns<T>(std::min(WIDTH, hidden - first), [&](auto pairs, int64_t column, int64_t count) {
          Sums<T, decltype(pairs)::value> sum;
          for (int64_t k = begin[leaf]; k < begin[leaf + 1]; k++) {
            sum.add(factor[order[k] * size + i], x + order[k] * hidden + first + column, count);
          }
          sum.write(row + column, count);
        });
        if (first == 0 && factor_sums) {
          A sum = 0;
          for (int64_t k = begin[leaf]; k < begin[leaf + 1]; k++) sum += factor[order[k] * size + i];
          factor_sums[leaf * size + i] = static_cast<T>(sum);
        }
      }
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> leaves_backward_weights_cpu(const Tensor& grad_, const Tensor& x_,
                                                                       const Tensor& leaf_,
                                                                       const Tensor& grad_pre_activation_,
                                                                       const Tensor& activation_, int64_t leaves) {
  check_leaf_path(leaf_, grad_pre_activation_, x_);
  check_leaf_path(leaf_, activation_, grad_);
  TORCH_CHECK_VALUE(grad_.sizes() == x_.sizes() && activation_.sizes() == grad_pre_activation_.sizes(),
                    "grad and x, and both values of the neurons, should have the same shapes");
  const Tensor grad = grad_.contiguous(), x = x_.contiguous(), leaf = leaf_.contiguous();
  const Tensor grad_pre_activation = grad_pre_activation_.contiguous(), activation = activation_.contiguous();
  const int64_t hidden = x.size(-1), tokens = leaf.size(0), size = activation.size(1);
  Tensor grad_in = empty({leaves, size, hidden}, x.options()), grad_bias_in = empty({leaves, size}, x.options());
  Tensor grad_out = empty({leaves, size, hidden}, x.options()), grad_bias_out = empty({leaves, hidden}, x.options());
  std::vector<int32_t> order(tokens);
  const auto begin = sort_by_node(leaf.const_data_ptr<int32_t>(), 1, tokens, 0, leaves, order.data());
  with_dtype(x, "x", [&](auto t) {
    using T = decltype(t);
    using A = Accumulator<T>;
    const T *x_data = x.const_data_ptr<T>(), *grad_data = grad.const_data_ptr<T>();
    const std::vector<A> ones(tokens, 1);
    sum_over_leaves<T>(begin, order, x_data, grad_pre_activation.const_data_ptr<A>(), size, hidden,
                       grad_in.mutable_data_ptr<T>(), grad_bias_in.mutable_data_ptr<T>());
    sum_over_leaves<T>(begin, order, grad_data, activation.const_data_ptr<A>(), size, hidden,
                       grad_out.mutable_data_ptr<T>(), nullptr);
    sum_over_leaves<T>(begin, order, grad_data, ones.data(), 1, hidden, grad_bias_out.mutable_data_ptr<T>(), nullptr);
  });
  return {grad_in, grad_bias_in, grad_out, grad_bias_out};
}

}  // namespace

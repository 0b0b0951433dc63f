// Trees whose nodes only decide and whose leaves are feedforward networks with GELU, for inference.
//
// Tokens walk in blocks, one level at a time, so that the loads of several tokens overlap, and are then evaluated in
// the order of their leaves, so that consecutive tokens find the rows of their leaf in cache.
#pragma once

#include <ATen/Parallel.h>

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

// The leaf of each token, from 0 on.
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

template <class T>
void evaluate_leaves(const Leaves<T>& f, const T* x, int64_t tokens, T* out) {
  std::vector<int32_t> leaf(tokens), order(tokens);
  find_leaves(f, x, tokens, leaf.data());
  if (tokens * 4 >= f.count() && tokens > 1) {
    sort_by_node(leaf.data(), 1, tokens, 0, f.count(), order.data());
  } else {
    std::iota(order.begin(), order.end(), 0);
  }
  std::vector<Accumulator<T>> pre_activation(f.size), activation(f.size + 1);
  std::vector<const T*> rows(f.size + 1);
  for (int64_t t : order) {
    const int64_t first = leaf[t] * f.size;
    for (int64_t i = 0; i < f.size; i++) {
      pre_activation[i] = dot(x + t * f.hidden, f.weight_in + (first + i) * f.hidden, f.hidden) +
                          static_cast<Accumulator<T>>(f.bias_in[first + i]);
      rows[i] = f.weight_out + (first + i) * f.hidden;
    }
    gelu(pre_activation.data(), f.size, activation.data());
    activation[f.size] = 1;
    rows[f.size] = f.bias_out + leaf[t] * f.hidden;
    weighted_sum(rows.data(), activation.data(), f.size + 1, f.hidden, out + t * f.hidden);
  }
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

Tensor leaves_cpu(const Tensor& x_, const Tensor& node_weight_, const Tensor& node_bias_, const Tensor& weight_in_,
                  const Tensor& bias_in_, const Tensor& weight_out_, const Tensor& bias_out_) {
  check_leaves(x_, node_weight_, node_bias_, weight_in_, bias_in_, weight_out_, bias_out_);
  const Tensor x = x_.contiguous(), node_weight = node_weight_.contiguous(), node_bias = node_bias_.contiguous();
  const Tensor weight_in = weight_in_.contiguous(), bias_in = bias_in_.contiguous();
  const Tensor weight_out = weight_out_.contiguous(), bias_out = bias_out_.contiguous();
  Tensor out = empty(x.sizes(), x.options());
  with_dtype(x, "x", [&](auto t) {
    using T = decltype(t);
    const int64_t depth = std::bit_width(uint64_t(weight_in.size(0))) - 1, hidden = weight_in.size(2);
    const Leaves<T> f = {depth, weight_in.size(1), hidden, node_weight.const_data_ptr<T>(),
                         node_bias.const_data_ptr<T>(), weight_in.const_data_ptr<T>(), bias_in.const_data_ptr<T>(),
                         weight_out.const_data_ptr<T>(), bias_out.const_data_ptr<T>()};
    const T* x_data = x.const_data_ptr<T>();
    T* out_data = out.mutable_data_ptr<T>();
    // waking a thread pays from about ten microseconds of work on
    at::parallel_for(0, x.numel() / hidden, 1 + (1 << 18) / ((depth + f.size) * hidden),
                     [&](int64_t begin, int64_t end) {
      evaluate_leaves(f, x_data + begin * hidden, end - begin, out_data + begin * hidden);
    });
  });
  return out;
}

}  // namespace

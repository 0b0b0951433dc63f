// The operators of the trees: they check tensors and call what trees.h computes.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>

#include <optional>
#include <tuple>

#include "tensors.h"
#include "trees.h"

namespace {

int64_t levels_of(const Tensor& weight_in) { return std::bit_width(uint64_t(weight_in.size(1))); }

at::ScalarType accumulator_dtype(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

void check_arguments(const Tensor& x, const Tensor& weight_in, const std::optional<Tensor>& bias_in,
                     const Tensor& weight_out) {
  TORCH_CHECK_VALUE(weight_in.dim() == 3 && weight_in.numel() > 0, "weight_in has shape ", weight_in.sizes(),
                    "; it should be (trees, nodes, hidden), each at least 1");
  const int64_t nodes = weight_in.size(1);
  TORCH_CHECK_VALUE((nodes & (nodes + 1)) == 0 && nodes < int64_t(1) << 31, "weight_in has ", nodes,
                    " nodes per tree; a full tree has 2^(depth+1) - 1 nodes, with a depth of at most 30");
  TORCH_CHECK_VALUE(x.dim() >= 1 && x.size(-1) == weight_in.size(2), "x has shape ", x.sizes(),
                    "; it should be (..., ", weight_in.size(2), "), as wide as weight_in");
  TORCH_CHECK_VALUE(x.numel() / weight_in.size(2) < int64_t(1) << 31, "x has ", x.numel() / weight_in.size(2),
                    " tokens; it should have fewer than 2^31");
  TORCH_CHECK_VALUE(weight_out.sizes() == weight_in.sizes(), "weight_out has shape ", weight_out.sizes(),
                    "; it should have the shape of weight_in, ", weight_in.sizes());
  auto check_like_x = [&](const Tensor& tensor, const char* name) {
    TORCH_CHECK_TYPE(tensor.scalar_type() == x.scalar_type(), name, " has dtype ", tensor.scalar_type(),
                     "; it should have the dtype of x, ", x.scalar_type());
    TORCH_CHECK_VALUE(tensor.is_cpu(), name, " is on device ", tensor.device(), "; it should be on cpu");
  };
  check_like_x(x, "x");
  check_like_x(weight_in, "weight_in");
  check_like_x(weight_out, "weight_out");
  if (bias_in) {
    check_like_x(*bias_in, "bias_in");
    TORCH_CHECK_VALUE(bias_in->dim() == 2 && bias_in->size(0) == weight_in.size(0) && bias_in->size(1) == nodes,
                      "bias_in has shape ", bias_in->sizes(), "; it should be (trees, nodes)");
  }
}

// Calls body(trees, rows, first, count) in parallel for ranges of tokens; `rows` are the rows of x from `first` on.
template <class Body>
void for_tokens(const Tensor& x_, const Tensor& weight_in_, const std::optional<Tensor>& bias_in_,
                const Tensor& weight_out_, const Body& body) {
  const Tensor x = x_.contiguous(), weight_in = weight_in_.contiguous(), weight_out = weight_out_.contiguous();
  const Tensor bias_in = bias_in_ ? bias_in_->contiguous() : Tensor();
  with_dtype(x, "x", [&](auto t) {
    using T = decltype(t);
    const T* bias_data = bias_in_ ? bias_in.const_data_ptr<T>() : nullptr;
    const T *weight_in_data = weight_in.const_data_ptr<T>(), *weight_out_data = weight_out.const_data_ptr<T>();
    const int64_t trees = weight_in.size(0), nodes = weight_in.size(1), hidden = weight_in.size(2);
    const Trees<T> f = {trees, nodes, levels_of(weight_in), hidden, weight_in_data, bias_data, weight_out_data};
    const T* x_data = x.const_data_ptr<T>();
    // waking a thread pays from about ten microseconds of work on
    at::parallel_for(0, x.numel() / hidden, 1 + (1 << 18) / (f.path() * hidden),
                     [&](int64_t begin, int64_t end) { body(f, x_data + begin * hidden, begin, end - begin); });
  });
}

Tensor fff_cpu(const Tensor& x, const Tensor& weight_in, const std::optional<Tensor>& bias_in,
               const Tensor& weight_out) {
  check_arguments(x, weight_in, bias_in, weight_out);
  Tensor out = empty(x.sizes(), x.options());
  for_tokens(x, weight_in, bias_in, weight_out,
             [&]<class T>(const Trees<T>& f, const T* rows, int64_t first, int64_t count) {
    std::vector<int32_t> leaf(count * f.trees);
    std::vector<Accumulator<T>> pre_activation(count * f.path());
    forward(f, rows, count, leaf.data(), pre_activation.data(), out.mutable_data_ptr<T>() + first * f.hidden);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> fff_with_path_cpu(const Tensor& x, const Tensor& weight_in,
                                                     const std::optional<Tensor>& bias_in, const Tensor& weight_out) {
  check_arguments(x, weight_in, bias_in, weight_out);
  const int64_t tokens = x.numel() / x.size(-1), trees = weight_in.size(0);
  Tensor out = empty(x.sizes(), x.options());
  Tensor leaf = empty({tokens, trees}, x.options().dtype(at::kInt));
  Tensor pre_activation = empty({tokens, trees, levels_of(weight_in)}, x.options().dtype(accumulator_dtype(x)));
  for_tokens(x, weight_in, bias_in, weight_out,
             [&]<class T>(const Trees<T>& f, const T* rows, int64_t first, int64_t count) {
    forward(f, rows, count, leaf.mutable_data_ptr<int32_t>() + first * trees,
            pre_activation.mutable_data_ptr<Accumulator<T>>() + first * f.path(),
            out.mutable_data_ptr<T>() + first * f.hidden);
  });
  return {out, leaf, pre_activation};
}

Tensor route_cpu(const Tensor& x, const Tensor& weight_in, const std::optional<Tensor>& bias_in) {
  check_arguments(x, weight_in, bias_in, weight_in);
  const int64_t tokens = x.numel() / x.size(-1), trees = weight_in.size(0), levels = levels_of(weight_in);
  Tensor path = empty({tokens, trees, levels}, x.options().dtype(at::kLong));
  for_tokens(x, weight_in, bias_in, weight_in,
             [&]<class T>(const Trees<T>& f, const T* rows, int64_t first, int64_t count) {
    std::vector<int32_t> leaf(count * trees);
    std::vector<Accumulator<T>> pre_activation(count * f.path());
    walk(f, rows, count, leaf.data(), pre_activation.data());
    int64_t* to = path.mutable_data_ptr<int64_t>() + first * f.path();
    for (int64_t node : leaf) {
      for (int64_t level = 0; level < levels; level++) *to++ = ancestor(node, level, levels);
    }
  });
  return path;
}

// The two backward operators get what the forward pass computed. Only its shape is checked.
void check_path(const Tensor& leaf, const Tensor& by_neuron, const Tensor& x, int64_t trees, int64_t levels) {
  TORCH_CHECK_VALUE(leaf.is_cpu() && by_neuron.is_cpu() && x.is_cpu(), "all tensors should be on cpu");
  TORCH_CHECK_VALUE(leaf.dim() == 2 && leaf.size(0) * x.size(-1) == x.numel() && leaf.size(1) == trees &&
                        by_neuron.dim() == 3 && by_neuron.sizes().slice(0, 2) == leaf.sizes() &&
                        by_neuron.size(2) == levels && levels < 32,
                    "leaf has shape ", leaf.sizes(), " and the values of its neurons ", by_neuron.sizes(),
                    "; they should be (tokens, trees) and (tokens, trees, levels)");
}

std::tuple<Tensor, Tensor, Tensor> backward_tokens_cpu(const Tensor& grad, const Tensor& weight_in,
                                                       const Tensor& weight_out, const Tensor& leaf_,
                                                       const Tensor& pre_activation_) {
  check_arguments(grad, weight_in, std::nullopt, weight_out);
  check_path(leaf_, pre_activation_, grad, weight_in.size(0), levels_of(weight_in));
  const Tensor leaf = leaf_.contiguous(), pre_activation = pre_activation_.contiguous();
  Tensor grad_x = empty(grad.sizes(), grad.options());
  Tensor grad_pre_activation = empty(pre_activation.sizes(), pre_activation.options());
  Tensor activation = empty(pre_activation.sizes(), pre_activation.options());
  for_tokens(grad, weight_in, std::nullopt, weight_out,
             [&]<class T>(const Trees<T>& f, const T* rows, int64_t first, int64_t count) {
    using A = Accumulator<T>;
    const int64_t neuron = first * f.path();
    backward_tokens(f, rows, count, leaf.const_data_ptr<int32_t>() + first * f.trees,
                    pre_activation.const_data_ptr<A>() + neuron, grad_x.mutable_data_ptr<T>() + first * f.hidden,
                    grad_pre_activation.mutable_data_ptr<A>() + neuron, activation.mutable_data_ptr<A>() + neuron);
  });
  return {grad_x, grad_pre_activation, activation};
}

std::tuple<Tensor, Tensor, Tensor> backward_weights_cpu(const Tensor& grad_, const Tensor& x_, const Tensor& leaf_,
                                                        const Tensor& grad_pre_activation_,
                                                        const Tensor& activation_) {
  check_path(leaf_, grad_pre_activation_, x_, leaf_.size(-1), activation_.size(-1));
  check_path(leaf_, activation_, grad_, leaf_.size(-1), activation_.size(-1));
  TORCH_CHECK_VALUE(grad_.sizes() == x_.sizes(), "grad has shape ", grad_.sizes(), "; it should be that of x, ",
                    x_.sizes());
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

// Where gradients are needed, calls fff_with_path, whose backward formula is registered in registration.py.
Tensor fff_autograd(const Tensor& x, const Tensor& weight_in, const std::optional<Tensor>& bias_in,
                    const Tensor& weight_out) {
  const Tensor none;
  bool needed = false;
  for (const Tensor* tensor : {&x, &weight_in, bias_in ? &*bias_in : &none, &weight_out}) {
    if (!tensor->defined()) continue;
    needed |= tensor->requires_grad();
    TORCH_CHECK_NOT_IMPLEMENTED(
        !tensor->_fw_grad(0).defined(),
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

// Cross-entropy: the losses of rows of logits, and the gradient of the logits.
//
// A row is read twice in the forward and once in the backward pass, in the dtype that it has, and nothing of its size
// is kept but the logits themselves.
#pragma once

#include <ATen/Parallel.h>

#include <limits>

#include "tensors.h"

namespace {

constexpr int64_t IGNORED = -100;  // the label of rows without loss, as in PyTorch

// log(sum(exp(row))); NaN if a number is NaN or infinite, as in PyTorch, or if all are -infinity.
template <class T>
Accumulator<T> log_sum_exp(const T* row, int64_t size) {
  using A = Accumulator<T>;
  constexpr A INFINITE = std::numeric_limits<A>::infinity();
  const int64_t whole = size - size % STEP<T>;
  Pair<A> most{Vec<A>{} - INFINITE, Vec<A>{} - INFINITE};
  auto is_nan = most.a != most.a;
  for (int64_t i = 0; i < whole; i += STEP<T>) {
    auto v = load(row + i);
    most.a = v.a > most.a ? v.a : most.a;
    most.b = v.b > most.b ? v.b : most.b;
    is_nan |= (v.a != v.a) | (v.b != v.b);
  }
  A largest = -INFINITE;
  bool finite = true;
  for (size_t lane = 0; lane < sizeof(Vec<A>) / sizeof(A); lane++) {
    largest = std::max({largest, most.a[lane], most.b[lane]});
    finite &= !is_nan[lane];
  }
  for (int64_t i = whole; i < size; i++) {
    const A v = static_cast<A>(row[i]);
    largest = std::max(largest, v);
    finite &= v == v;
  }
  if (!finite || !(std::abs(largest) < INFINITE)) return std::numeric_limits<A>::quiet_NaN();

  Pair<A> sums{};
  for (int64_t i = 0; i < whole; i += STEP<T>) {
    auto v = load(row + i);
    sums.a += exp_negative(v.a - largest);
    sums.b += exp_negative(v.b - largest);
  }
  A sum = sum_lanes<A>(sums.a + sums.b);
  for (int64_t i = whole; i < size; i++) sum += std::exp(static_cast<A>(row[i]) - largest);
  return largest + std::log(sum);
}

// out = (softmax(row) - onehot(label)) * weight
template <class T>
void cross_entropy_gradient(const T* row, int64_t size, int64_t label, Accumulator<T> log_sum, Accumulator<T> weight,
                            T* out) {
  using A = Accumulator<T>;
  if (label == IGNORED) return void(std::fill(out, out + size, static_cast<T>(0)));
  if (!(log_sum == log_sum)) return void(std::fill(out, out + size, static_cast<T>(log_sum)));
  int64_t i = 0;
  for (; i + STEP<T> <= size; i += STEP<T>) {
    auto v = load(row + i);
    store(out + i, Pair<A>{exp_negative(v.a - log_sum) * weight, exp_negative(v.b - log_sum) * weight});
  }
  for (; i < size; i++) out[i] = static_cast<T>(std::exp(static_cast<A>(row[i]) - log_sum) * weight);
  out[label] = static_cast<T>((std::exp(static_cast<A>(row[label]) - log_sum) - 1) * weight);
}

void check_logits(const Tensor& logits, const Tensor& labels) {
  TORCH_CHECK_VALUE(logits.dim() == 2 && logits.size(1) > 0, "logits has shape ", logits.sizes(),
                    "; it should be (rows, classes), at least one class");
  TORCH_CHECK_VALUE(labels.dim() == 1 && labels.size(0) == logits.size(0), "labels has shape ", labels.sizes(),
                    "; it should be (", logits.size(0), ",), one for each row of logits");
  TORCH_CHECK_TYPE(labels.scalar_type() == at::kLong, "labels has dtype ", labels.scalar_type(),
                   "; it should be int64");
  TORCH_CHECK_VALUE(logits.is_cpu() && labels.is_cpu(), "logits and labels should be on cpu");
  const Tensor contiguous = labels.contiguous();  // that each is a class: the gradient is written there
  const int64_t *label = contiguous.const_data_ptr<int64_t>(), classes = logits.size(1);
  for (int64_t row = 0; row < labels.size(0); row++) {
    TORCH_CHECK_INDEX(label[row] == IGNORED || (label[row] >= 0 && label[row] < classes), "labels has ", label[row],
                      "; labels should be from 0 to ", classes - 1, ", or ", IGNORED, " to ignore a row");
  }
}

// The loss of each row, 0 where it is ignored, and log(sum(exp(row))), both (rows), float or, of double, double.
std::tuple<Tensor, Tensor> cross_entropy_cpu(const Tensor& logits_, const Tensor& labels_) {
  check_logits(logits_, labels_);
  const Tensor logits = logits_.contiguous(), labels = labels_.contiguous();
  const int64_t rows = logits.size(0), classes = logits.size(1);
  const int64_t* label = labels.const_data_ptr<int64_t>();
  Tensor losses, log_sums;
  with_dtype(logits, "logits", [&](auto t) {
    using T = decltype(t);
    using A = Accumulator<T>;
    losses = at::empty({rows}, logits.options().dtype(c10::CppTypeToScalarType<A>::value));
    log_sums = at::empty({rows}, losses.options());
    const T* data = logits.template const_data_ptr<T>();
    A *loss = losses.template mutable_data_ptr<A>(), *log_sum = log_sums.template mutable_data_ptr<A>();
    at::parallel_for(0, rows, 1 + (1 << 14) / classes, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row++) {
        log_sum[row] = label[row] == IGNORED ? 0 : log_sum_exp(data + row * classes, classes);
        loss[row] = label[row] == IGNORED ? 0 : log_sum[row] - static_cast<A>(data[row * classes + label[row]]);
      }
    });
  });
  return {losses, log_sums};
}

// The gradient of the logits, from that of the losses, (rows), in the dtype of the logits.
Tensor cross_entropy_backward_cpu(const Tensor& grad_, const Tensor& logits_, const Tensor& labels_,
                                  const Tensor& log_sums_) {
  check_logits(logits_, labels_);
  const Tensor logits = logits_.contiguous(), labels = labels_.contiguous(), log_sums = log_sums_.contiguous();
  const Tensor grad = grad_.contiguous();
  const int64_t rows = logits.size(0), classes = logits.size(1);
  for (const Tensor& values : {grad, log_sums}) {
    TORCH_CHECK_VALUE(values.is_cpu() && values.dim() == 1 && values.size(0) == rows && values.dtype() == grad.dtype(),
                      "grad and log_sums should have shape (", rows, ",) and one dtype");
  }
  Tensor out = empty(logits.sizes(), logits.options());
  const int64_t* label = labels.const_data_ptr<int64_t>();
  with_dtype(logits, "logits", [&](auto t) {
    using T = decltype(t);
    using A = Accumulator<T>;
    const T* data = logits.template const_data_ptr<T>();
    T* out_data = out.template mutable_data_ptr<T>();
    const A *weight = grad.template const_data_ptr<A>(), *log_sum = log_sums.template const_data_ptr<A>();
    at::parallel_for(0, rows, 1 + (1 << 14) / classes, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row++) {
        cross_entropy_gradient(data + row * classes, classes, label[row], log_sum[row], weight[row],
                               out_data + row * classes);
      }
    });
  });
  return out;
}

}  // namespace

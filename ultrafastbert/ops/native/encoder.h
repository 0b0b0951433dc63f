// The operators of the other parts of an encoder, for inference.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/zeros.h>

#include <optional>

#include "attention.h"
#include "rows.h"
#include "tensors.h"

namespace {

// Self-attention within each sequence. qkv: (tokens, 3 * hidden), the query, key and value of each token, each of them
// (heads, head_dim). offsets: (sequences + 1), the first token of each sequence, followed by the number of tokens.
Tensor attention_cpu(const Tensor& qkv_, const Tensor& offsets_, int64_t heads) {
  TORCH_CHECK_VALUE(heads > 0 && qkv_.dim() == 2 && qkv_.size(1) > 0 && qkv_.size(1) % (3 * heads) == 0,
                    "qkv has shape ", qkv_.sizes(), "; it should be (tokens, 3 * heads * head_dim), heads is ", heads);
  TORCH_CHECK_TYPE(offsets_.scalar_type() == at::kLong, "offsets has dtype ", offsets_.scalar_type(),
                   "; it should be int64");
  TORCH_CHECK_VALUE(qkv_.is_cpu() && offsets_.is_cpu(), "qkv and offsets should be on cpu");
  const Tensor qkv = qkv_.contiguous(), offsets = offsets_.contiguous();
  const int64_t tokens = qkv.size(0), hidden = qkv.size(1) / 3, head_dim = hidden / heads;
  const int64_t* begin = offsets.const_data_ptr<int64_t>();
  const int64_t sequences = offsets.numel() - 1;
  TORCH_CHECK_VALUE(offsets.dim() == 1 && sequences >= 0 && begin[0] == 0 && begin[sequences] == tokens &&
                        std::is_sorted(begin, begin + sequences + 1),
                    "offsets should have one dimension and rise from 0 to the number of tokens, ", tokens);

  constexpr int64_t QUERIES = 128;
  std::vector<std::pair<int64_t, int64_t>> pieces;  // sequence, first query: threads may share a long sequence
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
    // with heads outermost, threads that get equally many heads get equal work, however long the sequences are
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

// Applies rotary positions (arXiv 2104.09864) to queries and keys, in place. qkv: (tokens, 3 * hidden), as for
// attention. cosine, sine: float (tokens, head_dim / 2), of the angles by which the pairs (i, head_dim / 2 + i) of a
// head turn.
void rotate_cpu(Tensor& qkv, const Tensor& cosine_, const Tensor& sine_, int64_t heads) {
  TORCH_CHECK_VALUE(
      heads > 0 && qkv.dim() == 2 && qkv.is_contiguous() && qkv.size(1) > 0 && qkv.size(1) % (6 * heads) == 0,
      "qkv has shape ", qkv.sizes(), "; it should be contiguous, (tokens, 3 * heads * head_dim), head_dim",
      " even; heads is ", heads);
  const int64_t tokens = qkv.size(0), width = qkv.size(1), half = width / (6 * heads);
  const Tensor cosine = cosine_.contiguous(), sine = sine_.contiguous();
  for (const Tensor& table : {cosine, sine}) {
    TORCH_CHECK_VALUE(table.is_cpu() && table.scalar_type() == at::kFloat && table.dim() == 2 &&
                          table.size(0) == tokens && table.size(1) == half,
                      "cosine and sine should be float32 (tokens, head_dim / 2), (", tokens, ", ", half, ")");
  }
  const float *cosine_data = cosine.const_data_ptr<float>(), *sine_data = sine.const_data_ptr<float>();
  with_inference_dtype(qkv, "qkv", [&](auto t) {
    using T = decltype(t);
    T* data = qkv.template mutable_data_ptr<T>();
    at::parallel_for(0, tokens, 1 + (1 << 14) / width, [&](int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; token++) {
        for (int64_t head = 0; head < 2 * heads; head++) {  // the queries' heads, then the keys'
          rotate_row(data + token * width + head * 2 * half, half, cosine_data + token * half,
                     sine_data + token * half);
        }
      }
    });
  });
}

// A linear layer, multiplied by oneDNN in 8 bits. x: (..., in). weight: int8, packed by onednn::qlinear_prepack.
// weight_scale: float (out). Each row of x has a separate scale, so that a token does not depend on the others.
Tensor linear_int8_cpu(const Tensor& x_, const Tensor& weight, const Tensor& weight_scale, at::ScalarType dtype) {
  using Schema =
      Tensor(Tensor, double, int64_t, Tensor, Tensor, Tensor, std::optional<Tensor>, double, int64_t,
             std::optional<at::ScalarType>, std::string_view, c10::List<std::optional<at::Scalar>>, std::string_view);
  static const auto multiply =
      c10::Dispatcher::singleton().findSchemaOrThrow("onednn::qlinear_pointwise", "").typed<Schema>();
  constexpr int64_t ZERO = 128;  // zero point: some processors multiply unsigned by signed numbers only
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

// Adds the update to the stream in place and returns the layer normalization of the stream in `dtype`, which is also
// the update's dtype. stream: float (tokens, hidden). weight, bias: float (hidden).
Tensor add_norm_cpu(Tensor& stream, const std::optional<Tensor>& update_, const Tensor& weight_, const Tensor& bias_,
                    double eps, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(stream.dim() == 2 && stream.is_contiguous() && stream.scalar_type() == at::kFloat,
                    "stream should be contiguous, with shape (tokens, hidden) and dtype float32");
  const int64_t tokens = stream.size(0), hidden = stream.size(1);
  const Tensor weight = weight_.contiguous(), bias = bias_.contiguous();
  TORCH_CHECK_VALUE(weight.numel() == hidden && bias.numel() == hidden, "weight and bias should be (hidden)");
  Tensor update, out = empty(stream.sizes(), stream.options().dtype(dtype));
  if (update_) {
    update = update_->contiguous();
    TORCH_CHECK_VALUE(update.sizes() == stream.sizes() && update.scalar_type() == dtype, "update has shape ",
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

}  // namespace

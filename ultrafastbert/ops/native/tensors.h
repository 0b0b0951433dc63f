// What the operators share: dispatch on the dtype of a tensor, and the allocation of large tensors.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "vectors.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {

using at::Tensor;

// Calls body(T()) for the dtype of the tensor.
template <class Body>
auto with_dtype(const Tensor& tensor, const char* name, const Body& body) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return body(float());
    case at::kBFloat16: return body(BFloat16());
    case at::kHalf: return body(Half());
    case at::kDouble: return body(double());
    default:
      TORCH_CHECK_TYPE(false, name, " has dtype ", tensor.scalar_type(),
                       "; for backend 'native' it should be float32, bfloat16, float16 or float64");
  }
}

// The same without double, which is not supported in the layers for inference.
template <class Body>
auto with_inference_dtype(const Tensor& tensor, const char* name, const Body& body) {
  TORCH_CHECK_TYPE(tensor.scalar_type() != at::kDouble, name, " has dtype ", tensor.scalar_type(),
                   "; it should be float32, bfloat16 or float16");
  return with_dtype(tensor, name, [&](auto t) {
    if constexpr (!std::is_same_v<decltype(t), double>) body(t);
  });
}

// Getting the pages of a large tensor from the system takes longer than filling them: ask for huge pages.
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

}  // namespace

// Schemas of the operators and their registration with PyTorch: those of trees (fff.h, leaves.h), of the other parts
// of an encoder (encoder.h) and of the loss (loss.h). registration.py registers shapes for `torch.compile` and the
// formulas of the gradients.

#include <torch/library.h>

#include "encoder.h"
#include "fff.h"
#include "leaves.h"
#include "loss.h"

TORCH_LIBRARY(ultrafastbert, library) {
  library.def("fff(Tensor x, Tensor weight_in, Tensor? bias_in, Tensor weight_out) -> Tensor");
  library.def(
      "fff_with_path(Tensor x, Tensor weight_in, Tensor? bias_in, Tensor weight_out) -> (Tensor, Tensor, Tensor)");
  library.def("route(Tensor x, Tensor weight_in, Tensor? bias_in) -> Tensor");
  library.def(
      "backward_tokens(Tensor grad, Tensor weight_in, Tensor weight_out, Tensor leaf, Tensor pre_activation)"
      " -> (Tensor, Tensor, Tensor)");
  library.def(
      "backward_weights(Tensor grad, Tensor x, Tensor leaf, Tensor grad_pre_activation, Tensor activation)"
      " -> (Tensor, Tensor, Tensor)");
  library.def(
      "leaves(Tensor x, Tensor node_weight, Tensor node_bias, Tensor weight_in, Tensor bias_in, Tensor weight_out,"
      " Tensor bias_out) -> (Tensor, Tensor)");
  library.def(
      "leaves_with_path(Tensor x, Tensor node_weight, Tensor node_bias, Tensor weight_in, Tensor bias_in,"
      " Tensor weight_out, Tensor bias_out) -> (Tensor, Tensor, Tensor)");
  library.def(
      "leaves_backward_tokens(Tensor grad, Tensor weight_in, Tensor weight_out, Tensor leaf, Tensor pre_activation)"
      " -> (Tensor, Tensor, Tensor)");
  library.def(
      "leaves_backward_weights(Tensor grad, Tensor x, Tensor leaf, Tensor grad_pre_activation, Tensor activation,"
      " int leaves) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def("cross_entropy(Tensor logits, Tensor labels) -> (Tensor, Tensor)");
  library.def("cross_entropy_backward(Tensor grad, Tensor logits, Tensor labels, Tensor log_sums) -> Tensor");
  library.def("attention(Tensor qkv, Tensor offsets, int heads) -> Tensor");
  library.def("rotate_(Tensor(a!) qkv, Tensor cosine, Tensor sine, int heads) -> ()");
  library.def("linear_int8(Tensor x, Tensor weight, Tensor weight_scale, ScalarType dtype) -> Tensor");
  library.def(
      "add_norm(Tensor(a!) stream, Tensor? update, Tensor weight, Tensor bias, float eps, ScalarType dtype)"
      " -> Tensor");
}

TORCH_LIBRARY_IMPL(ultrafastbert, CPU, library) {
  library.impl("fff", fff_cpu);
  library.impl("fff_with_path", fff_with_path_cpu);
  library.impl("route", route_cpu);
  library.impl("backward_tokens", backward_tokens_cpu);
  library.impl("backward_weights", backward_weights_cpu);
  library.impl("leaves", leaves_cpu);
  library.impl("leaves_with_path", leaves_with_path_cpu);
  library.impl("leaves_backward_tokens", leaves_backward_tokens_cpu);
  library.impl("leaves_backward_weights", leaves_backward_weights_cpu);
  library.impl("cross_entropy", cross_entropy_cpu);
  library.impl("cross_entropy_backward", cross_entropy_backward_cpu);
  library.impl("attention", attention_cpu);
  library.impl("rotate_", rotate_cpu);
  library.impl("linear_int8", linear_int8_cpu);
  library.impl("add_norm", add_norm_cpu);
}

TORCH_LIBRARY_IMPL(ultrafastbert, MkldnnCPU, library) { library.impl("linear_int8", linear_int8_cpu); }

TORCH_LIBRARY_IMPL(ultrafastbert, Autograd, library) { library.impl("fff", fff_autograd); }

// bias_act on CUDA: checks, allocation, stream. The kernels are in kernels/bias_act.cu.
#include <optional>
#include <tuple>
#include <vector>

#include "check.h"
#include "cuda_torch.h"
#include "kernels/bias_act.h"

namespace mixsyn_fast {
namespace {

using torch::stable::empty_like;
using MaybeTensor = std::optional<Tensor>;

// Sizes, type and layout of an input (B, C, H, W).
kernels::BiasAct make_problem(const char* op, const char* name, const Tensor& x) {
  MIXSYN_CHECK(x.dim() == 4, op, name, "shape (B, C, H, W)", "shape " + shape_string(x));
  kernels::BiasAct problem;
  problem.dtype = kernel_dtype(op, name, x);
  problem.batch = x.size(0), problem.channels = x.size(1), problem.pixels = x.size(2) * x.size(3);
  MIXSYN_CHECK(
      problem.batch * problem.pixels <= kernels::kMaxBiasActSize && problem.channels <= kernels::kMaxBiasActSize, op,
      name, "at most 2^30 pixels in a batch and 2^30 channels", shape_string(x));
  const Layout4d layout = layout_of(x);
  MIXSYN_CHECK(layout != Layout4d::kOther, op, name, "contiguous or channels_last memory", "other strides");
  problem.channels_last = layout == Layout4d::kChannelsLast;
  return problem;
}

void check_like(const char* op, const char* name, const Tensor& t, const Tensor& x) {
  check_shape(op, name, t, {x.size(0), x.size(1), x.size(2), x.size(3)});
  check_dtype(op, name, t, x.scalar_type());
  check_same_device(op, name, t, x);
  MIXSYN_CHECK(x.numel() == 0 || layout_of(t) == layout_of(x), op, name, "the memory layout of the first tensor",
               "another layout");
}

void check_small(const char* op, const char* name, const MaybeTensor& t, const std::vector<int64_t>& shape,
                 ScalarType dtype, const Tensor& x) {
  if (!t) return;
  check_shape(op, name, *t, shape);
  check_dtype(op, name, *t, dtype);
  check_same_device(op, name, *t, x);
  MIXSYN_CHECK(t->is_contiguous(), op, name, "contiguous memory", "other strides");
}

Tensor bias_act_cuda(const Tensor& x, const MaybeTensor& bias, const MaybeTensor& scale, const MaybeTensor& noise,
                     const MaybeTensor& strength, double slope, double gain) {
  constexpr const char* kName = "bias_act";
  kernels::BiasAct op = make_problem(kName, "x", x);
  const ScalarType acc = acc_scalar_type(op.dtype);
  check_small(kName, "bias", bias, {op.channels}, acc, x);
  check_small(kName, "scale", scale, {op.batch, op.channels}, acc, x);
  MIXSYN_CHECK(noise.has_value() == strength.has_value(), kName, "noise and strength", "both or neither", "one");
  check_small(kName, "noise", noise, {-1, 1, x.size(2), x.size(3)}, x.scalar_type(), x);
  MIXSYN_CHECK(!noise || noise->size(0) == 1 || noise->size(0) == op.batch, kName, "noise", "1 or B rows",
               noise->size(0));
  check_small(kName, "strength", strength, {1}, acc, x);
  op.x = x.const_data_ptr(), op.bias = data_or_null(bias), op.scale = data_or_null(scale);
  op.noise = data_or_null(noise), op.strength = data_or_null(strength);
  op.noise_per_image = noise && noise->size(0) > 1;
  op.high = gain, op.low = gain * slope;
  const CudaScope scope(x);
  const Tensor y = empty_like(x);
  check_cuda(kernels::bias_act_forward(op, y.mutable_data_ptr(), scope.stream()), kName);
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> bias_act_backward_cuda(const Tensor& grad, const Tensor& y,
                                                                  const MaybeTensor& x, const MaybeTensor& scale,
                                                                  double slope, double gain, bool per_pixel) {
  constexpr const char* kName = "bias_act_backward";
  kernels::BiasAct op = make_problem(kName, "grad", grad);
  const ScalarType acc = acc_scalar_type(op.dtype);
  check_like(kName, "y", y, grad);
  if (x) check_like(kName, "x", *x, grad);
  check_small(kName, "scale", scale, {op.batch, op.channels}, acc, grad);
  op.x = data_or_null(x), op.scale = data_or_null(scale);
  op.high = gain, op.low = gain * slope;
  const CudaScope scope(grad);
  using Shape = std::vector<int64_t>;
  const Shape shapes[] = {{op.channels},
                          x ? Shape{op.batch, op.channels} : Shape{0},
                          per_pixel ? Shape{op.batch, 1, grad.size(2), grad.size(3)} : Shape{0}};
  const Tensor grad_x = empty_like(y);
  if (grad.numel() == 0)  // a sum over nothing is zero
    return std::make_tuple(grad_x, zeros_of(grad, shapes[0], acc), zeros_of(grad, shapes[1], acc),
                           zeros_of(grad, shapes[2], acc));
  const Tensor grad_bias = empty_of(grad, shapes[0], acc), grad_scale = empty_of(grad, shapes[1], acc);
  const Tensor sums = empty_of(grad, shapes[2], acc);
  const Tensor workspace = scratch(grad, kernels::bias_act_backward_workspace(op, per_pixel));
  kernels::BiasActGrad out;
  out.grad = grad.const_data_ptr(), out.y = y.const_data_ptr(), out.grad_x = grad_x.mutable_data_ptr();
  out.grad_bias = grad_bias.mutable_data_ptr();
  if (x) out.grad_scale = grad_scale.mutable_data_ptr();
  if (per_pixel) out.sums = sums.mutable_data_ptr();
  check_cuda(kernels::bias_act_backward(op, out, workspace.mutable_data_ptr(), scope.stream()), kName);
  return std::make_tuple(grad_x, grad_bias, grad_scale, sums);
}

}  // namespace
}  // namespace mixsyn_fast

MIXSYN_CUDA_LIBRARY(m) {
  m.impl("bias_act", TORCH_BOX(&mixsyn_fast::bias_act_cuda));
  m.impl("bias_act_backward", TORCH_BOX(&mixsyn_fast::bias_act_backward_cuda));
}

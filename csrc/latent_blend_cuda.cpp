// latent_blend on CUDA: checks, allocation, stream. The kernels are in kernels/latent_blend.cu.
#include <optional>
#include <tuple>
#include <vector>

#include "check.h"
#include "cuda_torch.h"
#include "kernels/latent_blend.h"

namespace mixsyn_fast {
namespace {

using MaybeTensor = std::optional<Tensor>;

void check_like(const char* name, const char* what, const Tensor& t, const Tensor& a,
                const std::vector<int64_t>& shape) {
  check_shape(name, what, t, shape);
  check_dtype(name, what, t, a.scalar_type());
  check_same_device(name, what, t, a);
  MIXSYN_CHECK(t.is_contiguous(), name, what, "contiguous memory", "other strides");
}

kernels::LatentBlend make_problem(const char* name, const Tensor& a, const Tensor& b, const Tensor& logits,
                                  const std::vector<int64_t>& channels, bool q_on_b) {
  kernels::LatentBlend op;
  MIXSYN_CHECK(a.dim() == 2, name, "a", "shape (B, S)", "shape " + shape_string(a));
  op.dtype = kernel_dtype(name, "a", a);
  op.batch = a.size(0), op.channels = a.size(1);
  MIXSYN_CHECK(op.channels <= kernels::kMaxStyleChannels, name, "a", "at most 2^30 channels", op.channels);
  check_like(name, "a", a, a, {op.batch, op.channels});
  check_like(name, "b", b, a, {op.batch, op.channels});
  const int64_t layers = static_cast<int64_t>(channels.size());
  MIXSYN_CHECK(layers <= kernels::kMaxStyleLayers, name, "channels", "at most 64 layers", layers);
  check_like(name, "logits", logits, a, {op.batch, layers, -1});
  op.depth = logits.size(2);
  MIXSYN_CHECK(op.depth <= kernels::kMaxStyleChannels, name, "logits", "at most 2^30 logits in a layer", op.depth);
  op.layers.count = static_cast<int>(layers);
  int64_t begin = 0;
  for (int64_t l = 0; l < layers; ++l) {
    const int64_t width = channels[static_cast<size_t>(l)];
    MIXSYN_CHECK(width >= 1 && width <= op.depth && op.depth % width == 0, name, "channels",
                 "divisors of the " + std::to_string(op.depth) + " logits of a layer", width);
    op.layers.begin[l] = static_cast<int>(begin);
    op.layers.group[l] = static_cast<int>(op.depth / width);
    begin += width;
    MIXSYN_CHECK(begin <= op.channels, name, "channels", "a sum of " + std::to_string(op.channels), "more");
  }
  MIXSYN_CHECK(begin == op.channels, name, "channels", "a sum of " + std::to_string(op.channels), begin);
  op.layers.begin[layers] = static_cast<int>(begin);
  op.q_on_b = q_on_b;
  op.a = a.const_data_ptr(), op.b = b.const_data_ptr(), op.logits = logits.const_data_ptr();
  return op;
}

std::tuple<Tensor, Tensor> latent_blend_cuda(const Tensor& a, const Tensor& b, const Tensor& logits,
                                             std::vector<int64_t> channels, bool q_on_b) {
  constexpr const char* kName = "latent_blend";
  const kernels::LatentBlend op = make_problem(kName, a, b, logits, channels, q_on_b);
  const CudaScope scope(a);
  const std::vector<int64_t> shape = {op.batch, op.channels};
  const Tensor blended = empty_of(a, shape, a.scalar_type()), q = empty_of(a, shape, a.scalar_type());
  check_cuda(kernels::latent_blend_forward(op, blended.mutable_data_ptr(), q.mutable_data_ptr(), scope.stream()),
             kName);
  return std::make_tuple(blended, q);
}

std::tuple<Tensor, Tensor, Tensor> latent_blend_backward_cuda(const MaybeTensor& grad, const MaybeTensor& grad_q,
                                                              const Tensor& a, const Tensor& b, const Tensor& logits,
                                                              std::vector<int64_t> channels, bool q_on_b) {
  constexpr const char* kName = "latent_blend_backward";
  const kernels::LatentBlend op = make_problem(kName, a, b, logits, channels, q_on_b);
  const std::vector<int64_t> shape = {op.batch, op.channels};
  if (grad) check_like(kName, "grad", *grad, a, shape);
  if (grad_q) check_like(kName, "grad_q", *grad_q, a, shape);
  const CudaScope scope(a);
  const Tensor grad_a = empty_of(a, shape, a.scalar_type()), grad_b = empty_of(a, shape, a.scalar_type());
  // every layer's channels cover its logits, so that all are written
  const Tensor grad_logits = empty_of(a, {op.batch, op.layers.count, op.depth}, a.scalar_type());
  check_cuda(kernels::latent_blend_backward(op, data_or_null(grad), data_or_null(grad_q), grad_a.mutable_data_ptr(),
                                            grad_b.mutable_data_ptr(), grad_logits.mutable_data_ptr(), scope.stream()),
             kName);
  return std::make_tuple(grad_a, grad_b, grad_logits);
}

}  // namespace
}  // namespace mixsyn_fast

MIXSYN_CUDA_LIBRARY(m) {
  m.impl("latent_blend", TORCH_BOX(&mixsyn_fast::latent_blend_cuda));
  m.impl("latent_blend_backward", TORCH_BOX(&mixsyn_fast::latent_blend_backward_cuda));
}

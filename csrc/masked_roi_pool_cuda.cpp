// masked_roi_pool on CUDA: checks, allocation, stream. The kernels are in kernels/masked_roi_pool*.cu.
#include <tuple>
#include <vector>

#include "check.h"
#include "cuda_torch.h"
#include "kernels/masked_roi_pool.h"

namespace mixsyn_fast {
namespace {

constexpr const char* kOp = "masked_roi_pool";
constexpr const char* kBackward = "masked_roi_pool_backward";

void check_labels(const char* op, const Tensor& labels, const Tensor& like, const std::vector<int64_t>& shape) {
  check_shape(op, "labels", labels, shape);
  check_dtype(op, "labels", labels, ScalarType::Int);
  check_same_device(op, "labels", labels, like);
  MIXSYN_CHECK(labels.is_contiguous(), op, "labels", "contiguous memory", "other strides");
}

void check_sizes(const char* op, const kernels::MaskedRoiPool& sizes) {
  MIXSYN_CHECK(sizes.batch * sizes.pixels <= kernels::kMaxPoolPixels, op, "labels", "at most 2^30 pixels",
               sizes.batch * sizes.pixels);
  MIXSYN_CHECK(sizes.channels <= kernels::kMaxPoolChannels, op, "features", "at most 2^20 channels", sizes.channels);
  MIXSYN_CHECK(sizes.regions >= 1 && sizes.regions <= kernels::kMaxPoolRegions, op, "num_regions", "1 to 2^22",
               sizes.regions);
}

std::tuple<Tensor, Tensor, Tensor> masked_roi_pool_cuda(const Tensor& features, const Tensor& labels,
                                                        int64_t num_regions, bool maximum) {
  MIXSYN_CHECK(features.dim() == 4, kOp, "features", "shape (B, C, H, W)", "shape " + shape_string(features));
  kernels::MaskedRoiPool op;
  op.batch = features.size(0), op.channels = features.size(1);
  op.pixels = features.size(2) * features.size(3);
  op.regions = num_regions;
  op.dtype = kernel_dtype(kOp, "features", features);
  const Layout4d layout = layout_of(features);
  MIXSYN_CHECK(layout != Layout4d::kOther, kOp, "features", "contiguous or channels_last memory", "other strides");
  op.channels_last = layout == Layout4d::kChannelsLast;
  check_labels(kOp, labels, features, {op.batch, features.size(2), features.size(3)});
  check_sizes(kOp, op);
  op.features = features.const_data_ptr();
  op.labels = static_cast<const int32_t*>(labels.const_data_ptr());

  const CudaScope scope(features);
  const std::vector<int64_t> none = {0}, rows = {op.batch, op.regions}, cells = {op.batch, op.regions, op.channels};
  const ScalarType acc = acc_scalar_type(op.dtype);
  const Tensor pooled = empty_of(features, cells, features.scalar_type());
  const Tensor position = empty_of(features, maximum ? cells : none, ScalarType::Int);
  const Tensor area = empty_of(features, maximum ? none : rows, acc);
  const kernels::PoolWorkspace bytes =
      maximum ? kernels::masked_roi_pool_max_workspace(op) : kernels::masked_roi_pool_mean_workspace(op);
  const Tensor zeroed = zeros_of(features, {bytes.zeroed}, ScalarType::Byte);
  const Tensor workspace = scratch(features, bytes.scratch);
  check_cuda(
      maximum ? kernels::masked_roi_pool_max(op, pooled.mutable_data_ptr(), mutable_data<int32_t>(position),
                                             zeroed.mutable_data_ptr(), scope.stream())
              : kernels::masked_roi_pool_mean(op, pooled.mutable_data_ptr(), area.mutable_data_ptr(),
                                              zeroed.mutable_data_ptr(), workspace.mutable_data_ptr(), scope.stream()),
      kOp);
  return std::make_tuple(pooled, position, area);
}

Tensor masked_roi_pool_backward_cuda(const Tensor& grad, const Tensor& labels, const Tensor& position,
                                     const Tensor& area, bool maximum, bool channels_last) {
  MIXSYN_CHECK(grad.dim() == 3, kBackward, "grad", "shape (B, K, C)", "shape " + shape_string(grad));
  kernels::MaskedRoiPool op;
  op.batch = grad.size(0), op.regions = grad.size(1), op.channels = grad.size(2);
  op.dtype = kernel_dtype(kBackward, "grad", grad);
  MIXSYN_CHECK(grad.is_contiguous(), kBackward, "grad", "contiguous memory", "other strides");
  check_labels(kBackward, labels, grad, {op.batch, -1, -1});
  op.pixels = labels.size(1) * labels.size(2);
  op.labels = static_cast<const int32_t*>(labels.const_data_ptr());
  op.channels_last = channels_last;
  check_sizes(kBackward, op);
  const Tensor& kept = maximum ? position : area;
  const char* name = maximum ? "position" : "area";
  if (maximum) {
    check_shape(kBackward, name, kept, {op.batch, op.regions, op.channels});
    check_dtype(kBackward, name, kept, ScalarType::Int);
  } else {
    check_shape(kBackward, name, kept, {op.batch, op.regions});
    check_dtype(kBackward, name, kept, acc_scalar_type(op.dtype));
  }
  check_same_device(kBackward, name, kept, grad);
  MIXSYN_CHECK(kept.is_contiguous(), kBackward, name, "contiguous memory", "other strides");

  const CudaScope scope(grad);
  const int64_t h = labels.size(1), w = labels.size(2);
  // a channels_last tensor is a dense (B, H, W, C) one seen with its channels second
  Tensor out = channels_last ? empty_of(grad, {op.batch, h, w, op.channels}, grad.scalar_type())
                             : empty_of(grad, {op.batch, op.channels, h, w}, grad.scalar_type());
  if (channels_last) out = torch::stable::transpose(torch::stable::transpose(out, 1, 3), 2, 3);
  check_cuda(kernels::masked_roi_pool_backward(
                 op, grad.const_data_ptr(), maximum ? static_cast<const int32_t*>(position.const_data_ptr()) : nullptr,
                 maximum ? nullptr : area.const_data_ptr(), out.mutable_data_ptr(), scope.stream()),
             kBackward);
  return out;
}

}  // namespace
}  // namespace mixsyn_fast

MIXSYN_CUDA_LIBRARY(m) {
  m.impl("masked_roi_pool", TORCH_BOX(&mixsyn_fast::masked_roi_pool_cuda));
  m.impl("masked_roi_pool_backward", TORCH_BOX(&mixsyn_fast::masked_roi_pool_backward_cuda));
}

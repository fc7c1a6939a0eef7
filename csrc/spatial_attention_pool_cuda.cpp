// spatial_attention_pool on CUDA: checks, allocation, stream. The kernels are in kernels/spatial_attention_pool.cu.
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "attention_cuda.h"
#include "kernels/spatial_attention_pool.h"

namespace mixsyn_fast {
namespace {

using MaybeTensor = std::optional<Tensor>;
using torch::stable::empty_like;

constexpr int64_t kNeedFeatures = 1, kNeedCondition = 2, kNeedWeightFeatures = 4, kNeedWeightCondition = 8;

// The arguments that forward and backward share: checked, and translated for the launchers.
struct Problem {
  const char* name;
  ScalarType acc;
  int64_t batch, channels, condition_channels, height, width, maps;
  kernels::SpatialAttentionPool op;

  Problem(const char* name, const Tensor& features, const Tensor& condition, const Tensor& weight_features,
          const Tensor& weight_condition, const MaybeTensor& mask)
      : name(name) {
    MIXSYN_CHECK(features.dim() == 4, name, "features", "shape (B, N, H, W)", "shape " + shape_string(features));
    batch = features.size(0), channels = features.size(1), height = features.size(2), width = features.size(3);
    check_shape(name, "condition", condition, {batch, -1, height, width});
    condition_channels = condition.size(1);
    op.dtype = kernel_dtype(name, "features", features);
    acc = acc_scalar_type(op.dtype);
    check_dtype(name, "condition", condition, features.scalar_type());
    check_same_device(name, "condition", condition, features);
    check_shape(name, "weight_features", weight_features, {-1, channels});
    maps = weight_features.size(0);
    check_maps(name, "weight_features", maps);
    check_shape(name, "weight_condition", weight_condition, {maps, condition_channels});
    check_operand(name, "weight_features", weight_features, acc, features);
    check_operand(name, "weight_condition", weight_condition, acc, features);
    op.channels_last = common_channels_last(name, "features", features, "condition", condition);
    check_sizes(name, "features", features);
    check_sizes(name, "condition", condition);
    if (mask) {
      check_shape(name, "mask", *mask, {batch, height, width});
      check_operand(name, "mask", *mask, ScalarType::Bool, features);
      op.mask = static_cast<const unsigned char*>(mask->const_data_ptr());
    }
    op.batch = batch, op.pixels = height * width, op.maps = maps;
    op.feature_channels = channels, op.condition_channels = condition_channels;
    op.features = features.const_data_ptr(), op.condition = condition.const_data_ptr();
    op.weight_features = weight_features.const_data_ptr(), op.weight_condition = weight_condition.const_data_ptr();
  }

  bool empty() const { return op.batch * op.pixels == 0; }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> spatial_attention_pool_cuda(const Tensor& features, const Tensor& condition,
                                                                       const Tensor& weight_features,
                                                                       const Tensor& weight_condition,
                                                                       const MaybeTensor& mask, bool return_maps) {
  const Problem problem("spatial_attention_pool", features, condition, weight_features, weight_condition, mask);
  const CudaScope scope(features);
  const int64_t b = problem.batch, k = problem.maps;
  const std::vector<int64_t> values_shape{b, k, problem.channels}, mean_shape{b, problem.condition_channels};
  const std::vector<int64_t> rows{b, k};
  const Tensor maps = empty_of(
      features, return_maps ? std::vector<int64_t>{b, k, problem.height, problem.width} : std::vector<int64_t>{0},
      features.scalar_type());
  if (problem.empty()) {
    const Tensor lse = empty_of(features, rows, problem.acc);
    torch::stable::fill_(lse, -std::numeric_limits<double>::infinity());
    return std::make_tuple(zeros_of(features, values_shape, problem.acc), zeros_of(features, mean_shape, problem.acc),
                           maps, lse);
  }
  const Tensor values = empty_of(features, values_shape, problem.acc);
  const Tensor mean = empty_of(features, mean_shape, problem.acc);
  const Tensor lse = empty_of(features, rows, problem.acc);
  const Tensor workspace = scratch(features, kernels::spatial_attention_pool_workspace(problem.op));
  check_cuda(kernels::spatial_attention_pool_forward(
                 problem.op, values.mutable_data_ptr(), mean.mutable_data_ptr(), lse.mutable_data_ptr(),
                 return_maps ? maps.mutable_data_ptr() : nullptr, workspace.mutable_data_ptr(), scope.stream()),
             problem.name);
  return std::make_tuple(values, mean, maps, lse);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> spatial_attention_pool_backward_cuda(
    const Tensor& grad_values, const Tensor& grad_mean, const MaybeTensor& grad_maps, const Tensor& features,
    const Tensor& condition, const Tensor& weight_features, const Tensor& weight_condition, const MaybeTensor& mask,
    const Tensor& values, const Tensor& lse, int64_t needs) {
  const Problem problem("spatial_attention_pool_backward", features, condition, weight_features, weight_condition,
                        mask);
  const char* name = problem.name;
  const int64_t b = problem.batch, k = problem.maps, n = problem.channels, m = problem.condition_channels;
  check_shape(name, "grad_values", grad_values, {b, k, n});
  check_operand(name, "grad_values", grad_values, problem.acc, features);
  check_shape(name, "grad_mean", grad_mean, {b, m});
  check_operand(name, "grad_mean", grad_mean, problem.acc, features);
  check_shape(name, "values", values, {b, k, n});
  check_operand(name, "values", values, problem.acc, features);
  check_shape(name, "lse", lse, {b, k});
  check_operand(name, "lse", lse, problem.acc, features);
  if (grad_maps) {
    check_shape(name, "grad_maps", *grad_maps, {b, k, problem.height, problem.width});
    check_operand(name, "grad_maps", *grad_maps, features.scalar_type(), features);
  }
  const CudaScope scope(features);
  const auto gradient = [&](int64_t need, const Tensor& of) {
    return needs & need ? empty_like(of) : empty_of(features, {0}, of.scalar_type());
  };
  const auto sum = [&](int64_t need, int64_t columns) {
    return zeros_of(features, needs & need ? std::vector<int64_t>{k, columns} : std::vector<int64_t>{0}, problem.acc);
  };
  const Tensor grad_features = gradient(kNeedFeatures, features);
  const Tensor grad_condition = gradient(kNeedCondition, condition);
  const Tensor grad_weight_features = sum(kNeedWeightFeatures, n);
  const Tensor grad_weight_condition = sum(kNeedWeightCondition, m);
  if (!problem.empty()) {
    kernels::SpatialAttentionPoolGrads io;
    io.grad_values = grad_values.const_data_ptr(), io.grad_mean = grad_mean.const_data_ptr();
    io.grad_maps = data_or_null(grad_maps);
    io.values = values.const_data_ptr(), io.lse = lse.const_data_ptr();
    io.grad_features = data_unless_empty(grad_features), io.grad_condition = data_unless_empty(grad_condition);
    io.grad_weight_features = data_unless_empty(grad_weight_features);
    io.grad_weight_condition = data_unless_empty(grad_weight_condition);
    const Tensor workspace = scratch(features, kernels::spatial_attention_pool_backward_workspace(problem.op, io));
    check_cuda(kernels::spatial_attention_pool_backward(problem.op, io, workspace.mutable_data_ptr(), scope.stream()),
               name);
  }
  return std::make_tuple(grad_features, grad_condition, grad_weight_features, grad_weight_condition);
}

}  // namespace
}  // namespace mixsyn_fast

MIXSYN_CUDA_LIBRARY(m) {
  m.impl("spatial_attention_pool", TORCH_BOX(&mixsyn_fast::spatial_attention_pool_cuda));
  m.impl("spatial_attention_pool_backward", TORCH_BOX(&mixsyn_fast::spatial_attention_pool_backward_cuda));
}

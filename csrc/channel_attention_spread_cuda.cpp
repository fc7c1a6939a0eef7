// channel_attention_spread on CUDA: checks, allocation, stream. The kernels are in kernels/channel_attention_spread.cu.
#include <tuple>
#include <vector>

#include "attention_cuda.h"
#include "kernels/channel_attention_spread.h"

namespace mixsyn_fast {
namespace {

using torch::stable::empty_like;

constexpr int64_t kNeedValues = 1, kNeedCondition = 2, kNeedWeight = 4;

// The arguments that forward and backward share: checked, and translated for the launchers.
struct Problem {
  const char* name;
  ScalarType acc;
  int64_t batch, channels, condition_channels, height, width, maps;
  kernels::ChannelAttentionSpread op;

  Problem(const char* name, const Tensor& values, const Tensor& condition, const Tensor& weight) : name(name) {
    MIXSYN_CHECK(condition.dim() == 4, name, "condition", "shape (B, M, H, W)", "shape " + shape_string(condition));
    batch = condition.size(0), condition_channels = condition.size(1);
    height = condition.size(2), width = condition.size(3);
    op.dtype = kernel_dtype(name, "condition", condition);
    acc = acc_scalar_type(op.dtype);
    check_shape(name, "weight", weight, {-1, condition_channels});
    maps = weight.size(0);
    check_maps(name, "weight", maps);
    check_shape(name, "values", values, {batch, maps, -1});
    channels = values.size(2);
    check_operand(name, "weight", weight, acc, condition);
    check_operand(name, "values", values, acc, condition);
    check_sizes(name, "condition", condition);
    MIXSYN_CHECK(channels <= 4096, name, "values", "at most 4096 channels", channels);
    op.channels_last = common_channels_last(name, "condition", condition, "condition", condition);
    op.batch = batch, op.pixels = height * width, op.maps = maps;
    op.channels = channels, op.condition_channels = condition_channels;
    op.values = values.const_data_ptr(), op.condition = condition.const_data_ptr(), op.weight = weight.const_data_ptr();
  }

  bool empty() const { return op.batch * op.pixels == 0; }
};

Tensor channel_attention_spread_cuda(const Tensor& values, const Tensor& condition, const Tensor& weight) {
  const Problem problem("channel_attention_spread", values, condition, weight);
  const CudaScope scope(condition);
  const int64_t b = problem.batch, n = problem.channels, h = problem.height, w = problem.width;
  // memory in the order of the condition's: (B, H, W, N) with the channels moved to the front, or as it is
  Tensor out = empty_of(condition,
                        problem.op.channels_last ? std::vector<int64_t>{b, h, w, n} : std::vector<int64_t>{b, n, h, w},
                        condition.scalar_type());
  if (problem.op.channels_last) out = torch::stable::transpose(torch::stable::transpose(out, 2, 3), 1, 2);
  if (out.numel() == 0) return out;
  check_cuda(kernels::channel_attention_spread_forward(problem.op, out.mutable_data_ptr(), scope.stream()),
             problem.name);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> channel_attention_spread_backward_cuda(const Tensor& grad, const Tensor& values,
                                                                          const Tensor& condition, const Tensor& weight,
                                                                          int64_t needs) {
  Problem problem("channel_attention_spread_backward", values, condition, weight);
  const char* name = problem.name;
  const int64_t b = problem.batch, k = problem.maps, n = problem.channels, m = problem.condition_channels;
  check_shape(name, "grad", grad, {b, n, problem.height, problem.width});
  check_dtype(name, "grad", grad, condition.scalar_type());
  check_same_device(name, "grad", grad, condition);
  problem.op.channels_last = common_channels_last(name, "condition", condition, "grad", grad);
  const CudaScope scope(condition);
  const auto sum = [&](int64_t need, const std::vector<int64_t>& shape) {
    return zeros_of(condition, needs & need ? shape : std::vector<int64_t>{0}, problem.acc);
  };
  const Tensor grad_values = sum(kNeedValues, {b, k, n});
  const Tensor grad_condition =
      needs & kNeedCondition ? empty_like(condition) : empty_of(condition, {0}, condition.scalar_type());
  const Tensor grad_weight = sum(kNeedWeight, {k, m});
  if (!problem.empty()) {
    kernels::ChannelAttentionSpreadGrads io;
    io.grad = grad.const_data_ptr();
    io.grad_values = data_unless_empty(grad_values);
    io.grad_condition = data_unless_empty(grad_condition);
    io.grad_weight = data_unless_empty(grad_weight);
    const Tensor workspace = scratch(condition, kernels::channel_attention_spread_backward_workspace(problem.op, io));
    check_cuda(kernels::channel_attention_spread_backward(problem.op, io, workspace.mutable_data_ptr(), scope.stream()),
               name);
  }
  return std::make_tuple(grad_values, grad_condition, grad_weight);
}

}  // namespace
}  // namespace mixsyn_fast

MIXSYN_CUDA_LIBRARY(m) {
  m.impl("channel_attention_spread", TORCH_BOX(&mixsyn_fast::channel_attention_spread_cuda));
  m.impl("channel_attention_spread_backward", TORCH_BOX(&mixsyn_fast::channel_attention_spread_backward_cuda));
}

// region_norm on CUDA: checks, allocation, stream. The kernels are in kernels/region_norm*.cu.
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "check.h"
#include "cuda_torch.h"
#include "kernels/region_norm.h"

namespace mixsyn_fast {
namespace {

using MaybeTensor = std::optional<Tensor>;
using torch::headeronly::MemoryFormat;
using torch::stable::empty_like;

enum Norm : int64_t { kNone = 0, kGiven = 1, kInstance = 2, kBatch = 3, kGroup = 4 };

Tensor to_layout(const Tensor& t, Layout4d layout) {
  if (layout_of(t) == layout) return t;
  return torch::stable::contiguous(
      t, layout == Layout4d::kChannelsLast ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// The arguments that all four ops share: checked, and translated for the launchers. Holds what it had to
// convert.
struct Problem {
  const char* name;
  const Tensor& x;
  int64_t norm;
  ScalarType acc;
  Layout4d layout;
  kernels::RegionNorm op;
  MaybeTensor scale, shift;  // in x's layout
  bool has_statistics = false;

  Problem(const char* name, const Tensor& x, const MaybeTensor& mean, const MaybeTensor& variance,
          const MaybeTensor& index, const MaybeTensor& table, const MaybeTensor& scale_in, const MaybeTensor& shift_in,
          const MaybeTensor& noise, const MaybeTensor& noise_scale, int64_t norm, double eps,
          std::optional<double> negative_slope, int64_t num_groups, bool silu)
      : name(name), x(x), norm(norm) {
    MIXSYN_CHECK(x.dim() == 4, name, "x", "shape (B, C, H, W)", "shape " + shape_string(x));
    const int64_t b = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3);
    op.dtype = kernel_dtype(name, "x", x);
    acc = acc_scalar_type(op.dtype);
    layout = layout_of(x);
    MIXSYN_CHECK(layout != Layout4d::kOther, name, "x", "contiguous or channels_last memory", "other strides");
    MIXSYN_CHECK(norm >= kNone && norm <= kGroup, name, "norm", "0 to 4", norm);
    MIXSYN_CHECK(norm != kGroup || (num_groups > 0 && c % num_groups == 0), name, "num_groups",
                 "a divisor of the channels", num_groups);
    MIXSYN_CHECK(!(silu && negative_slope), name, "silu and negative_slope", "one of them", "both");
    MIXSYN_CHECK(b * h * w <= kernels::kMaxPixels, name, "x", "at most 2^30 pixels", b * h * w);
    MIXSYN_CHECK(c <= (1 << 24), name, "x", "at most 2^24 channels", c);
    MIXSYN_CHECK(!index || table, name, "table", "a tensor with index", "none");
    MIXSYN_CHECK(scale_in.has_value() == shift_in.has_value(), name, "scale and shift", "both or neither", "one");
    MIXSYN_CHECK(!(table && scale_in), name, "table and scale", "a table or dense maps", "both");
    MIXSYN_CHECK(noise.has_value() == noise_scale.has_value(), name, "noise and noise_scale", "both or neither", "one");
    op.batch = b, op.channels = c, op.pixels = h * w;
    op.channels_last = layout == Layout4d::kChannelsLast;
    op.x = x.const_data_ptr();
    op.eps = eps;
    op.slope = negative_slope.value_or(1.0);
    op.silu = silu;
    op.per_instance = norm == kInstance || norm == kGroup;
    if (norm == kGroup && c > 0) op.shared = c / num_groups;
    statistic("mean", mean);
    statistic("variance", variance);
    if (norm != kNone && mean && variance) {
      MIXSYN_CHECK(mean->size(0) == variance->size(0), name, "variance", "the rows of mean", variance->size(0));
      MIXSYN_CHECK(norm == kGiven || mean->size(0) == (op.per_instance ? b : 1), name, "mean",
                   op.per_instance ? "B rows" : "1 row", mean->size(0));
      if (norm == kGiven) op.per_instance = mean->size(0) == b && b > 1;
      op.mean = mean->const_data_ptr(), op.variance = variance->const_data_ptr();
      has_statistics = true;
    }
    if (index) {
      check_shape(name, "index", *index, {b, h, w});
      check_dtype(name, "index", *index, ScalarType::Int);
      check_same_device(name, "index", *index, x);
      MIXSYN_CHECK(index->is_contiguous(), name, "index", "contiguous memory", "other strides");
      op.index = static_cast<const int32_t*>(index->const_data_ptr());
    }
    if (table) {
      check_shape(name, "table", *table, {-1, 2 * c});
      op.rows = table->size(0);
      MIXSYN_CHECK(op.rows <= std::numeric_limits<int32_t>::max(), name, "table", "fewer than 2^31 rows", op.rows);
      MIXSYN_CHECK(op.rows > 0 || x.numel() == 0, name, "table", "a row at least", "none");
      MIXSYN_CHECK(index || op.rows == 1 || op.rows == b, name, "table", "1 or B rows without index", op.rows);
      check_same_device(name, "table", *table, x);
      MIXSYN_CHECK(table->is_contiguous(), name, "table", "contiguous memory", "other strides");
      op.acc_params = parameter_dtype("table", *table);
      op.table = table->const_data_ptr();
    }
    if (scale_in) {
      scale = map("scale", *scale_in), shift = map("shift", *shift_in);
      op.acc_params = parameter_dtype("scale", *scale);
      check_dtype(name, "shift", *shift, scale->scalar_type());
      op.scale = scale->const_data_ptr(), op.shift = shift->const_data_ptr();
    }
    if (noise) {
      check_shape(name, "noise", *noise, {b, 1, h, w});
      check_shape(name, "noise_scale", *noise_scale, {c});
      for (const auto& [what, t] :
           {std::pair<const char*, const Tensor*>{"noise", &*noise}, {"noise_scale", &*noise_scale}}) {
        check_same_device(name, what, *t, x);
        check_dtype(name, what, *t, x.scalar_type());
        MIXSYN_CHECK(t->is_contiguous() || t->numel() == 0, name, what, "contiguous memory", "other strides");
      }
      op.noise = noise->const_data_ptr(), op.noise_scale = noise_scale->const_data_ptr();
    }
  }

  bool empty() const { return x.numel() == 0; }
  bool computes_statistics() const { return norm == kInstance || norm == kBatch || norm == kGroup; }
  int64_t groups() const { return op.per_instance ? op.batch : 1; }
  std::vector<int64_t> group_shape() const {
    return computes_statistics() ? std::vector<int64_t>{groups(), op.channels} : std::vector<int64_t>{0};
  }

  // A (B, C, H, W) map of the parameters or a gradient, on x's device and in x's layout.
  Tensor map(const char* what, const Tensor& t) const {
    check_shape(name, what, t, {x.size(0), x.size(1), x.size(2), x.size(3)});
    check_same_device(name, what, t, x);
    return to_layout(t, layout);
  }

  Tensor grad_map(const Tensor& t) const {
    check_dtype(name, "grad", t, x.scalar_type());
    return map("grad", t);
  }

  void require_statistics() const {
    MIXSYN_CHECK(norm == kNone || has_statistics, name, "mean and variance", "tensors", "none");
  }

 private:
  // Whether the parameters are in the accumulation type rather than in x's.
  bool parameter_dtype(const char* what, const Tensor& t) const {
    if (t.scalar_type() == x.scalar_type()) return false;
    check_dtype(name, what, t, acc);
    return true;
  }

  void statistic(const char* what, const MaybeTensor& t) const {
    if (!t) return;
    check_shape(name, what, *t, {-1, x.size(1)});
    MIXSYN_CHECK(t->size(0) == 1 || t->size(0) == x.size(0), name, what, "1 or B rows", t->size(0));
    check_dtype(name, what, *t, acc);
    check_same_device(name, what, *t, x);
    MIXSYN_CHECK(t->is_contiguous(), name, what, "contiguous memory", "other strides");
  }
};

std::tuple<Tensor, Tensor, Tensor> region_norm_cuda(const Tensor& x, const MaybeTensor& mean,
                                                    const MaybeTensor& variance, const MaybeTensor& index,
                                                    const MaybeTensor& table, const MaybeTensor& scale,
                                                    const MaybeTensor& shift, const MaybeTensor& noise,
                                                    const MaybeTensor& noise_scale, int64_t norm, double eps,
                                                    std::optional<double> negative_slope, int64_t num_groups,
                                                    bool silu) {
  // given statistics play no part where they are computed
  const MaybeTensor none;
  const bool given = norm == kGiven;
  Problem problem("region_norm", x, given ? mean : none, given ? variance : none, index, table, scale, shift, noise,
                  noise_scale, norm, eps, negative_slope, num_groups, silu);
  MIXSYN_CHECK(!given || problem.has_statistics, problem.name, "mean and variance", "tensors with norm 1", "none");
  const CudaScope scope(x);
  const cudaStream_t stream = scope.stream();
  const Tensor y = empty_like(x);
  if (problem.empty()) {
    const Tensor new_mean = zeros_of(x, problem.group_shape(), problem.acc);
    const Tensor new_variance = zeros_of(x, problem.group_shape(), problem.acc);
    torch::stable::fill_(new_variance, std::numeric_limits<double>::quiet_NaN());  // of no values
    return std::make_tuple(y, new_mean, new_variance);
  }
  const Tensor new_mean = empty_of(x, problem.group_shape(), problem.acc);
  const Tensor new_variance = empty_of(x, problem.group_shape(), problem.acc);
  if (problem.computes_statistics()) {
    const Tensor workspace = scratch(x, kernels::region_norm_stats_workspace(problem.op));
    check_cuda(kernels::region_norm_stats(problem.op, new_mean.mutable_data_ptr(), new_variance.mutable_data_ptr(),
                                          nullptr, /*divide=*/true, workspace.mutable_data_ptr(), stream),
               problem.name);
    problem.op.mean = new_mean.const_data_ptr(), problem.op.variance = new_variance.const_data_ptr();
  }
  check_cuda(kernels::region_norm_forward(problem.op, y.mutable_data_ptr(), stream), problem.name);
  return std::make_tuple(y, new_mean, new_variance);
}

std::tuple<Tensor, Tensor, Tensor> region_norm_stats_cuda(const Tensor& x, const MaybeTensor& noise,
                                                          const MaybeTensor& noise_scale, bool per_instance) {
  const MaybeTensor none;
  Problem problem("region_norm_stats", x, none, none, none, none, none, none, noise, noise_scale,
                  per_instance ? kInstance : kBatch, 0.0, std::nullopt, 0, false);
  const CudaScope scope(x);
  if (problem.empty()) {
    const Tensor count = zeros_of(x, {1}, problem.acc);
    if (per_instance) torch::stable::fill_(count, static_cast<double>(problem.op.pixels));
    return std::make_tuple(count, zeros_of(x, problem.group_shape(), problem.acc),
                           zeros_of(x, problem.group_shape(), problem.acc));
  }
  const Tensor count = empty_of(x, {1}, problem.acc);
  const Tensor mean = empty_of(x, problem.group_shape(), problem.acc);
  const Tensor m2 = empty_of(x, problem.group_shape(), problem.acc);
  const Tensor workspace = scratch(x, kernels::region_norm_stats_workspace(problem.op));
  check_cuda(
      kernels::region_norm_stats(problem.op, mean.mutable_data_ptr(), m2.mutable_data_ptr(), count.mutable_data_ptr(),
                                 /*divide=*/false, workspace.mutable_data_ptr(), scope.stream()),
      problem.name);
  return std::make_tuple(count, mean, m2);
}

// The rows of all pixels in ascending order, and their pixels: (B*H*W,) int32 and int64. Stable, hence
// deterministic.
std::array<Tensor, 2> sort_by_row(const Tensor& index) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const Tensor flat = torch::stable::flatten(index, 0, -1);
  std::array<StableIValue, 4> stack{from(flat), from(std::optional<bool>(true)), from(int64_t{0}), from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

std::tuple<Tensor, Tensor, Tensor> region_norm_backward_reduce_cuda(
    const Tensor& grad_in, const Tensor& x, const MaybeTensor& mean, const MaybeTensor& variance,
    const MaybeTensor& index, const MaybeTensor& table, const MaybeTensor& scale, const MaybeTensor& shift,
    const MaybeTensor& noise, const MaybeTensor& noise_scale, int64_t norm, double eps,
    std::optional<double> negative_slope, int64_t num_groups, bool silu) {
  Problem problem("region_norm_backward_reduce", x, mean, variance, index, table, scale, shift, noise, noise_scale,
                  norm, eps, negative_slope, num_groups, silu);
  problem.require_statistics();
  const CudaScope scope(x);
  const cudaStream_t stream = scope.stream();
  const Tensor grad = problem.grad_map(grad_in);
  const std::vector<int64_t> table_shape =
      table ? std::vector<int64_t>{problem.op.rows, 2 * problem.op.channels} : std::vector<int64_t>{0};
  const Tensor grad_table = zeros_of(x, table_shape, problem.acc);
  if (problem.empty()) {
    return std::make_tuple(zeros_of(x, problem.group_shape(), problem.acc),
                           zeros_of(x, problem.group_shape(), problem.acc), grad_table);
  }
  const Tensor sum_g = empty_of(x, problem.group_shape(), problem.acc);
  const Tensor sum_gx = empty_of(x, problem.group_shape(), problem.acc);
  const bool by_image = problem.op.by_image();
  bool sums_missing = problem.computes_statistics() || by_image;
  if (index) {
    // The walk over the pixels of a row wants the channels of a pixel side by side; a contiguous map is
    // turned once.
    const Tensor x_last = to_layout(x, Layout4d::kChannelsLast);
    const Tensor grad_last = to_layout(grad, Layout4d::kChannelsLast);
    const auto [keys, order] = sort_by_row(*index);
    kernels::RegionNorm op = problem.op;
    op.channels_last = true;
    op.x = x_last.const_data_ptr();
    const bool with_sums = norm == kBatch;  // sums over the whole batch fall out of the same walk
    const Tensor workspace = scratch(x, kernels::region_norm_backward_table_workspace(op));
    check_cuda(kernels::region_norm_backward_table(
                   op, grad_last.const_data_ptr(), static_cast<const int32_t*>(keys.const_data_ptr()),
                   static_cast<const int64_t*>(order.const_data_ptr()), grad_table.mutable_data_ptr(),
                   with_sums ? sum_g.mutable_data_ptr() : nullptr, with_sums ? sum_gx.mutable_data_ptr() : nullptr,
                   workspace.mutable_data_ptr(), stream),
               problem.name);
    if (with_sums) sums_missing = false;
  }
  if (sums_missing) {
    const Tensor workspace = scratch(x, kernels::region_norm_backward_sums_workspace(problem.op));
    const bool wanted = problem.computes_statistics();
    check_cuda(kernels::region_norm_backward_sums(
                   problem.op, grad.const_data_ptr(), wanted ? sum_g.mutable_data_ptr() : nullptr,
                   wanted ? sum_gx.mutable_data_ptr() : nullptr, by_image ? grad_table.mutable_data_ptr() : nullptr,
                   workspace.mutable_data_ptr(), stream),
               problem.name);
  }
  return std::make_tuple(sum_g, sum_gx, grad_table);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> region_norm_backward_input_cuda(
    const Tensor& grad_in, const Tensor& x, const MaybeTensor& mean, const MaybeTensor& variance,
    const MaybeTensor& index, const MaybeTensor& table, const MaybeTensor& scale, const MaybeTensor& shift,
    const MaybeTensor& noise, const MaybeTensor& noise_scale, const MaybeTensor& sum_g, const MaybeTensor& sum_gx,
    double count, int64_t norm, double eps, std::optional<double> negative_slope, int64_t num_groups, bool silu,
    bool need_maps) {
  Problem problem("region_norm_backward_input", x, mean, variance, index, table, scale, shift, noise, noise_scale, norm,
                  eps, negative_slope, num_groups, silu);
  problem.require_statistics();
  const char* name = problem.name;
  const CudaScope scope(x);
  const cudaStream_t stream = scope.stream();
  const Tensor grad = problem.grad_map(grad_in);
  kernels::RegionNormGradInput out;
  if (problem.computes_statistics()) {
    MIXSYN_CHECK(sum_g && sum_gx, name, "sum_g and sum_gx", "tensors with norm 2, 3 and 4", "none");
    MIXSYN_CHECK(count > 0 || problem.empty(), name, "count", "a positive number", count);
    for (const auto& [what, t] : {std::pair<const char*, const Tensor*>{"sum_g", &*sum_g}, {"sum_gx", &*sum_gx}}) {
      check_shape(name, what, *t, problem.group_shape());
      check_dtype(name, what, *t, problem.acc);
      check_same_device(name, what, *t, x);
      MIXSYN_CHECK(t->is_contiguous(), name, what, "contiguous memory", "other strides");
    }
    out.sum_g = sum_g->const_data_ptr(), out.sum_gx = sum_gx->const_data_ptr();
    out.count = count;
  }
  const bool maps = need_maps && scale.has_value();
  const Tensor grad_x = empty_like(x);
  const Tensor grad_scale = maps ? empty_like(x) : empty_of(x, {0}, x.scalar_type());
  const Tensor grad_shift = maps ? empty_like(x) : empty_of(x, {0}, x.scalar_type());
  const Tensor grad_noise_scale = zeros_of(x, {noise ? problem.op.channels : 0}, problem.acc);
  if (!problem.empty()) {
    out.grad = grad.const_data_ptr();
    out.grad_x = grad_x.mutable_data_ptr();
    if (maps) out.grad_scale = grad_scale.mutable_data_ptr(), out.grad_shift = grad_shift.mutable_data_ptr();
    if (noise) out.grad_noise_scale = grad_noise_scale.mutable_data_ptr();
    const Tensor workspace = scratch(x, kernels::region_norm_backward_input_workspace(problem.op));
    check_cuda(kernels::region_norm_backward_input(problem.op, out, workspace.mutable_data_ptr(), stream), name);
  }
  return std::make_tuple(grad_x, grad_scale, grad_shift, grad_noise_scale);
}

}  // namespace
}  // namespace mixsyn_fast

MIXSYN_CUDA_LIBRARY(m) {
  m.impl("region_norm", TORCH_BOX(&mixsyn_fast::region_norm_cuda));
  m.impl("region_norm_stats", TORCH_BOX(&mixsyn_fast::region_norm_stats_cuda));
  m.impl("region_norm_backward_reduce", TORCH_BOX(&mixsyn_fast::region_norm_backward_reduce_cuda));
  m.impl("region_norm_backward_input", TORCH_BOX(&mixsyn_fast::region_norm_backward_input_cuda));
}

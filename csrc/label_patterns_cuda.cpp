// label_patterns on CUDA: checks, allocation, stream. The kernels are in kernels/label_patterns.cu.
#include <optional>
#include <tuple>
#include <vector>

#include "check.h"
#include "cuda_torch.h"
#include "kernels/label_patterns.h"

namespace mixsyn_fast {
namespace {

constexpr const char* kOp = "label_patterns";

std::tuple<Tensor, Tensor, Tensor> label_patterns_cuda(const Tensor& labels, const std::optional<Tensor>& edges,
                                                       int64_t num_regions, int64_t radius, bool per_image,
                                                       int64_t max_rows) {
  MIXSYN_CHECK(labels.dim() == 3, kOp, "labels", "shape (B, H, W)", "shape " + shape_string(labels));
  check_dtype(kOp, "labels", labels, ScalarType::Int);
  MIXSYN_CHECK(labels.is_contiguous(), kOp, "labels", "contiguous memory", "other strides");
  MIXSYN_CHECK(num_regions >= 1 && num_regions <= kernels::kMaxRegions, kOp, "num_regions", "1 to 512", num_regions);
  MIXSYN_CHECK(radius >= 0 && radius <= 2, kOp, "radius", "0, 1 or 2", radius);
  MIXSYN_CHECK(labels.numel() <= kernels::kMaxPatternPixels, kOp, "labels", "at most 2^28 pixels", labels.numel());
  kernels::LabelPatterns op;
  op.batch = labels.size(0), op.height = labels.size(1), op.width = labels.size(2);
  if (edges) {
    check_shape(kOp, "edges", *edges, {op.batch, op.height, op.width});
    check_same_device(kOp, "edges", *edges, labels);
    MIXSYN_CHECK(edges->scalar_type() == ScalarType::Bool || edges->scalar_type() == ScalarType::Byte, kOp, "edges",
                 "bool or uint8", torch::headeronly::toString(edges->scalar_type()));
    MIXSYN_CHECK(edges->is_contiguous(), kOp, "edges", "contiguous memory", "other strides");
  }
  op.labels = static_cast<const int32_t*>(labels.const_data_ptr());
  op.edges = static_cast<const uint8_t*>(data_or_null(edges));
  op.num_regions = static_cast<int>(num_regions);
  op.radius = static_cast<int>(radius);
  op.per_image = per_image;

  const CudaScope scope(labels);
  const cudaStream_t stream = scope.stream();
  const int64_t taps = (2 * radius + 1) * (2 * radius + 1);
  const Tensor index = empty_of(labels, {op.batch, op.height, op.width}, ScalarType::Int);
  const Tensor total = empty_of(labels, {1}, ScalarType::Int);
  const Tensor workspace = scratch(labels, labels.numel() > 0 ? kernels::label_patterns_workspace(op) : 0);
  check_cuda(kernels::label_patterns_find(op, workspace.mutable_data_ptr(), mutable_data<int32_t>(total), stream), kOp);
  int64_t rows = max_rows;
  if (max_rows < 0) {
    int32_t found = 0;  // the one host synchronisation: the outputs' size depends on it
    if (labels.numel() > 0) {
      check_cuda(kernels::label_patterns_read_count(mutable_data<int32_t>(total), &found, stream), kOp);
    }
    rows = found;
  }
  const Tensor patterns = empty_of(labels, {rows, taps}, ScalarType::Int);
  const Tensor row_image = empty_of(labels, {rows}, ScalarType::Int);
  check_cuda(kernels::label_patterns_emit(op, workspace.const_data_ptr(), mutable_data<int32_t>(total), rows,
                                          mutable_data<int32_t>(index), mutable_data<int32_t>(patterns),
                                          mutable_data<int32_t>(row_image), stream),
             kOp);
  return std::make_tuple(index, patterns, row_image);
}

}  // namespace
}  // namespace mixsyn_fast

MIXSYN_CUDA_LIBRARY(m) { m.impl("label_patterns", TORCH_BOX(&mixsyn_fast::label_patterns_cuda)); }

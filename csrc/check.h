// Argument checks of the torch-side wrappers. Every message reads
//   mixsyn_fast::<op>: <argument>: expected <what>, got <what>
// so that a user who meets one knows which argument to mend.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace mixsyn_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_string(const Tensor& t) {
  std::ostringstream out;
  out << "(";
  for (int64_t i = 0; i < t.dim(); ++i) out << (i ? ", " : "") << t.size(i);
  out << ")";
  return out.str();
}

inline std::string shape_string(const std::vector<int64_t>& shape) {
  std::ostringstream out;
  out << "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    out << (i ? ", " : "");
    if (shape[i] < 0)
      out << "*";
    else
      out << shape[i];
  }
  out << ")";
  return out.str();
}

// The error of an argument. Not STD_TORCH_CHECK, which writes the function and the path of the source before the message.
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream out;
  out << "mixsyn_fast::";
  (out << ... << parts);
  throw std::runtime_error(out.str());
}

#define MIXSYN_CHECK(condition, op, argument, expected, ...)                                                   \
  do {                                                                                                         \
    if (!(condition)) ::mixsyn_fast::fail(op, ": ", argument, ": expected ", expected, ", got ", __VA_ARGS__); \
  } while (false)

// Shape check; a negative entry of `shape` matches any size.
inline void check_shape(const char* op, const char* argument, const Tensor& t, const std::vector<int64_t>& shape) {
  bool same = t.dim() == static_cast<int64_t>(shape.size());
  for (int64_t i = 0; same && i < t.dim(); ++i) same = shape[i] < 0 || t.size(i) == shape[i];
  MIXSYN_CHECK(same, op, argument, "shape " + shape_string(shape), "shape " + shape_string(t));
}

inline void check_dtype(const char* op, const char* argument, const Tensor& t, ScalarType dtype) {
  MIXSYN_CHECK(t.scalar_type() == dtype, op, argument, torch::headeronly::toString(dtype),
               torch::headeronly::toString(t.scalar_type()));
}

inline void check_same_device(const char* op, const char* argument, const Tensor& t, const Tensor& like) {
  MIXSYN_CHECK(t.is_cpu() == like.is_cpu() && t.get_device_index() == like.get_device_index(), op, argument,
               "the device of the first tensor", "another device");
}

// Memory layout of a dense 4-D tensor (B, C, H, W).
enum class Layout4d { kContiguous, kChannelsLast, kOther };

// Strides of dimensions of size one carry no information and are ignored, as torch does. A tensor that is both
// (C == 1 or H == W == 1) counts as channels_last, the preferred layout.
inline Layout4d layout_of(const Tensor& t) {
  const int64_t c = t.size(1), h = t.size(2), w = t.size(3);
  auto dense = [&](int dim, int64_t stride) { return t.size(dim) <= 1 || t.stride(dim) == stride; };
  if (t.numel() == 0) return Layout4d::kContiguous;
  if (dense(1, 1) && dense(3, c) && dense(2, c * w) && dense(0, c * h * w)) return Layout4d::kChannelsLast;
  if (dense(3, 1) && dense(2, w) && dense(1, h * w) && dense(0, c * h * w)) return Layout4d::kContiguous;
  return Layout4d::kOther;
}

}  // namespace mixsyn_fast

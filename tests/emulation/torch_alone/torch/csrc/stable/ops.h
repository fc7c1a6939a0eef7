// Stands in for torch's header of the same name; see tensor.h beside it. Loops run on one thread.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>

namespace torch::headeronly {
enum class MemoryFormat : int8_t { Contiguous, Preserve, ChannelsLast };
}

namespace torch::stable {

inline Tensor empty(const Sizes& sizes, ScalarType dtype, std::nullopt_t, Device, std::nullopt_t,
                    headeronly::MemoryFormat format) {
  if (format != headeronly::MemoryFormat::ChannelsLast) return uninitialised(sizes, contiguous_strides(sizes), dtype);
  const int64_t c = sizes.at(1), h = sizes.at(2), w = sizes.at(3);
  return uninitialised(sizes, {h * w * c, 1, w * c, c}, dtype);
}

inline Tensor new_empty(const Tensor& like, const Sizes& sizes, std::optional<ScalarType> dtype = std::nullopt) {
  return uninitialised(sizes, contiguous_strides(sizes), dtype.value_or(like.scalar_type()));
}

inline Tensor new_zeros(const Tensor& like, const Sizes& sizes, std::optional<ScalarType> dtype = std::nullopt) {
  Tensor result = new_empty(like, sizes, dtype);
  std::memset(result.mutable_data_ptr(), 0, static_cast<size_t>(result.span()));
  return result;
}

// Of dense tensors alone: torch keeps their strides.
inline Tensor empty_like(const Tensor& t) {
  if (t.span() != t.numel() * element_size(t.scalar_type()))
    throw std::logic_error("stand-in for torch: empty_like of a tensor with gaps");
  return uninitialised(t.sizes(), t.strides(), t.scalar_type());
}

inline Tensor transpose(const Tensor& t, int64_t a, int64_t b) {
  Sizes sizes = t.sizes(), strides = t.strides();
  std::swap(sizes.at(static_cast<size_t>(a)), sizes.at(static_cast<size_t>(b)));
  std::swap(strides.at(static_cast<size_t>(a)), strides.at(static_cast<size_t>(b)));
  return Tensor(sizes, strides, t.scalar_type(), t.memory());
}

template <typename Body>
void parallel_for(int64_t begin, int64_t end, int64_t /*grain*/, const Body& body) {
  if (begin < end) body(begin, end);
}

inline uint32_t get_num_threads() { return 1; }

}  // namespace torch::stable

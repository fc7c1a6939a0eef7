// Stands in for torch's header of the same name where there is no torch to link: tests/emulation/arm.py compiles csrc/*_cpu.cpp
// with it for other processors. Dense or strided memory on the CPU, and what csrc/ asks of it; nothing else.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace torch::stable {

using headeronly::ScalarType;
using Sizes = std::vector<int64_t>;

struct Device {};  // there is one

inline int64_t element_size(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Bool:
    case ScalarType::Byte:
    case ScalarType::Char:
      return 1;
    case ScalarType::Short:
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return 2;
    case ScalarType::Int:
    case ScalarType::Float:
      return 4;
    case ScalarType::Long:
    case ScalarType::Double:
      return 8;
    default:
      throw std::logic_error("stand-in for torch: no such type of elements");
  }
}

class Tensor {
 public:
  Tensor(Sizes sizes, Sizes strides, ScalarType dtype, std::shared_ptr<char> data)
      : sizes_(std::move(sizes)), strides_(std::move(strides)), dtype_(dtype), data_(std::move(data)) {}

  int64_t dim() const { return static_cast<int64_t>(sizes_.size()); }
  int64_t size(int64_t i) const { return sizes_.at(static_cast<size_t>(i)); }
  int64_t stride(int64_t i) const { return strides_.at(static_cast<size_t>(i)); }
  const Sizes& sizes() const { return sizes_; }
  const Sizes& strides() const { return strides_; }
  int64_t numel() const {
    int64_t n = 1;
    for (const int64_t size : sizes_) n *= size;
    return n;
  }
  bool is_contiguous() const {
    int64_t expected = 1;
    for (size_t i = sizes_.size(); i-- > 0;) {
      if (sizes_[i] != 1 && strides_[i] != expected) return numel() == 0;
      expected *= sizes_[i];
    }
    return true;
  }
  ScalarType scalar_type() const { return dtype_; }
  Device device() const { return {}; }
  bool is_cpu() const { return true; }
  int32_t get_device_index() const { return -1; }
  const void* const_data_ptr() const { return data_.get(); }
  void* mutable_data_ptr() const { return data_.get(); }
  const std::shared_ptr<char>& memory() const { return data_; }

  // Bytes from the first to the last element.
  int64_t span() const {
    if (numel() == 0) return 0;
    int64_t last = 0;
    for (size_t i = 0; i < sizes_.size(); ++i) last += (sizes_[i] - 1) * strides_[i];
    return (last + 1) * element_size(dtype_);
  }

 private:
  Sizes sizes_, strides_;
  ScalarType dtype_;
  std::shared_ptr<char> data_;
};

inline Sizes contiguous_strides(const Sizes& sizes) {
  Sizes strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(sizes[i], 1);
  return strides;
}

// `bytes` at an address that is `offset` beyond a multiple of 64.
inline std::shared_ptr<char> allocate(int64_t bytes, int64_t offset = 0) {
  constexpr std::align_val_t line{64};
  char* all = static_cast<char*>(::operator new[](static_cast<size_t>(bytes + offset) + 1, line));
  return {all + offset, [all](char*) { ::operator delete[](all, line); }};
}

// Elements that nobody wrote show: NaN, or integers of 0x7f7f.
inline Tensor uninitialised(const Sizes& sizes, const Sizes& strides, ScalarType dtype) {
  Tensor result(sizes, strides, dtype, nullptr);
  const int64_t bytes = result.numel() * element_size(dtype);
  result = Tensor(sizes, strides, dtype, allocate(bytes));
  const bool floating = dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
                        dtype == ScalarType::BFloat16;
  std::memset(result.mutable_data_ptr(), floating ? 0xff : 0x7f, static_cast<size_t>(bytes));
  return result;
}

}  // namespace torch::stable

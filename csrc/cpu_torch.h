// What the torch side of every CPU op needs: typed pointers, scratch memory, the grain of its loops.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <type_traits>

#include "check.h"

namespace mixsyn_fast {

template <typename A>
constexpr ScalarType acc_scalar_type() {
  return std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
}

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <typename T>
const T* data(const std::optional<Tensor>& t) {
  return t ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}
template <typename T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

template <typename A>
using Buffer = std::unique_ptr<A[]>;

template <typename A>
Buffer<A> buffer(int64_t n) {
  return Buffer<A>(new A[static_cast<size_t>(std::max<int64_t>(n, 1))]);
}

// Grain of a loop whose items touch `elements` values each: about 16 Ki values per thread at least.
inline int64_t grain(int64_t elements) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(elements, 1)); }

}  // namespace mixsyn_fast

// Run-time values to template arguments of kernels: the element type, and booleans.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "dtype.h"

namespace mixsyn_fast::kernels {

template <typename T>
struct Type {
  using type = T;
};
template <bool B>
using Bool = std::integral_constant<bool, B>;
template <int N>
using Int = std::integral_constant<int, N>;

// body(Type<T>{}) for the dtype.
template <typename Body>
cudaError_t dispatch_type(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::kDouble:
      return body(Type<double>{});
    case DType::kFloat:
      return body(Type<float>{});
    case DType::kHalf:
      return body(Type<__half>{});
    default:
      return body(Type<__nv_bfloat16>{});
  }
}

inline bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace mixsyn_fast::kernels

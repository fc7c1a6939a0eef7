// Run-time values to template arguments: the element type.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>

#include "check.h"

namespace mixsyn_fast {

// Type of statistics, sums and arithmetic for elements of type T: float64 for float64, else float32.
template <typename T>
using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
struct TypeTag {
  using type = T;
};

// Calls body(TypeTag<scalar_t>{}) for float64, float32, float16, bfloat16; anything else is an error naming `op`.
template <typename Body>
auto dispatch_floating(torch::headeronly::ScalarType dtype, const char* op, const char* argument, Body&& body) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Double:
      return body(TypeTag<double>{});
    case ScalarType::Float:
      return body(TypeTag<float>{});
    case ScalarType::Half:
      return body(TypeTag<c10::Half>{});
    case ScalarType::BFloat16:
      return body(TypeTag<c10::BFloat16>{});
    default:
      fail(op, ": ", argument, ": expected float64, float32, float16 or bfloat16, got ",
           torch::headeronly::toString(dtype));
  }
}

}  // namespace mixsyn_fast

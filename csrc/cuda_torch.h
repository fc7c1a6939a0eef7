// What the torch side of every CUDA op needs from torch: device, stream, scratch memory, error reports.
//
// MIXSYN_EMULATE_CUDA (tests/emulation) registers the ops for CPU tensors in the namespace
// mixsyn_fast_emulated instead, so that wrappers and kernels can be tested on machines without a GPU.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>
#include <vector>

#include "check.h"
#include "kernels/dtype.h"

#ifdef MIXSYN_EMULATE_CUDA
#define MIXSYN_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(mixsyn_fast_emulated, CPU, m)
#else
#define MIXSYN_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(mixsyn_fast, CUDA, m)
#endif

namespace mixsyn_fast {

// Makes the device of a tensor current for its lifetime and knows its current stream.
class __attribute__((visibility("hidden"))) CudaScope {
 public:
#ifdef MIXSYN_EMULATE_CUDA
  explicit CudaScope(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
#else
  explicit CudaScope(const Tensor& t) : guard_(t.get_device_index()), index_(t.get_device_index()) {}
  cudaStream_t stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return static_cast<cudaStream_t>(stream);
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  int32_t index_;
#endif
};

inline void check_cuda(cudaError_t status, const char* op) {
  if (status != cudaSuccess) fail(op, ": CUDA error: ", cudaGetErrorString(status));
}

// Uninitialised memory on the device of `like`, from torch's caching allocator (stream-ordered, capturable).
inline Tensor scratch(const Tensor& like, int64_t bytes) {
  const std::vector<int64_t> shape = {bytes};
  return torch::stable::new_empty(like, shape, ScalarType::Byte);
}

inline Tensor empty_of(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype) {
  return torch::stable::new_empty(like, shape, dtype);
}

inline Tensor zeros_of(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype) {
  return torch::stable::new_zeros(like, shape, dtype);
}

template <typename T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// The element type of a tensor, for the launchers.
inline kernels::DType kernel_dtype(const char* op, const char* argument, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return kernels::DType::kDouble;
    case ScalarType::Float:
      return kernels::DType::kFloat;
    case ScalarType::Half:
      return kernels::DType::kHalf;
    case ScalarType::BFloat16:
      return kernels::DType::kBFloat16;
    default:
      MIXSYN_CHECK(false, op, argument, "float64, float32, float16 or bfloat16",
                   torch::headeronly::toString(t.scalar_type()));
  }
  return kernels::DType::kFloat;
}

// Type of sums and statistics of elements of `dtype`.
inline ScalarType acc_scalar_type(kernels::DType dtype) {
  return dtype == kernels::DType::kDouble ? ScalarType::Double : ScalarType::Float;
}

inline const void* data_or_null(const std::optional<Tensor>& t) { return t ? t->const_data_ptr() : nullptr; }

}  // namespace mixsyn_fast

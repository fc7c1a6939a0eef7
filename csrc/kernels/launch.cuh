// Starting a kernel and failing loudly on the device: the only file that knows the launch syntax.
//
// With MIXSYN_EMULATE_CUDA the same sources compile as ordinary C++ against tests/emulation/cuda_runtime.h,
// which runs every CUDA thread as a fiber on the CPU: the logic of the kernels is tested on machines that
// have no GPU.
#pragma once

#include <assert.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#if defined(__CUDACC__) && defined(NDEBUG)
// <assert.h> hides it in release builds
extern "C" __host__ __device__ void __assert_fail(const char*, const char*, unsigned int, const char*) noexcept(true);
#endif

namespace mixsyn_fast::kernels {

// Threads of a block; every kernel of this library is bounded by it unless it says otherwise.
constexpr int kThreads = 256;
// Blocks aimed at. Constants, not properties of the device: sums are split the same way, hence bitwise equal,
// on every GPU. 512 blocks are about four for each multiprocessor of the largest current chips; more would
// only give the second stage of a reduction more to read. The emulation has few, so that small shapes make
// blocks loop.
#ifdef MIXSYN_EMULATE_CUDA
constexpr int64_t kReduceBlocks = 5;
constexpr int64_t kStreamBlocks = 3;
#else
constexpr int64_t kReduceBlocks = 512;
constexpr int64_t kStreamBlocks = 4096;
#endif

template <typename I>
constexpr I ceil_div(I a, I b) {
  return (a + b - 1) / b;
}

template <typename I>
constexpr I round_up(I a, I b) {
  return ceil_div(a, b) * b;
}

// Launches and returns the launch error, if any (no synchronisation: errors of the run itself surface later).
// `shared_bytes`: dynamic shared memory, which the kernel gets from MIXSYN_DYNAMIC_SHARED.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_shared(void (*kernel)(Parameters...), dim3 grid, int threads, int64_t shared_bytes,
                          cudaStream_t stream, const Arguments&... arguments) {
#ifdef MIXSYN_EMULATE_CUDA
  (void)stream;
  cuda_emulation::run(grid, dim3(static_cast<unsigned>(threads)), static_cast<size_t>(shared_bytes),
                      [&] { kernel(Parameters(arguments)...); });
  return cudaSuccess;
#else
  if (shared_bytes > 48 * 1024) {  // more than a kernel may have unasked
    const cudaError_t status =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes));
    if (status != cudaSuccess) return status;
  }
  kernel<<<grid, dim3(static_cast<unsigned>(threads)), static_cast<size_t>(shared_bytes), stream>>>(
      Parameters(arguments)...);
  return cudaGetLastError();
#endif
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, cudaStream_t stream,
                   const Arguments&... arguments) {
  return launch_shared(kernel, grid, threads, 0, stream, arguments...);
}

}  // namespace mixsyn_fast::kernels

// Returns from a launcher at the first error.
#define MIXSYN_RETURN_IF_ERROR(expression)      \
  do {                                          \
    const cudaError_t status_ = (expression);   \
    if (status_ != cudaSuccess) return status_; \
  } while (0)

// Declares `name`, the dynamic shared memory of the block, aligned to 16 bytes.
#ifdef MIXSYN_EMULATE_CUDA
#define MIXSYN_DYNAMIC_SHARED(name) unsigned char* name = cuda_emulation::dynamic_shared
#else
#define MIXSYN_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

// Device-side assertion that stays on in release builds: prints the text, stops the kernel, and the next
// synchronising call reports cudaErrorAssert. (A printf would cost every thread a stack frame; this costs
// none.)
#define MIXSYN_DEVICE_ASSERT(condition, text)                                 \
  do {                                                                        \
    if (!(condition)) __assert_fail(text, "mixsyn_fast", __LINE__, __func__); \
  } while (0)

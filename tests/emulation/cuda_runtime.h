// The part of CUDA that this library's kernels use, on the CPU: for tests on machines without a GPU.
//
// A block's threads are fibers (ucontext) that run until the next __syncthreads, one after another, in an
// order chosen by CUDA_EMULATION_ORDER: forward (default), reverse, or shuffle. Blocks run one after another
// in the same order, so a result that depends on the order is a race. Checked on the way: alignment of
// accesses, threads that leave a kernel while others wait at a barrier, launch limits. Shared memory is
// static: it starts with what the last block left.
#pragma once

#include <assert.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
enum cudaMemcpyKind { cudaMemcpyDeviceToHost = 2 };
using cudaStream_t = void*;
inline const char* cudaGetErrorString(cudaError_t e) {
  return e == cudaSuccess ? "no error" : "emulated error";
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_emulation {

[[noreturn]] inline void fail(const char* text) {
  fprintf(stderr, "CUDA emulation: %s\n", text);
  abort();
}

struct Fiber {
  ucontext_t context;
  bool done;
};

inline ucontext_t scheduler;
inline Fiber* current = nullptr;
inline const std::function<void()>* body = nullptr;

inline void fiber_main() {
  (*body)();
  current->done = true;
  swapcontext(&current->context, &scheduler);
}

inline std::vector<int> order(int n, std::mt19937& random) {
  std::vector<int> ids(static_cast<size_t>(n));
  std::iota(ids.begin(), ids.end(), 0);
  const char* kind = getenv("CUDA_EMULATION_ORDER");
  if (kind && !strcmp(kind, "reverse")) std::reverse(ids.begin(), ids.end());
  if (kind && !strcmp(kind, "shuffle")) std::shuffle(ids.begin(), ids.end(), random);
  return ids;
}

inline void run(dim3 grid, dim3 block, const std::function<void()>& kernel) {
  constexpr size_t kStack = 64 * 1024;
  const int threads = static_cast<int>(block.x);
  const int64_t blocks = int64_t{grid.x} * grid.y;
  if (threads < 1 || threads > 1024 || threads % 32 != 0) fail("bad number of threads");
  if (grid.x < 1 || grid.y < 1 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z != 1) fail("bad grid");
  static std::vector<char> stacks;
  if (stacks.size() < kStack * static_cast<size_t>(threads))
    stacks.resize(kStack * static_cast<size_t>(threads));
  std::vector<Fiber> fibers(static_cast<size_t>(threads));
  std::mt19937 random(12345);
  body = &kernel;
  gridDim = grid, blockDim = block;
  for (const int b : order(static_cast<int>(blocks), random)) {
    blockIdx = dim3(static_cast<unsigned>(b) % grid.x, static_cast<unsigned>(b) / grid.x);
    for (int t = 0; t < threads; ++t) {
      Fiber& f = fibers[static_cast<size_t>(t)];
      f.done = false;
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = stacks.data() + kStack * static_cast<size_t>(t);
      f.context.uc_stack.ss_size = kStack;
      f.context.uc_link = nullptr;
      makecontext(&f.context, fiber_main, 0);
    }
    for (int left = threads; left > 0;) {
      const int before = left;
      for (const int t : order(threads, random)) {
        Fiber& f = fibers[static_cast<size_t>(t)];
        if (f.done) continue;
        current = &f;
        threadIdx = dim3(static_cast<unsigned>(t));
        swapcontext(&scheduler, &f.context);
        if (f.done) --left;
      }
      if (left > 0 && left != before) fail("some threads ended while others wait at a barrier");
    }
  }
}

}  // namespace cuda_emulation

inline void __syncthreads() { swapcontext(&cuda_emulation::current->context, &cuda_emulation::scheduler); }

template <typename T>
inline T __ldg(const T* p) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(T) != 0) cuda_emulation::fail("misaligned access");
  return *p;
}
template <typename T>
inline T __ldcg(const T* p) {
  return __ldg(p);
}

template <typename T>
inline T atomicCAS(T* p, T expected, T desired) {
  const T old = *p;
  if (old == expected) *p = desired;
  return old;
}
template <typename T>
inline T atomicMin(T* p, T value) {
  const T old = *p;
  *p = std::min(old, value);
  return old;
}

template <typename T>
inline T atomicMax(T* p, T value) {
  const T old = *p;
  *p = std::max(old, value);
  return old;
}

template <typename To, typename From>
inline To cuda_bits(From v) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To out;
  memcpy(&out, &v, sizeof(out));
  return out;
}
inline float __uint_as_float(uint32_t v) { return cuda_bits<float>(v); }
inline uint32_t __float_as_uint(float v) { return cuda_bits<uint32_t>(v); }
inline int __double2loint(double v) { return static_cast<int>(cuda_bits<uint64_t>(v)); }
inline int __double2hiint(double v) { return static_cast<int>(cuda_bits<uint64_t>(v) >> 32); }
inline double __hiloint2double(int high, int low) {
  return cuda_bits<double>(static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32 |
                           static_cast<uint32_t>(low));
}

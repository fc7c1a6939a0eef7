// The part of CUDA that this library's kernels use, on the CPU: for tests on machines without a GPU.
//
// A block's threads are fibers that run until the next barrier of the block or of their warp, one
// after another, in an order chosen by CUDA_EMULATION_ORDER: forward (default), reverse, or shuffle. Blocks
// run one after another in the same order, and so do the warps between two barriers of the block, so a result that
// depends on the order is a race. Checked on the
// way: alignment of accesses, threads that leave a kernel while others wait at a barrier, barriers that not all
// threads reach, launch limits. Static shared memory starts with what the last block left, dynamic shared
// memory is filled with NaN for every block and ends where its allocation ends.
#pragma once

#include <assert.h>
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <memory>
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

enum class Waits { kNot, kForBlock, kForWarp };

struct Fiber {
  ucontext_t context;
  jmp_buf state;
  bool started, done;
  Waits waits;
  int lane, warp;
  unsigned exchanges;  // values handed to the warp so far
};

inline Fiber* current = nullptr;
inline const std::function<void()>* body = nullptr;

// Fibers begin with setcontext and change with _longjmp: swapcontext makes two system calls, which were half of the time.
// AddressSanitizer does not know the stacks of the latter.
#ifdef __SANITIZE_ADDRESS__
inline ucontext_t scheduler;
inline void resume(Fiber& f) { swapcontext(&scheduler, &f.context); }
inline void suspend() { swapcontext(&current->context, &scheduler); }
#else
inline jmp_buf scheduler;
__attribute__((noinline)) inline void resume(Fiber& f) {
  if (_setjmp(scheduler)) return;
  if (f.started) _longjmp(f.state, 1);
  f.started = true;
  setcontext(&f.context);
}
__attribute__((noinline)) inline void suspend() {
  if (!_setjmp(current->state)) _longjmp(scheduler, 1);
}
#endif

inline void fiber_main() {
  (*body)();
  current->done = true;
  suspend();
}

enum class Order { kForward, kReverse, kShuffle };

inline Order asked_order() {
  const char* kind = getenv("CUDA_EMULATION_ORDER");
  if (kind && !strcmp(kind, "reverse")) return Order::kReverse;
  return kind && !strcmp(kind, "shuffle") ? Order::kShuffle : Order::kForward;
}

inline void arrange(std::vector<int>& ids, Order kind, std::mt19937& random) {
  std::iota(ids.begin(), ids.end(), 0);
  if (kind == Order::kReverse) std::reverse(ids.begin(), ids.end());
  if (kind == Order::kShuffle) std::shuffle(ids.begin(), ids.end(), random);
}

inline unsigned char* dynamic_shared = nullptr;

// Lets go of the threads that wait for nothing more; false if there are none.
inline bool release(std::vector<Fiber>& fibers) {
  const size_t threads = fibers.size();
  size_t at_barrier = 0, done = 0;
  bool any = false;
  for (size_t first = 0; first < threads; first += 32) {
    size_t at_warp = 0, done_in_warp = 0;
    for (size_t t = first; t < first + 32; ++t) {
      at_warp += !fibers[t].done && fibers[t].waits == Waits::kForWarp;
      at_barrier += !fibers[t].done && fibers[t].waits == Waits::kForBlock;
      done_in_warp += fibers[t].done;
    }
    done += done_in_warp;
    if (at_warp > 0 && at_warp + done_in_warp == 32 && done_in_warp > 0) {
      fail("some lanes ended while others wait for their warp");
    }
    if (at_warp < 32) continue;
    for (size_t t = first; t < first + 32; ++t) fibers[t].waits = Waits::kNot;
    any = true;
  }
  if (at_barrier > 0 && at_barrier + done == threads && done > 0) {
    fail("some threads ended while others wait at a barrier");
  }
  if (at_barrier < threads) return any;
  for (Fiber& f : fibers) f.waits = Waits::kNot;
  return true;
}

inline void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
  constexpr size_t kStack = 64 * 1024;
  const int threads = static_cast<int>(block.x);
  const int64_t blocks = int64_t{grid.x} * grid.y;
  if (threads < 1 || threads > 1024 || threads % 32 != 0) fail("bad number of threads");
  if (grid.x < 1 || grid.y < 1 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z != 1) fail("bad grid");
  if (shared_bytes > 227 * 1024) fail("too much shared memory");
  static std::vector<char> stacks;
  if (stacks.size() < kStack * static_cast<size_t>(threads))
    stacks.resize(kStack * static_cast<size_t>(threads));
  std::vector<Fiber> fibers(static_cast<size_t>(threads));
  std::mt19937 random(12345);
  body = &kernel;
  gridDim = grid, blockDim = block;
  const std::unique_ptr<unsigned char, void (*)(void*)> shared(
      static_cast<unsigned char*>(aligned_alloc(128, (shared_bytes + 128) / 128 * 128)), free);
  dynamic_shared = shared.get();
  const Order kind = asked_order();
  std::vector<int> turn(static_cast<size_t>(blocks)), warps(static_cast<size_t>(threads / 32)), lanes(32);
  arrange(turn, kind, random);
  for (const int b : turn) {
    blockIdx = dim3(static_cast<unsigned>(b) % grid.x, static_cast<unsigned>(b) / grid.x);
    memset(dynamic_shared, 0xff, (shared_bytes + 128) / 128 * 128);
    for (int t = 0; t < threads; ++t) {
      Fiber& f = fibers[static_cast<size_t>(t)];
      f.started = f.done = false, f.waits = Waits::kNot, f.lane = t % 32, f.warp = t / 32, f.exchanges = 0;
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = stacks.data() + kStack * static_cast<size_t>(t);
      f.context.uc_stack.ss_size = kStack;
      f.context.uc_link = nullptr;
      makecontext(&f.context, fiber_main, 0);
    }
    // one warp runs ahead of the others as far as it can, the next one then
    arrange(warps, kind, random);
    for (int left = threads; left > 0;) {
      bool ran = false;
      for (const int warp : warps) {
        arrange(lanes, kind, random);
        for (const int lane : lanes) {
          Fiber& f = fibers[static_cast<size_t>(warp * 32 + lane)];
          if (f.done || f.waits != Waits::kNot) continue;
          ran = true;
          current = &f;
          threadIdx = dim3(static_cast<unsigned>(warp * 32 + lane));
          resume(f);
          if (f.done) --left;
        }
        if (ran) break;
      }
      if (left > 0 && !release(fibers) && !ran) fail("threads wait at different barriers");
    }
  }
}

inline void wait(Waits what) {
  current->waits = what;
  suspend();
}

// Hands `value` to the other lanes of the warp and returns the values of all lanes. They stay until the lane's
// next exchange but one: a lane that begins the next has read them.
template <typename V>
inline const V (&exchange(const V& value))[32] {
  static V slots[32][2][32];  // by warp
  V(&mine)[32] = slots[current->warp][current->exchanges++ % 2];
  mine[current->lane] = value;
  wait(Waits::kForWarp);
  return mine;
}

}  // namespace cuda_emulation

inline void __syncthreads() { cuda_emulation::wait(cuda_emulation::Waits::kForBlock); }
inline void __syncwarp() { cuda_emulation::wait(cuda_emulation::Waits::kForWarp); }

template <typename V>
inline V __shfl_xor_sync(unsigned mask, V value, int lanes) {
  if (mask != 0xffffffffu) cuda_emulation::fail("only whole warps are emulated");
  return cuda_emulation::exchange(value)[cuda_emulation::current->lane ^ lanes];
}

// mma.m16n8k8, row.col: d (16, 8) += a (16, 8) b (8, 8), spread over the lanes as the PTX manual says. Operands of
// type float are cut to TF32 as the tensor cores do.
template <typename A>
inline void cuda_emulation_mma(A (&d)[4], const A (&a)[4], const A (&b)[2]) {
  struct Operands {
    A a[4], b[2];
  };
  const auto cut = [](A v) {
    if constexpr (sizeof(A) == 4) {
      uint32_t bits;
      memcpy(&bits, &v, 4);
      bits &= 0xffffe000u;
      memcpy(&v, &bits, 4);
    }
    return v;
  };
  Operands own{{cut(a[0]), cut(a[1]), cut(a[2]), cut(a[3])}, {cut(b[0]), cut(b[1])}};
  const Operands(&all)[32] = cuda_emulation::exchange(own);
  const int group = cuda_emulation::current->lane / 4, in_group = cuda_emulation::current->lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int column = 2 * in_group + i % 2;  // of d
    for (int k = 0; k < 8; ++k) {
      const Operands& left = all[group * 4 + k % 4];     // holds rows group and group + 8, columns k % 4 and k % 4 + 4
      const Operands& right = all[column * 4 + k % 4];  // holds rows k % 4 and k % 4 + 4 of its column
      d[i] += left.a[i / 2 + 2 * (k / 4)] * right.b[k / 4];
    }
  }
}

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

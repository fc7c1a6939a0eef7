// What the kernels of masked_roi_pool share: how channels are spread over threads, and how a thread walks.
//
// In channels_last memory a thread owns V channels and walks over consecutive pixels, so that the pixels of a
// row with one label are a run whose result stays in registers. V is the widest access with which 32 threads
// cover at most the channels of one pixel: all threads of a warp then see the same labels and change runs
// together.
#pragma once

#include "dtype.cuh"
#include "masked_roi_pool.h"
#include "vec.cuh"

namespace mixsyn_fast::kernels {

#ifdef MIXSYN_EMULATE_CUDA
constexpr int kMinSpan = 8;         // consecutive pixels of a thread at least
constexpr int64_t kPoolBlocks = 3;  // blocks aimed at
#else
constexpr int kMinSpan = 32;
constexpr int64_t kPoolBlocks = 2048;  // about two waves on the largest current chips
#endif

template <typename T>
struct PoolArgs {
  Tiling tiling;
  int channels, pixels, regions;  // C, H*W, K
  const T* features;              // (B, C, H, W)
  const int32_t* labels;          // (B, H, W)
};

template <typename T>
PoolArgs<T> make_pool_args(const MaskedRoiPool& op) {
  PoolArgs<T> args{};
  args.channels = static_cast<int>(op.channels);
  args.pixels = static_cast<int>(op.pixels);
  args.regions = static_cast<int>(op.regions);
  args.features = static_cast<const T*>(op.features);
  args.labels = op.labels;
  return args;
}

// Pixels whose loads a thread has under way.
template <typename T, int V>
constexpr int pool_depth() {
  return V * static_cast<int>(sizeof(T)) >= 16 ? 4 : 8;
}

// body(Int<V>{}): channels of a thread. `address`: bits of all pointers that are accessed as vectors.
template <typename T, int V, typename Body>
cudaError_t dispatch_width(int64_t channels, uintptr_t address, Body&& body) {
  if constexpr (V == 1) {
    return body(Int<1>{});
  } else {
    constexpr uintptr_t kBytes = V * sizeof(T);
    const bool fits = channels % V == 0 && address % kBytes == 0;
    if (fits && (V * 32 <= channels || kBytes <= 4)) return body(Int<V>{});
    return dispatch_width<T, V / 2>(channels, address, body);
  }
}

template <typename T, typename Body>
cudaError_t dispatch_width(int64_t channels, const void* map, Body&& body) {
  return dispatch_width<T, 16 / static_cast<int>(sizeof(T))>(channels, reinterpret_cast<uintptr_t>(map), body);
}

// The assertion comes after all loads of a step have been issued: no load may pass it.
template <int U>
__device__ __forceinline__ void check_labels(const int (&label)[U], int regions) {
  bool ok = true;
#pragma unroll
  for (int u = 0; u < U; ++u) ok = ok && label[u] >= -1 && label[u] < regions;
  MIXSYN_DEVICE_ASSERT(ok, "masked_roi_pool: labels: expected -1 or 0 .. num_regions - 1");
}

// V consecutive channels, read once.
template <int V, typename T>
__device__ __forceinline__ void load_channels(acc_t<T> (&out)[V], const T* p) {
  constexpr int kBytes = V * static_cast<int>(sizeof(T));
  if constexpr (V > 1 && kBytes == 4) {
    Words<T, V> words;
    words.w[0] = __ldcg(reinterpret_cast<const uint32_t*>(p));
#pragma unroll
    for (int v = 0; v < V; ++v) out[v] = words.get(v);
  } else {
    load_row<(V > 1), Cache::kOnce, V>(out, p, V);
  }
}

template <int V, typename T>
__device__ __forceinline__ void store_channels(T* p, const acc_t<T> (&in)[V]) {
  constexpr int kBytes = V * static_cast<int>(sizeof(T));
  if constexpr (V > 1 && kBytes == 4) {
    Words<T, V> words;
#pragma unroll
    for (int v = 0; v < V; ++v) words.set(v, in[v]);
    *reinterpret_cast<uint32_t*>(p) = words.w[0];
  } else {
    store_row<(V > 1), V>(p, in, V);
  }
}

// The pixels [begin, end) that a thread of a channels_last tiling walks over.
struct Span {
  int begin, end;
  template <int U, int V>
  __device__ __forceinline__ Span(const Tiling& tiling, const Position<U, V, true>& at) {
    const int length = tiling.chunk / tiling.lanes;
    begin = at.begin + at.lane * length;
    end = begin + length < at.end ? begin + length : at.end;
  }
};

// Tiling for spans of at least kMinSpan pixels.
template <int V>
Tiling make_span_tiling(const MaskedRoiPool& op) {
  return make_tiling(op.batch, op.channels, op.pixels, kMinSpan, V, true, kPoolBlocks);
}

}  // namespace mixsyn_fast::kernels

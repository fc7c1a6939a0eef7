// Element types, 16-byte accesses, and the tile of pixels x channels that a thread works on.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "launch.cuh"

namespace mixsyn_fast::kernels {

// Type of all arithmetic on elements of type T: double for double, else float.
template <typename T>
using acc_t = std::conditional_t<std::is_same<T, double>::value, double, float>;

__device__ __forceinline__ double to_acc(double v) { return v; }
__device__ __forceinline__ float to_acc(float v) { return v; }
__device__ __forceinline__ float to_acc(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_acc(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__device__ __forceinline__ T from_acc(acc_t<T> v) {
  if constexpr (std::is_same<T, __half>::value) {
    return __float2half_rn(v);
  } else if constexpr (std::is_same<T, __nv_bfloat16>::value) {
    return __float2bfloat16_rn(v);
  } else {
    return v;
  }
}

// N consecutive elements held as 32-bit words, so that they stay in registers whatever their type.
template <typename T, int N>
struct Words {
  static constexpr int kBytes = N * static_cast<int>(sizeof(T));
  static_assert(kBytes % 4 == 0, "a vector access is made of whole words");
  uint32_t w[kBytes / 4];

  __device__ __forceinline__ acc_t<T> get(int i) const {  // i: compile-time constant after unrolling
    if constexpr (std::is_same<T, double>::value) {
      return __hiloint2double(static_cast<int>(w[2 * i + 1]), static_cast<int>(w[2 * i]));
    } else if constexpr (std::is_same<T, float>::value) {
      return __uint_as_float(w[i]);
    } else if constexpr (std::is_same<T, __nv_bfloat16>::value) {
      return __uint_as_float((i & 1) ? (w[i / 2] & 0xffff0000u) : (w[i / 2] << 16));
    } else {
      return __half2float(
          __ushort_as_half(static_cast<unsigned short>((i & 1) ? (w[i / 2] >> 16) : (w[i / 2] & 0xffffu))));
    }
  }

  __device__ __forceinline__ void set(int i, acc_t<T> v) {  // in ascending order of i
    if constexpr (std::is_same<T, double>::value) {
      w[2 * i] = static_cast<uint32_t>(__double2loint(v));
      w[2 * i + 1] = static_cast<uint32_t>(__double2hiint(v));
    } else if constexpr (std::is_same<T, float>::value) {
      w[i] = __float_as_uint(v);
    } else {
      uint32_t bits;
      if constexpr (std::is_same<T, __nv_bfloat16>::value) {
        bits = __bfloat16_as_ushort(__float2bfloat16_rn(v));
      } else {
        bits = __half_as_ushort(__float2half_rn(v));
      }
      w[i / 2] = (i & 1) ? (w[i / 2] | (bits << 16)) : bits;
    }
  }
};

// kOnce: data read once by this kernel bypasses L1, which is left to the rows of the table.
enum class Cache { kReuse, kOnce };

// `p` is aligned to min(16, bytes of the vector).
template <typename T, int N, Cache CACHE>
__device__ __forceinline__ Words<T, N> load_words(const T* p) {
  Words<T, N> out;
  constexpr int kBytes = Words<T, N>::kBytes;
  static_assert(kBytes % 16 == 0 || kBytes == 8, "8 bytes or a multiple of 16");
  if constexpr (kBytes % 16 == 0) {
#pragma unroll
    for (int i = 0; i < kBytes / 16; ++i) {
      const uint4* q = reinterpret_cast<const uint4*>(p) + i;
      const uint4 v = CACHE == Cache::kOnce ? __ldcg(q) : __ldg(q);
      out.w[4 * i] = v.x;
      out.w[4 * i + 1] = v.y;
      out.w[4 * i + 2] = v.z;
      out.w[4 * i + 3] = v.w;
    }
  } else {
    const uint2* q = reinterpret_cast<const uint2*>(p);
    const uint2 v = CACHE == Cache::kOnce ? __ldcg(q) : __ldg(q);
    out.w[0] = v.x;
    out.w[1] = v.y;
  }
  return out;
}

template <typename T, int N>
__device__ __forceinline__ void store_words(T* p, const Words<T, N>& v) {
  constexpr int kBytes = Words<T, N>::kBytes;
  static_assert(kBytes % 16 == 0 || kBytes == 8, "8 bytes or a multiple of 16");
  if constexpr (kBytes % 16 == 0) {
#pragma unroll
    for (int i = 0; i < kBytes / 16; ++i) {
      reinterpret_cast<uint4*>(p)[i] = make_uint4(v.w[4 * i], v.w[4 * i + 1], v.w[4 * i + 2], v.w[4 * i + 3]);
    }
  } else {
    *reinterpret_cast<uint2*>(p) = make_uint2(v.w[0], v.w[1]);
  }
}

// N consecutive elements as a vector (VEC) or one by one, of which only the first `valid` exist; the loader
// repeats the last existing one in place of the others.
template <bool VEC, Cache CACHE, int N, typename T>
__device__ __forceinline__ void load_row(acc_t<T> (&out)[N], const T* p, int valid) {
  if constexpr (VEC) {
    const Words<T, N> words = load_words<T, N, CACHE>(p);
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = words.get(i);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = to_acc(__ldg(p + (i < valid ? i : valid - 1)));
  }
}

template <bool VEC, int N, typename T>
__device__ __forceinline__ void store_row(T* p, const acc_t<T> (&in)[N], int valid) {
  if constexpr (VEC) {
    Words<T, N> words;
#pragma unroll
    for (int i = 0; i < N; ++i) words.set(i, in[i]);
    store_words<T, N>(p, words);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (i < valid) p[i] = from_acc<T>(in[i]);
    }
  }
}

// Shape of the tile of a thread: kU pixels x kV channels.
//   channels_last, vector   kV consecutive channels (16 bytes, 8 where the load says so) of kU pixels `lanes`
//   apart
//   channels_last, scalar   1 channel of 4 pixels
//   contiguous, vector      kU consecutive pixels (8 or 16 bytes) of kV channels, so that one read of 8 or 16
//                           bytes of the table serves kV channels of a pixel
//   contiguous, scalar      1 pixel of 4 channels
// CL: channels_last. VEC: pointers and sizes allow vectors. LOAD: registers the kernel needs besides x; the
// bytes in flight are the same for kMedium and kHeavy, but kHeavy keeps sums and means of fewer channels.
enum class Load { kLight, kMedium, kHeavy };

template <typename T, bool CL, bool VEC, Load LOAD>
struct TileShape {
  static constexpr int kSquare = sizeof(T) == 8 ? 2 : 4;
  static constexpr int kWide = LOAD == Load::kHeavy ? kSquare : 16 / static_cast<int>(sizeof(T));
  static constexpr bool kDeep = LOAD == Load::kLight || (LOAD == Load::kHeavy && sizeof(T) == 2);
  static constexpr int kV = CL ? (VEC ? kWide : 1) : (VEC ? kSquare : 4);
  static constexpr int kU = CL ? (VEC ? (kDeep ? 4 : 2) : 4) : (VEC ? kSquare : 1);
};

// How an op's work is spread over blocks and threads. A block owns `chunk` consecutive pixels of one image
// and `groups` groups of kV channels; its threads are lanes x groups, a lane walking the pixels of the chunk.
struct Tiling {
  int lanes;           // pixels (tiles of pixels) side by side in a block
  int groups;          // channel groups side by side in a block
  int threads;         // lanes * groups rounded up to whole warps
  int chunk;           // pixels of a block, a multiple of lanes * kU
  int pixel_blocks;    // blocks along the pixels of one image
  int channel_blocks;  // blocks along the channels
  int64_t batch;
  dim3 grid() const {
    return dim3(static_cast<unsigned>(batch * pixel_blocks), static_cast<unsigned>(channel_blocks), 1);
  }
  bool fits() const { return batch * pixel_blocks <= 0x7fffffffLL && channel_blocks <= 65535; }
};

// All sizes >= 1. `target`: number of blocks aimed at. `most_lanes`: of a block, in contiguous layout.
inline Tiling make_tiling(int64_t batch, int64_t channels, int64_t pixels, int u, int v, bool channels_last,
                          int64_t target, int64_t most_lanes = kThreads) {
  Tiling t{};
  t.batch = batch;
  const int64_t groups = ceil_div<int64_t>(channels, v);
  const int64_t pixel_tiles = ceil_div<int64_t>(pixels, u);
  if (channels_last) {
    const int64_t blocks = ceil_div<int64_t>(groups, kThreads);
    t.groups = static_cast<int>(ceil_div<int64_t>(groups, blocks));
    const int64_t lanes = kThreads / t.groups;
    t.lanes = static_cast<int>(lanes < pixel_tiles ? lanes : pixel_tiles);
  } else {
    t.lanes = static_cast<int>(pixel_tiles < most_lanes ? pixel_tiles : most_lanes);
    const int64_t most = kThreads / t.lanes;
    t.groups = static_cast<int>(groups < most ? groups : most);
  }
  t.channel_blocks = static_cast<int>(ceil_div<int64_t>(groups, t.groups));
  t.threads = round_up(t.lanes * t.groups, 32);
  const int64_t span = static_cast<int64_t>(t.lanes) * u;
  int64_t blocks = target / (batch * t.channel_blocks);
  const int64_t most = ceil_div<int64_t>(pixels, span);
  blocks = blocks < 1 ? 1 : (blocks > most ? most : blocks);
  t.chunk = static_cast<int>(round_up<int64_t>(ceil_div<int64_t>(pixels, blocks), span));
  t.pixel_blocks = static_cast<int>(ceil_div<int64_t>(pixels, t.chunk));
  return t;
}

// Where a thread stands in its tiling.
template <int U, int V, bool CL>
struct Position {
  int lane, group_in_block;  // within the block
  int c0;                    // first channel
  int valid;                 // channels that exist, 1..V
  bool active;               // false: the thread only takes part in barriers
  int image, block;          // image of the batch, pixel block within it
  int begin, end;            // pixels of the block

  __device__ __forceinline__ Position(const Tiling& t, int channels, int pixels) {
    const int id = static_cast<int>(threadIdx.x);
    lane = CL ? id / t.groups : id % t.lanes;
    group_in_block = CL ? id % t.groups : id / t.lanes;
    const int group = static_cast<int>(blockIdx.y) * t.groups + group_in_block;
    c0 = group * V;
    active = lane < t.lanes && group_in_block < t.groups && c0 < channels;
    valid = channels - c0 < V ? channels - c0 : V;
    image = static_cast<int>(blockIdx.x) / t.pixel_blocks;
    block = static_cast<int>(blockIdx.x) % t.pixel_blocks;
    begin = block * t.chunk;
    end = pixels - begin < t.chunk ? pixels : begin + t.chunk;
  }
  // First pixel of the lane's tile in the span that starts at `base`, and the distance between its pixels.
  __device__ __forceinline__ int first(int base) const { return base + (CL ? lane : lane * U); }
  __device__ __forceinline__ static constexpr int step(const Tiling& t) { return CL ? t.lanes : 1; }
};

// Tile <- memory. Pixels beyond the end are replaced by the last pixel (their address is valid, their value
// unused), so that no branch separates the loads. `image`: first element of the image, (H*W, C) if CL else
// (C, H*W).
template <int U, int V, bool CL, bool VEC, typename T>
__device__ __forceinline__ void load_tile(acc_t<T> (&out)[U][V], const T* image, const int (&pixel)[U], int c0,
                                          int valid, int channels, int pixels) {
  if constexpr (CL) {
    if constexpr (VEC) {
      Words<T, V> words[U];
#pragma unroll
      for (int u = 0; u < U; ++u) {
        words[u] = load_words<T, V, Cache::kOnce>(image + static_cast<int64_t>(pixel[u]) * channels + c0);
      }
#pragma unroll
      for (int u = 0; u < U; ++u) {
#pragma unroll
        for (int v = 0; v < V; ++v) out[u][v] = words[u].get(v);
      }
    } else {
#pragma unroll
      for (int u = 0; u < U; ++u) {
        load_row<false, Cache::kOnce, V>(out[u], image + static_cast<int64_t>(pixel[u]) * channels + c0, valid);
      }
    }
  } else {
    if constexpr (VEC) {
      Words<T, U> words[V];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        words[v] = load_words<T, U, Cache::kOnce>(image + static_cast<int64_t>(c0 + v) * pixels + pixel[0]);
      }
#pragma unroll
      for (int v = 0; v < V; ++v) {
#pragma unroll
        for (int u = 0; u < U; ++u) out[u][v] = words[v].get(u);
      }
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const int c = c0 + (v < valid ? v : valid - 1);
#pragma unroll
        for (int u = 0; u < U; ++u) out[u][v] = to_acc(__ldg(image + static_cast<int64_t>(c) * pixels + pixel[u]));
      }
    }
  }
}

// Memory <- tile; pixels at or beyond `end` are not written. A contiguous vector tile is whole or absent.
template <int U, int V, bool CL, bool VEC, typename T>
__device__ __forceinline__ void store_tile(T* image, const acc_t<T> (&in)[U][V], int first, int step, int end, int c0,
                                           int valid, int channels, int pixels) {
  if constexpr (CL) {
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int p = first + u * step;
      if (p < end) store_row<VEC, V>(image + static_cast<int64_t>(p) * channels + c0, in[u], valid);
    }
  } else if constexpr (VEC) {
    if (first < end) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        Words<T, U> words;
#pragma unroll
        for (int u = 0; u < U; ++u) words.set(u, in[u][v]);
        store_words<T, U>(image + static_cast<int64_t>(c0 + v) * pixels + first, words);
      }
    }
  } else {
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const int p = first + u * step;
        if (v < valid && p < end) image[static_cast<int64_t>(c0 + v) * pixels + p] = from_acc<T>(in[u][v]);
      }
    }
  }
}

// Addresses of the tile's pixels, clamped into [.., end). A contiguous vector tile moves as a whole.
template <int U, bool CL, bool VEC>
__device__ __forceinline__ void clamp_pixels(int (&pixel)[U], int first, int step, int end) {
  if constexpr (!CL && VEC) {
    const int p = first < end ? first : end - U;
#pragma unroll
    for (int u = 0; u < U; ++u) pixel[u] = p + u;
  } else {
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int p = first + u * step;
      pixel[u] = p < end ? p : end - 1;
    }
  }
}

}  // namespace mixsyn_fast::kernels

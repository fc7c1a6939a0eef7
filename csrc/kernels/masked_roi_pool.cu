// masked_roi_pool: the maximum.
//
// A thread keeps the maximum of the current run of equal labels in registers and hands it over when the label
// changes: as a 64-bit key to an integer atomicMax on a table (B, K, C). The high word of a key orders as the
// value does (NaN above everything, -0 equal to +0), the low word is larger for an earlier position; so the
// largest key is the first maximum, whatever the order of arrival. A key of 0 is an absent region.
// float64 values fill the key on their own; their positions are found in a second pass over the features.
#include "masked_roi_pool.h"

#include "masked_roi_pool.cuh"

namespace mixsyn_fast::kernels {
namespace {

using Key = unsigned long long;

__device__ __forceinline__ uint32_t ordered(float v) {
  if (v != v) return 0xffffffffu;
  const uint32_t bits = __float_as_uint(v + 0.0f);  // -0 + 0 = +0
  return (bits & 0x80000000u) ? ~bits : (bits | 0x80000000u);
}

__device__ __forceinline__ Key make_key(float v, int position) {
  return (static_cast<Key>(ordered(v)) << 32) | (0xffffffffu - static_cast<uint32_t>(position));
}

__device__ __forceinline__ Key make_key(double v, int) {
  if (v != v) return ~Key{0};
  v += 0.0;
  const Key bits =
      (static_cast<Key>(static_cast<uint32_t>(__double2hiint(v))) << 32) | static_cast<uint32_t>(__double2loint(v));
  return (bits >> 63) ? ~bits : (bits | (Key{1} << 63));
}

__device__ __forceinline__ float value_of(Key key, float) {
  const uint32_t high = static_cast<uint32_t>(key >> 32);
  return __uint_as_float((high & 0x80000000u) ? (high ^ 0x80000000u) : ~high);
}

__device__ __forceinline__ double value_of(Key key, double) {
  const Key bits = (key >> 63) ? (key ^ (Key{1} << 63)) : ~key;
  return __hiloint2double(static_cast<int>(bits >> 32), static_cast<int>(static_cast<uint32_t>(bits)));
}

// The first maximum of V channels over a run of pixels of one label, met in ascending order.
template <typename A, int V>
struct MaxRun {
  int label = -1;
  A best[V];
  int where[V];

  __device__ __forceinline__ void start(int new_label, const A (&x)[V], int pixel) {
    label = new_label;
#pragma unroll
    for (int v = 0; v < V; ++v) best[v] = x[v], where[v] = pixel;
  }

  __device__ __forceinline__ void extend(const A (&x)[V], int pixel) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      // larger, or the first NaN
      if (!(x[v] <= best[v]) && best[v] == best[v]) best[v] = x[v], where[v] = pixel;
    }
  }

  // row (V,): the channels' keys of this label. Most runs do not raise them: a possibly stale (smaller) key
  // only costs a needless atomic.
  __device__ __forceinline__ void flush(Key* row) const {
    Key key[V];
#pragma unroll
    for (int v = 0; v < V; ++v) key[v] = make_key(best[v], where[v]);
    if constexpr (V > 1) {
#pragma unroll
      for (int v = 0; v < V; v += 2) {
        const ulonglong2 seen = __ldcg(reinterpret_cast<const ulonglong2*>(row + v));  // no half of a key is newer
        if (key[v] > seen.x) atomicMax(row + v, key[v]);
        if (key[v + 1] > seen.y) atomicMax(row + v + 1, key[v + 1]);
      }
    } else {
      if (key[0] > __ldcg(row)) atomicMax(row, key[0]);
    }
  }
};

// channels_last. table (B, K, C)
template <typename T, int V>
__global__ void __launch_bounds__(kThreads, 2) masked_roi_pool_max_kernel(PoolArgs<T> args, Key* __restrict__ table) {
  using A = acc_t<T>;
  constexpr int U = pool_depth<T, V>();
  const Position<1, V, true> at(args.tiling, args.channels, args.pixels);
  if (!at.active) return;
  const T* image = args.features + static_cast<int64_t>(at.image) * args.pixels * args.channels + at.c0;
  const int32_t* labels = args.labels + static_cast<int64_t>(at.image) * args.pixels;
  Key* rows = table + static_cast<int64_t>(at.image) * args.regions * args.channels + at.c0;
  const Span span(args.tiling, at);
  MaxRun<A, V> run;
  for (int base = span.begin; base < span.end; base += U) {
    A x[U][V];
    int label[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int pixel = base + u < span.end ? base + u : span.end - 1;
      label[u] = __ldg(labels + pixel);
      load_channels<V>(x[u], image + static_cast<int64_t>(pixel) * args.channels);
    }
    check_labels(label, args.regions);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (base + u >= span.end) break;
      if (label[u] == run.label) {
        run.extend(x[u], base + u);
      } else {
        if (run.label >= 0) run.flush(rows + static_cast<int64_t>(run.label) * args.channels);
        run.start(label[u], x[u], base + u);
      }
    }
  }
  if (run.label >= 0) run.flush(rows + static_cast<int64_t>(run.label) * args.channels);
}

// contiguous: a block turns tiles of 32 channels x kPixels pixels in shared memory. A warp walks over one
// eighth of the tile's pixels, its lanes over the channels, so that all of them see the same labels. Rows are
// 16 bytes longer than their pixels: eight lanes that read 16 bytes of eight rows touch all banks once.
template <typename T>
struct MaxTile {
  static constexpr int kChannels = 32;
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T));  // pixels of one access
  static constexpr int kVectors = 64;                               // accesses of a row
  static constexpr int kRow = kVectors + 1;
  static constexpr int kPixels = kVectors * kVector;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kLoads = kChannels * kVectors / kThreads;
  static constexpr int kLabels = ceil_div(kPixels, kThreads);
};

template <typename T, bool VEC>
__global__ void __launch_bounds__(kThreads, 2)
    masked_roi_pool_max_tile_kernel(PoolArgs<T> args, Key* __restrict__ table, int blocks_per_image,
                                    int tiles_per_block) {
  using A = acc_t<T>;
  using Tile = MaxTile<T>;
  constexpr int W = Tile::kVector;
  __shared__ uint4 tile[Tile::kChannels * Tile::kRow];
  __shared__ int32_t tile_labels[Tile::kPixels];
  const int id = static_cast<int>(threadIdx.x), lane = id % 32, warp = id / 32;
  const int64_t image = blockIdx.x / blocks_per_image;
  const int first = static_cast<int>(blockIdx.x % blocks_per_image) * tiles_per_block * Tile::kPixels;
  const int span = tiles_per_block * Tile::kPixels;
  const int last = args.pixels - first < span ? args.pixels : first + span;
  const int c0 = static_cast<int>(blockIdx.y) * Tile::kChannels;
  const T* features = args.features + (image * args.channels + c0) * args.pixels;
  const int32_t* labels = args.labels + image * args.pixels;
  const bool exists = c0 + lane < args.channels;
  Key* rows = table + image * args.regions * args.channels + c0 + lane;

  // the next tile, on its way while this one is walked over
  uint4 ahead[Tile::kLoads];
  int labels_ahead[Tile::kLabels];
  const auto fetch_labels = [&](int base) {
#pragma unroll
    for (int i = 0; i < Tile::kLabels; ++i) {
      const int pixel = base + id + i * kThreads;
      labels_ahead[i] = pixel < last && id + i * kThreads < Tile::kPixels ? __ldg(labels + pixel) : -1;
    }
  };
  const auto fetch = [&](int base) {
#pragma unroll
    for (int i = 0; i < Tile::kLoads; ++i) {
      const int vector = id + i * kThreads, row = vector / Tile::kVectors;
      const int pixel = base + vector % Tile::kVectors * W;
      ahead[i] = make_uint4(0, 0, 0, 0);
      if (c0 + row < args.channels && pixel < last) {
        ahead[i] = __ldcg(reinterpret_cast<const uint4*>(features + static_cast<int64_t>(row) * args.pixels + pixel));
      }
    }
  };

  MaxRun<A, 1> run;
  fetch_labels(first);
  if constexpr (VEC) fetch(first);
  for (int base = first; base < last; base += Tile::kPixels) {
    __syncthreads();  // the last tile has been walked over
    if constexpr (VEC) {
#pragma unroll
      for (int i = 0; i < Tile::kLoads; ++i) {
        const int vector = id + i * kThreads;
        tile[vector / Tile::kVectors * Tile::kRow + vector % Tile::kVectors] = ahead[i];
      }
    } else {
      T* elements = reinterpret_cast<T*>(tile);
      for (int i = id; i < Tile::kChannels * Tile::kPixels; i += kThreads) {
        const int row = i / Tile::kPixels, pixel = base + i % Tile::kPixels;
        if (c0 + row < args.channels && pixel < last) {
          elements[row * Tile::kRow * W + i % Tile::kPixels] =
              __ldg(features + static_cast<int64_t>(row) * args.pixels + pixel);
        }
      }
    }
    check_labels(labels_ahead, args.regions);
#pragma unroll
    for (int i = 0; i < Tile::kLabels; ++i) {
      if (id + i * kThreads < Tile::kPixels) tile_labels[id + i * kThreads] = labels_ahead[i];
    }
    __syncthreads();
    if (base + Tile::kPixels < last) {
      fetch_labels(base + Tile::kPixels);
      if constexpr (VEC) fetch(base + Tile::kPixels);
    }
    constexpr int kSteps = Tile::kVectors / Tile::kWarps;
    for (int step = 0; step < kSteps; ++step) {
      const int vector = warp * kSteps + step;
      const uint4 raw = tile[lane * Tile::kRow + vector];
      const Words<T, W> words{{raw.x, raw.y, raw.z, raw.w}};
#pragma unroll
      for (int w = 0; w < W; ++w) {
        const int pixel = base + vector * W + w;
        const int label = tile_labels[vector * W + w];
        const A x[1] = {words.get(w)};
        if (label == run.label) {
          run.extend(x, pixel);
        } else {
          if (run.label >= 0 && exists) run.flush(rows + static_cast<int64_t>(run.label) * args.channels);
          run.start(label, x, pixel);
        }
      }
    }
  }
  if (run.label >= 0 && exists) run.flush(rows + static_cast<int64_t>(run.label) * args.channels);
}

// pooled, position (B, K, C) from the table. float64: position is -1, or 2^31 - 1 for the second pass to lower.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    masked_roi_pool_decode_kernel(const Key* __restrict__ table, T* __restrict__ pooled, int32_t* __restrict__ position,
                                  int64_t total) {
  using A = acc_t<T>;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < total; i += int64_t{gridDim.x} * kThreads) {
    const Key key = __ldg(table + i);
    pooled[i] = from_acc<T>(key == 0 ? A(0) : value_of(key, A(0)));
    const int32_t found =
        std::is_same<T, double>::value ? 0x7fffffff : static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key));
    position[i] = key == 0 ? -1 : found;
  }
}

// float64, second pass: the smallest position whose value is the maximum. table, position (B, K, C)
__global__ void __launch_bounds__(kThreads)
    masked_roi_pool_position_kernel(PoolArgs<double> args, bool channels_last, const Key* __restrict__ table,
                                    int32_t* __restrict__ position, int64_t total) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < total; i += int64_t{gridDim.x} * kThreads) {
    const int64_t size = int64_t{args.channels} * args.pixels;
    const int64_t image = i / size, rest = i % size;
    const int64_t c = channels_last ? rest % args.channels : rest / args.pixels;
    const int64_t pixel = channels_last ? rest / args.channels : rest % args.pixels;
    const int label = __ldg(args.labels + image * args.pixels + pixel);
    if (label < 0) continue;
    const int64_t at = (image * args.regions + label) * args.channels + c;
    if (make_key(__ldg(args.features + i), 0) == __ldg(table + at))
      atomicMin(position + at, static_cast<int32_t>(pixel));
  }
}

dim3 stride_grid(int64_t n) {
  const int64_t blocks = ceil_div<int64_t>(n, kThreads);
  return dim3(static_cast<unsigned>(blocks < kStreamBlocks ? blocks : kStreamBlocks));
}

}  // namespace

PoolWorkspace masked_roi_pool_max_workspace(const MaskedRoiPool& op) {
  return {op.batch * op.regions * op.channels * static_cast<int64_t>(sizeof(Key)), 0};
}

cudaError_t masked_roi_pool_max(const MaskedRoiPool& op, void* pooled, int32_t* position, void* zeroed,
                                cudaStream_t stream) {
  const int64_t cells = op.batch * op.regions * op.channels;
  if (cells == 0) return cudaSuccess;
  Key* table = static_cast<Key*>(zeroed);
  return dispatch_type(op.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    PoolArgs<T> args = make_pool_args<T>(op);
    if (op.pixels == 0) {
      // nothing to walk over: every region is absent
    } else if (op.channels_last) {
      MIXSYN_RETURN_IF_ERROR(dispatch_width<T>(op.channels, op.features, [&](auto width) {
        constexpr int V = decltype(width)::value;
        args.tiling = make_span_tiling<V>(op);
        if (!args.tiling.fits()) return cudaErrorInvalidConfiguration;
        return launch(masked_roi_pool_max_kernel<T, V>, args.tiling.grid(), args.tiling.threads, stream, args, table);
      }));
    } else {
      using Tile = MaxTile<T>;
      const int64_t channel_blocks = ceil_div<int64_t>(op.channels, Tile::kChannels);
      const int64_t tiles = ceil_div<int64_t>(op.pixels, Tile::kPixels);
      const int64_t wanted = kPoolBlocks / (op.batch * channel_blocks);
      const int64_t tiles_per_block = ceil_div(tiles, wanted < 1 ? int64_t{1} : (wanted < tiles ? wanted : tiles));
      const int64_t blocks = ceil_div(tiles, tiles_per_block);
      if (op.batch * blocks > 0x7fffffffLL || channel_blocks > 65535) return cudaErrorInvalidConfiguration;
      const dim3 grid(static_cast<unsigned>(op.batch * blocks), static_cast<unsigned>(channel_blocks));
      const bool vector = aligned16(op.features) && op.pixels % Tile::kVector == 0;
      MIXSYN_RETURN_IF_ERROR(
          launch(vector ? masked_roi_pool_max_tile_kernel<T, true> : masked_roi_pool_max_tile_kernel<T, false>, grid,
                 kThreads, stream, args, table, static_cast<int>(blocks), static_cast<int>(tiles_per_block)));
    }
    MIXSYN_RETURN_IF_ERROR(launch(masked_roi_pool_decode_kernel<T>, stride_grid(cells), kThreads, stream, table,
                                  static_cast<T*>(pooled), position, cells));
    if constexpr (std::is_same<T, double>::value) {
      const int64_t elements = op.batch * op.channels * op.pixels;
      if (elements == 0) return cudaSuccess;
      return launch(masked_roi_pool_position_kernel, stride_grid(elements), kThreads, stream, args, op.channels_last,
                    table, position, elements);
    }
    return cudaSuccess;
  });
}

}  // namespace mixsyn_fast::kernels

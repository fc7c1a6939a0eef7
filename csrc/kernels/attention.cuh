// What the kernels of spatial_attention_pool and channel_attention_spread share: tiles of two maps in shared
// memory, and three products of a tile with K rows of weights or values.
//
// A block owns consecutive tiles of kTile positions of one image. The two maps of an op (side 0: features or the
// gradient of the result, C0 channels; side 1: the condition, C1 channels) lie in shared memory as (kTile, channels)
// in the type of the sums, whatever their type and layout in memory, and are read from memory once:
//
//   project     (16 KT, kTile)  = rows (16 KT, C) tile^T          logits, gradients of the maps
//   accumulate  (16, C)        += coefficients (16, kTile) tile   values, gradients of weights
//   blend       (kTile, C)      = coefficients^T rows             results, gradients of the maps read
//
// All three are made of the tensor cores' 16x8x8 product. For K = 16, N = 128, M = 64 a position costs 5120
// multiply-adds forward and 13300 backward, for 384 (half types) or 768 bytes read, and as many written in the
// backward: at 60 % of an H100's copy bandwidth the plain float32 units would be busy at 70 % (half types,
// forward) or could not follow at all (backward). Sums stay those of float32: both operands are split into two
// TF32 parts, three products each (two where the tile is exact in TF32, as every half type is).
//
// Strides in shared memory are 4 modulo 8 elements, which keeps the fragments' reads free of bank conflicts.
// Where a product sums over positions or maps, column i of a fragment stands for element 2 i and column i + 4 for
// 2 i + 1: the order of a sum is free, and the banks want it.
//
// Every sum has a fixed order, hence is bitwise repeatable: a block over its tiles, then a second kernel over
// the blocks of an image or of the batch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "dtype.cuh"
#include "launch.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace mixsyn_fast::kernels {

constexpr int kWarps = 4;
constexpr int kAttentionThreads = 32 * kWarps;
constexpr int kTile = 8 * kWarps;       // positions of a tile: 8 for each warp in `project`
constexpr int kMaps = 16;               // maps (K) of one product
constexpr int kMostMaps = 64;           // largest K
constexpr int kCoefStride = kTile + 4;  // of the coefficients (maps, kTile) in shared memory
// A block keeps all channels of both maps in shared memory if they fit into this; otherwise panels of channels
// follow one another, and each use of a panel reads it again (from L2). 96 KiB leave two blocks to a
// multiprocessor of the largest chips and one to every chip since sm_80.
#ifdef MIXSYN_EMULATE_CUDA
constexpr int64_t kMostShared = 28 * 1024;
constexpr int kLeastTiles = 2;
#else
constexpr int64_t kMostShared = 96 * 1024;
constexpr int kLeastTiles = 4;  // of a block: its rows and its partial sums are worth about one tile
#endif

template <typename A>
constexpr int kPanel = sizeof(A) == 8 ? 32 : 64;  // channels of a panel

// Lane of a warp, and its place in the fragments of a product.
struct Lane {
  int warp, group, member;  // lane = 4 * group + member
  __device__ __forceinline__ Lane()
      : warp(static_cast<int>(threadIdx.x) / 32),
        group(static_cast<int>(threadIdx.x) % 32 / 4),
        member(static_cast<int>(threadIdx.x) % 4) {}
};

// --- the product of fragments ---
// a (16, 8): {(group, member), (group + 8, member), (group, member + 4), (group + 8, member + 4)}
// b (8, 8):  {(member, group), (member + 4, group)}
// d (16, 8): {(group, 2 member), (group, 2 member + 1), (group + 8, 2 member), (group + 8, 2 member + 1)}

#ifdef MIXSYN_EMULATE_CUDA
template <typename A>
inline void tensor_product(A (&d)[4], const A (&a)[4], const A (&b)[2]) {
  cuda_emulation_mma(d, a, b);
}
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
// No such tensor cores: every lane fetches what it needs. Correct, not fast.
template <typename A>
__device__ __forceinline__ void tensor_product(A (&d)[4], const A (&a)[4], const A (&b)[2]) {
  const Lane lane;
#pragma unroll 1
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {  // rows of d, columns of d, halves of the sum
      const A left = __shfl_sync(0xffffffffu, a[i / 4 + 2 * (i % 2)], lane.group * 4 + k);
      d[i / 2] += left * __shfl_sync(0xffffffffu, b[i % 2], (2 * lane.member + i / 2 % 2) * 4 + k);
    }
  }
}
#else
__device__ __forceinline__ void tensor_product(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}
__device__ __forceinline__ void tensor_product(double (&d)[4], const double (&a)[4], const double (&b)[2]) {
#pragma unroll
  for (int k = 0; k < 2; ++k) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
                   : "+d"(d[2 * row]), "+d"(d[2 * row + 1])
                   : "d"(a[2 * k + row]), "d"(b[k]));
    }
  }
}
#endif

// The 11 leading bits of v, rounded to nearest; v - leading(v) has at most 12, of which the tensor cores read 11.
__device__ __forceinline__ float leading(float v) {
  return __uint_as_float((__float_as_uint(v) + 0x1000u) & 0xffffe000u);
}

// d += a b as float32 (float64) would. EXACT: b is exact in TF32. NaN stays NaN, an infinity becomes NaN. The sums of
// eight are added to d by ordinary additions, for the tensor cores cut a sum off where an addition rounds it: over
// hundreds of channels that would show.
template <bool EXACT>
__device__ __forceinline__ void multiply(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
  float high[4], low[4], b_high[2], b_low[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) high[i] = leading(a[i]), low[i] = a[i] - high[i];
#pragma unroll
  for (int i = 0; i < 2; ++i) b_high[i] = EXACT ? b[i] : leading(b[i]), b_low[i] = b[i] - b_high[i];
  float sum[4] = {};
  tensor_product(sum, low, b_high);
  if constexpr (!EXACT) tensor_product(sum, high, b_low);
  tensor_product(sum, high, b_high);
#pragma unroll
  for (int i = 0; i < 4; ++i) d[i] += sum[i];
}
template <bool EXACT>
__device__ __forceinline__ void multiply(double (&d)[4], const double (&a)[4], const double (&b)[2]) {
  tensor_product(d, a, b);
}

template <typename T>
constexpr bool kExact = sizeof(T) == 2;

// Over the lanes that hold one row of d, or one pair of its columns.
template <typename A>
__device__ __forceinline__ A max_of_row(A v) {
  v = fmax(v, __shfl_xor_sync(0xffffffffu, v, 1));
  return fmax(v, __shfl_xor_sync(0xffffffffu, v, 2));
}
template <typename A>
__device__ __forceinline__ A sum_of_row(A v) {
  v += __shfl_xor_sync(0xffffffffu, v, 1);
  return v + __shfl_xor_sync(0xffffffffu, v, 2);
}
template <typename A>
__device__ __forceinline__ A max_of_column(A v) {
#pragma unroll
  for (int lanes = 4; lanes < 32; lanes *= 2) v = fmax(v, __shfl_xor_sync(0xffffffffu, v, lanes));
  return v;
}
template <typename A>
__device__ __forceinline__ A sum_of_column(A v) {
#pragma unroll
  for (int lanes = 4; lanes < 32; lanes *= 2) v += __shfl_xor_sync(0xffffffffu, v, lanes);
  return v;
}

template <typename A>
__device__ __forceinline__ A minus_infinity() {
  return -static_cast<A>(INFINITY);
}

// --- what lies where in shared memory, and how the positions are cut ---
struct Plan {
  int channels[2];  // of the two maps
  int width[2];     // of a panel of each map: all channels if `resident`
  int panels[2];    // number of panels
  bool resident;
  // in elements of the accumulation type, from the start of the shared memory
  int stride[2];  // of a panel of each map
  int tile[2];    // (kTile, stride)
  int first[2];   // rows that give logits (16 k_tiles, stride)
  int second[2];  // rows that give gradients of the maps, or results
  int coef;       // two sets of coefficients (16 k_tiles, kCoefStride)
  int extra;      // what else a kernel wants
  int64_t bytes;
  int maps;        // K
  int k_tiles;     // products along K in a block
  int pixels;      // H*W
  int chunk;       // positions of a block, a multiple of kTile
  int chunks;      // blocks along the positions of one image
  int64_t blocks;  // batch * chunks
  bool channels_last;
  bool vector;  // pointers and sizes allow accesses of four elements
};

struct RowSets {
  bool first[2], second[2];
};

// Positions of a block.
inline int64_t chunk_of(int64_t batch, int64_t pixels) {
  const int64_t tiles = ceil_div<int64_t>(pixels, kTile);
  const int64_t most = ceil_div<int64_t>(tiles, kLeastTiles);
  int64_t chunks = kReduceBlocks / batch;
  chunks = chunks < 1 ? 1 : (chunks > most ? most : chunks);
  return ceil_div(tiles, chunks) * kTile;
}
// Blocks along the positions of all images: the number of partial sums.
inline int64_t blocks_of(int64_t batch, int64_t pixels) {
  return batch * ceil_div<int64_t>(pixels, chunk_of(batch, pixels));
}

// All of batch, pixels, maps >= 1. `k_tiles`: products along K in one block. `extra`: elements. The number of chunks,
// hence the size of the partial sums, depends on batch and pixels alone.
template <typename A>
Plan make_plan(int64_t batch, int64_t c0, int64_t c1, int64_t pixels, int64_t maps, int k_tiles, RowSets rows,
               int64_t extra) {
  Plan p{};
  p.channels[0] = static_cast<int>(c0), p.channels[1] = static_cast<int>(c1);
  p.maps = static_cast<int>(maps), p.k_tiles = k_tiles, p.pixels = static_cast<int>(pixels);
  const int height = kMaps * k_tiles;
  for (const bool resident : {true, false}) {
    p.resident = resident;
    int64_t at = 0;
    int64_t most = 0;
    for (int side = 0; side < 2; ++side) {
      p.width[side] = resident ? p.channels[side] : kPanel<A>;
      p.panels[side] = p.width[side] > 0 ? ceil_div(p.channels[side], p.width[side]) : 0;
      if (!resident) at = 0;  // one place for all panels
      const int64_t stride = round_up<int64_t>(p.width[side], 8) + 4;
      p.stride[side] = static_cast<int>(stride);
      p.tile[side] = static_cast<int>(at), at += kTile * stride;
      p.first[side] = static_cast<int>(at), at += (resident && !rows.first[side]) ? 0 : height * stride;
      p.second[side] = static_cast<int>(at), at += (resident && !rows.second[side]) ? 0 : height * stride;
      most = at > most ? at : most;
      if (at > (int64_t{1} << 30)) break;
    }
    p.coef = static_cast<int>(most), most += 2 * height * kCoefStride;
    p.extra = static_cast<int>(most), most += extra;
    p.bytes = most * static_cast<int64_t>(sizeof(A));
    if (p.bytes <= kMostShared) break;
  }
  p.chunk = static_cast<int>(chunk_of(batch, pixels));
  p.chunks = static_cast<int>(ceil_div<int64_t>(pixels, p.chunk));
  p.blocks = batch * p.chunks;
  return p;
}

// Of a pair in the arguments of a kernel. (An index would make the compiler copy the arguments to the stack.)
template <typename V>
__device__ __forceinline__ V of_side(const V (&pair)[2], int side) {
  return side == 0 ? pair[0] : pair[1];
}

// A panel of one map.
struct Panel {
  int side, channels;  // of the whole map
  int c0, width;       // channels [c0, c0 + width) exist
  int tiles;           // of 8 channels
  int first_tile;      // number of its first tile among those of both maps
  int stride;
  int tile, first, second;  // places in shared memory
};

__device__ __forceinline__ Panel panel_at(const Plan& p, int i) {
  Panel panel;
  const int side = i < p.panels[0] ? 0 : 1;
  const int width = of_side(p.width, side);
  panel.side = side;
  panel.channels = of_side(p.channels, side);
  panel.c0 = (side == 0 ? i : i - p.panels[0]) * width;
  panel.width = panel.channels - panel.c0 < width ? panel.channels - panel.c0 : width;
  panel.tiles = (panel.width + 7) / 8;
  panel.first_tile = panel.c0 / 8 + (side == 0 ? 0 : (p.channels[0] + 7) / 8);
  panel.stride = of_side(p.stride, side);
  panel.tile = of_side(p.tile, side);
  panel.first = of_side(p.first, side);
  panel.second = of_side(p.second, side);
  return panel;
}

// --- memory <-> shared memory ---

// 4 positions x 4 channels of a thread in a walk over a panel: which, and how many there are.
struct Quads {
  int across, total;
  bool channels_last;
  __device__ __forceinline__ Quads(const Plan& p, const Panel& panel)
      : across(panel.tiles * 2), channels_last(p.channels_last) {
    total = channels_last ? across * (kTile / 4) : (across + 3) / 4 * kTile;
  }
  // lanes side by side have neighbouring channels, or neighbouring positions of four rows of channels
  __device__ __forceinline__ int channel(int i) const {
    return 4 * (channels_last ? i % across : i / kTile * 4 + i % 4);
  }
  __device__ __forceinline__ int position(int i) const {
    return 4 * (channels_last ? i / across : i / 4 % (kTile / 4));
  }
};

// tile (kTile, stride) <- positions [p0, p0 + kTile) of a panel of one image of `map`; 0 where there is nothing.
template <typename T>
__device__ __forceinline__ void stage_tile(const Plan& plan, const Panel& panel, const T* map, int image, int p0,
                                           acc_t<T>* tile) {
  using A = acc_t<T>;
  const int channels = panel.channels, stride = panel.stride;
  const int positions = plan.pixels - p0, width = panel.width;
  // element (p, c) of the panel lies at p * step_p + c * step_c
  const int64_t step_p = plan.channels_last ? channels : 1, step_c = plan.channels_last ? 1 : plan.pixels;
  const T* base = map + static_cast<int64_t>(image) * channels * plan.pixels + p0 * step_p + panel.c0 * step_c;
  const Quads quads(plan, panel);
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < quads.total; i += kAttentionThreads) {
    const int c = quads.channel(i), p = quads.position(i);
    if (c >= panel.tiles * 8) continue;
    const T* from = base + p * step_p + c * step_c;
    A* to = tile + p * stride + c;
    if (plan.vector) {
      // four vectors: of a position each if channels_last, of a channel each if contiguous
      Words<T, 4> words[4];
      const int64_t step = plan.channels_last ? step_p : step_c;
      const int there = c >= width || p >= positions ? 0 : plan.channels_last ? positions - p : width - c;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (j < there) {
          words[j] = load_words<T, 4, Cache::kOnce>(from + j * step);
        } else {
#pragma unroll
          for (int n = 0; n < static_cast<int>(sizeof(T)); ++n) words[j].w[n] = 0;
        }
      }
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        Words<A, 4> row;
#pragma unroll
        for (int k = 0; k < 4; ++k) row.set(k, plan.channels_last ? words[u].get(k) : words[k].get(u));
        store_words<A, 4>(to + u * stride, row);
      }
    } else {
#pragma unroll 1
      for (int u = 0; u < 4; ++u) {
        Words<A, 4> row;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          row.set(k, p + u < positions && c + k < width ? to_acc(__ldg(from + u * step_p + k * step_c)) : A(0));
        }
        store_words<A, 4>(to + u * stride, row);
      }
    }
  }
}

// The way back: what exists of the tile goes to one image of `map`.
template <typename T>
__device__ __forceinline__ void unstage_tile(const Plan& plan, const Panel& panel, T* map, int image, int p0,
                                             const acc_t<T>* tile) {
  using A = acc_t<T>;
  const int channels = panel.channels, stride = panel.stride;
  const int positions = plan.pixels - p0, width = panel.width;
  const int64_t step_p = plan.channels_last ? channels : 1, step_c = plan.channels_last ? 1 : plan.pixels;
  T* base = map + static_cast<int64_t>(image) * channels * plan.pixels + p0 * step_p + panel.c0 * step_c;
  const Quads quads(plan, panel);
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < quads.total; i += kAttentionThreads) {
    const int c = quads.channel(i), p = quads.position(i);
    if (c >= width || p >= positions) continue;
    const A* from = tile + p * stride + c;
    T* to = base + p * step_p + c * step_c;
    if (plan.vector) {
      Words<A, 4> rows[4];
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        const A* row = from + u * stride;
        rows[u].set(0, row[0]), rows[u].set(1, row[1]), rows[u].set(2, row[2]), rows[u].set(3, row[3]);
      }
      const int64_t step = plan.channels_last ? step_p : step_c;
      const int there = plan.channels_last ? positions - p : width - c;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        Words<T, 4> words;
#pragma unroll
        for (int k = 0; k < 4; ++k) words.set(k, plan.channels_last ? rows[j].get(k) : rows[k].get(j));
        if (j < there) store_words<T, 4>(to + j * step, words);
      }
    } else {
#pragma unroll 1
      for (int u = 0; u < 4; ++u) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (p + u < positions && c + k < width) to[u * step_p + k * step_c] = from_acc<T>(from[u * stride + k]);
        }
      }
    }
  }
}

// rows (16 k_tiles, stride) <- rows [k0, ..) of matrix (maps, channels), the panel's channels; 0 where there is
// nothing.
template <typename A>
__device__ __forceinline__ void stage_rows(const Plan& plan, const Panel& panel, const A* matrix, int k0, A* rows) {
  const int stride = panel.stride, channels = panel.channels;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int row = static_cast<int>(threadIdx.x) / 32; row < kMaps * plan.k_tiles; row += kWarps) {
    const A* p = matrix + static_cast<int64_t>(k0 + row) * channels + panel.c0;
#pragma unroll 1
    for (int c = lane; c < panel.tiles * 8; c += 32) {
      rows[row * stride + c] = k0 + row < plan.maps && c < panel.width ? __ldg(p + c) : A(0);
    }
  }
}

// --- the three products ---

// first += first_rows tile^T and second += second_rows tile^T for the 8 positions of the warp, as fragments d: row =
// map, column = position.
template <bool FIRST, bool SECOND, bool EXACT, int KT, typename A>
__device__ __forceinline__ void project_some(A (&first)[KT][4], A (&second)[KT][4], const A* first_rows,
                                             const A* second_rows, const A* tile, int stride, int steps, int k_tiles,
                                             const Lane& lane) {
  const A* x = tile + (lane.warp * 8 + lane.group) * stride + lane.member;
  const int at = lane.group * stride + lane.member;
#pragma unroll(KT > 1 || (FIRST && SECOND) ? 1 : 2)
  for (int step = 0; step < steps; ++step) {
    const int c = step * 8;
    const A b[2] = {x[c], x[c + 4]};
#pragma unroll
    for (int kt = 0; kt < KT; ++kt) {
      if (KT > 1 && kt >= k_tiles) continue;
      const int row = at + kt * kMaps * stride + c;
      if constexpr (FIRST) {
        const A* r = first_rows + row;
        const A a[4] = {r[0], r[8 * stride], r[4], r[8 * stride + 4]};
        multiply<EXACT>(first[kt], a, b);
      }
      if constexpr (SECOND) {
        const A* r = second_rows + row;
        const A a[4] = {r[0], r[8 * stride], r[4], r[8 * stride + 4]};
        multiply<EXACT>(second[kt], a, b);
      }
    }
  }
}

// Stages the tiles at p0 and projects them: side 1 on its first rows, side 0 on those that FIRST0 and SECOND0 say
// (none: side 0 is not read), from the rows of product kt0 on. If the plan is resident, the tiles stay (and are there
// already if kt0 > 0), and so do the rows; else stage_panel_rows(panel) brings the rows of a panel. after(panel, tile)
// sees each tile.
template <bool FIRST0, bool SECOND0, typename T, int KT, typename StageRows, typename After>
__device__ __forceinline__ void project_tiles(acc_t<T> (&first)[KT][4], acc_t<T> (&second)[KT][4], const Plan& plan,
                                              const T* const (&map)[2], int image, int p0, int kt0, acc_t<T>* shared,
                                              const Lane& lane, const StageRows& stage_panel_rows, const After& after) {
  const int panels = plan.panels[0] + plan.panels[1];
  const int from = FIRST0 || SECOND0 ? 0 : plan.panels[0];
  if (plan.resident && kt0 == 0) {
    __syncthreads();  // the tiles before are no longer needed
    for (int i = from; i < panels; ++i) {
      const Panel panel = panel_at(plan, i);
      stage_tile(plan, panel, of_side(map, panel.side), image, p0, shared + panel.tile);
    }
    __syncthreads();
  }
  for (int i = from; i < panels; ++i) {
    const Panel panel = panel_at(plan, i);
    acc_t<T>* tile = shared + panel.tile;
    if (!plan.resident) {
      __syncthreads();
      stage_tile(plan, panel, of_side(map, panel.side), image, p0, tile);
      stage_panel_rows(panel);
      __syncthreads();
    }
    const int stride = panel.stride;
    const acc_t<T>* first_rows = shared + panel.first + kt0 * kMaps * stride;
    const acc_t<T>* second_rows = shared + panel.second + kt0 * kMaps * stride;
    const int k_tiles = plan.k_tiles - kt0;
    if (panel.side == 1) {
      project_some<true, false, kExact<T>>(first, second, first_rows, second_rows, tile, stride, panel.tiles, k_tiles,
                                           lane);
    } else {
      project_some<FIRST0, SECOND0, kExact<T>>(first, second, first_rows, second_rows, tile, stride, panel.tiles,
                                               k_tiles, lane);
    }
    after(panel, tile);
  }
}

// sums (16, 8) of the channel tiles group_tile + j * kWarps + warp, as fragments d: row = map, column = channel.
// coef (16, kCoefStride).
template <int TPW, bool EXACT, typename A>
__device__ __forceinline__ void accumulate(A (&sums)[TPW][4], const A* coef, const A* tile, const Panel& panel,
                                           int stride, int group_tile, const Lane& lane) {
#pragma unroll
  for (int q = 0; q < kTile; q += 8) {
    const int p = q + 2 * lane.member;
    const A* c = coef + lane.group * kCoefStride + p;
    const A a[4] = {c[0], c[8 * kCoefStride], c[1], c[8 * kCoefStride + 1]};
    const A* x = tile + p * stride + lane.group;
#pragma unroll
    for (int j = 0; j < TPW; ++j) {
      const int t = group_tile + j * kWarps + lane.warp - panel.first_tile;
      if (t < 0 || t >= panel.tiles) continue;
      const A b[2] = {x[t * 8], x[stride + t * 8]};
      multiply<EXACT>(sums[j], a, b);
    }
  }
}

// part of `blend`: out (16 x 2, 8 x 2) += coef^T rows for the channel tiles `t` and `t + 1` (if TWO)
template <typename A>
__device__ __forceinline__ void blend_some(A (&out)[2][2][4], const A* coef, const A* rows, int stride, int steps,
                                           int t, bool two, const Lane& lane) {
  for (int step = 0; step < steps; ++step) {
    const int k = step * 8 + 2 * lane.member;
    const A* r = rows + k * stride + t * 8 + lane.group;
    const A b[2][2] = {{r[0], r[stride]}, {two ? r[8] : A(0), two ? r[stride + 8] : A(0)}};
    const A* c = coef + k * kCoefStride + lane.group;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const A a[4] = {c[m * 16], c[m * 16 + 8], c[kCoefStride + m * 16], c[kCoefStride + m * 16 + 8]};
      multiply<false>(out[0][m], a, b[0]);
      multiply<false>(out[1][m], a, b[1]);
    }
  }
}
static_assert(kTile == 32, "blend makes two fragments of 16 positions");

// tile (kTile, stride) = coef1^T rows1 + coef2^T rows2 + scale * add, the second product and `add` (a value per
// channel of the panel) only where given.
template <typename A>
__device__ __forceinline__ void blend(A* tile, const A* coef1, const A* rows1, const A* coef2, const A* rows2,
                                      const A* add, A scale, const Plan& plan, const Panel& panel, const Lane& lane) {
  const int stride = panel.stride;
  const int left = plan.maps < kMaps * plan.k_tiles ? plan.maps : kMaps * plan.k_tiles;
  const int steps = (left + 7) / 8;
  for (int t = 2 * lane.warp; t < panel.tiles; t += 2 * kWarps) {
    const bool two = t + 1 < panel.tiles;
    A out[2][2][4] = {};
    blend_some(out, coef1, rows1, stride, steps, t, two, lane);
    if (coef2 != nullptr) blend_some(out, coef2, rows2, stride, steps, t, two, lane);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      if (n == 1 && !two) continue;
      const int c = (t + n) * 8 + 2 * lane.member;
      A more[2] = {A(0), A(0)};
      if (add != nullptr) {
#pragma unroll
        for (int i = 0; i < 2; ++i) more[i] = c + i < panel.width ? __ldg(add + panel.c0 + c + i) * scale : A(0);
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          tile[(m * 16 + lane.group + 8 * (i / 2)) * stride + c + i % 2] = out[n][m][i] + more[i % 2];
        }
      }
    }
  }
}

// coef (16 k_tiles, kCoefStride) <- fragments d of the warp's 8 positions
template <int KT, typename A>
__device__ __forceinline__ void store_coef(A* coef, const A (&d)[KT][4], int k_tiles, const Lane& lane) {
#pragma unroll
  for (int kt = 0; kt < KT; ++kt) {
    if (KT > 1 && kt >= k_tiles) continue;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      coef[(kt * kMaps + lane.group + 8 * (i / 2)) * kCoefStride + lane.warp * 8 + 2 * lane.member + i % 2] = d[kt][i];
    }
  }
}

// sums -> partial (maps, channels) of the block, for the maps [k0, k0 + 16)
template <int TPW, typename A>
__device__ __forceinline__ void store_sums(const A (&sums)[TPW][4], A* partial0, A* partial1, const Plan& plan, int k0,
                                           int group_tile, const Lane& lane) {
  const int tiles0 = (plan.channels[0] + 7) / 8;
#pragma unroll
  for (int j = 0; j < TPW; ++j) {
    const int t = group_tile + j * kWarps + lane.warp;
    const bool left = t < tiles0;
    A* partial = left ? partial0 : partial1;
    const int channels = left ? plan.channels[0] : plan.channels[1];
    if (partial == nullptr) continue;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int k = k0 + lane.group + 8 * (i / 2), c = (left ? t : t - tiles0) * 8 + 2 * lane.member + i % 2;
      if (k < plan.maps && c < channels) partial[static_cast<int64_t>(k) * channels + c] = sums[j][i];
    }
  }
}

// softmax over the maps of fragments d, in place; rows that are no maps become 0. Columns of no position are softmaxes
// of zeros: they meet zeros of the tile.
template <int KT, typename A>
__device__ __forceinline__ void softmax_of_columns(A (&d)[KT][4], int maps, const Lane& lane) {
  A most[2] = {minus_infinity<A>(), minus_infinity<A>()};
#pragma unroll
  for (int kt = 0; kt < KT; ++kt) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (kt * kMaps + lane.group + 8 * (i / 2) < maps) most[i % 2] = fmax(most[i % 2], d[kt][i]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) most[i] = max_of_column(most[i]);
  A sum[2] = {A(0), A(0)};
#pragma unroll
  for (int kt = 0; kt < KT; ++kt) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      d[kt][i] = kt * kMaps + lane.group + 8 * (i / 2) < maps ? exp(d[kt][i] - most[i % 2]) : A(0);
      sum[i % 2] += d[kt][i];
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) sum[i] = A(1) / sum_of_column(sum[i]);
#pragma unroll
  for (int kt = 0; kt < KT; ++kt) {
#pragma unroll
    for (int i = 0; i < 4; ++i) d[kt][i] *= sum[i % 2];
  }
}

// --- the backward of both ops ---
// POOL: side 0 are the features, side 1 the condition; first rows = weights, second rows = gradient of the values;
//   maps a = exp(logits - lse), d = gradient of the maps, D = sum of a d over the positions
//   logits' gradient l = a (d - D);  grad0 = a^T second + l^T first0;  grad1 = l^T first1 + grad_mean / pixels
//   sums0 = l features, sums1 = l condition: the gradients of the weights.
// SPREAD: side 0 is the gradient of the result, side 1 the condition; first rows = weight (side 1 only), second rows =
//   values (side 0 only); maps a = softmax of the logits over K, D = sum of a d over K
//   l = a (d - D);  grad1 = l^T first1;  sums0 = a grad: the gradient of the values; sums1 = l condition.
template <typename T>
struct Backward {
  using A = acc_t<T>;
  Plan plan;
  const T* map[2];       // (B, C, P) or (B, P, C)
  const A* first[2];     // (K, C)
  const A* second;       // (B, K, C0)
  T* grad[2];            // as map, or null
  A* partial[2];         // (blocks, K, C), or null
  int groups, k_splits;  // further blocks per chunk: groups of channel tiles, sixteens of maps
  // POOL only
  const unsigned char* mask;  // (B, P) or null
  const A* values;            // (B, K, C0)
  const A* lse;               // (B, K)
  const A* maps_offset;       // (B, K): sum of a grad_maps, or null
  const T* grad_maps;         // (B, K, P), or null
  const A* grad_mean;         // (B, C1)
  A inverse_pixels;
};

// TPW: channel tiles per warp that are summed (0: none). GX: gradients of the maps are written.
template <typename T, int KT, int TPW, bool GX, bool SPREAD>
__global__ void __launch_bounds__(kAttentionThreads, 4) attention_bwd_kernel(Backward<T> args) {
  using A = acc_t<T>;
  MIXSYN_DYNAMIC_SHARED(raw);
  A* shared = reinterpret_cast<A*>(raw);
  const Plan& plan = args.plan;
  const Lane lane;
  // blocks of one chunk are neighbours, so that all but the first find its positions in L2
  int64_t block = blockIdx.x;
  const int group = static_cast<int>(block % args.groups);
  block /= args.groups;
  const int k_split = static_cast<int>(block % args.k_splits);
  block /= args.k_splits;
  const int image = static_cast<int>(block / plan.chunks);
  const int begin = static_cast<int>(block % plan.chunks) * plan.chunk;
  const int end = plan.pixels - begin < plan.chunk ? plan.pixels : begin + plan.chunk;
  // POOL: the block works on the maps [k0, k0 + 16 KT). SPREAD: on all of them, but sums only those of its split.
  const int k0 = SPREAD ? 0 : k_split * kMaps;
  const int sum_row = SPREAD ? k_split * kMaps : 0;
  const int group_tile = group * TPW * kWarps;
  const int panels = plan.panels[0] + plan.panels[1];
  A* coef_maps = shared + plan.coef;
  A* coef_logits = coef_maps + kMaps * plan.k_tiles * kCoefStride;
  A* offset = shared + plan.extra;  // (16 k_tiles,): D
  const A* second = args.second + static_cast<int64_t>(image) * plan.maps * plan.channels[0];

  const auto stage_all_rows = [&](const Panel& panel) {
    if (!SPREAD || panel.side == 1) {
      stage_rows(plan, panel, of_side(args.first, panel.side), k0, shared + panel.first);
    }
    if (panel.side == 0) stage_rows(plan, panel, second, k0, shared + panel.second);
  };
  if (plan.resident) {
    for (int i = 0; i < panels; ++i) stage_all_rows(panel_at(plan, i));
  }
  if constexpr (!SPREAD) {
    const A* values = args.values + static_cast<int64_t>(image) * plan.maps * plan.channels[0];
    for (int row = lane.warp; row < kMaps * plan.k_tiles; row += kWarps) {
      A sum = A(0);
      const int k = k0 + row;
      if (k < plan.maps) {
        const int64_t at = static_cast<int64_t>(k) * plan.channels[0];
        for (int c = static_cast<int>(threadIdx.x) % 32; c < plan.channels[0]; c += 32) {
          sum += __ldg(second + at + c) * __ldg(values + at + c);
        }
      }
      sum = sum_of_column(sum_of_row(sum));
      if (lane.group == 0 && lane.member == 0) {
        if (args.maps_offset != nullptr && k < plan.maps) sum += __ldg(args.maps_offset + image * plan.maps + k);
        offset[row] = sum;
      }
    }
  }
  A sums[TPW > 0 ? TPW : 1][4] = {};
  for (int p0 = begin; p0 < end; p0 += kTile) {
    if constexpr (SPREAD) {
      A maps[KT][4] = {}, grads[KT][4] = {};
      project_tiles<false, true, T>(maps, grads, plan, args.map, image, p0, 0, shared, lane, stage_all_rows,
                                    [](const Panel&, const A*) {});
      softmax_of_columns(maps, plan.maps, lane);
      A dot[2] = {A(0), A(0)};
#pragma unroll
      for (int kt = 0; kt < KT; ++kt) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (kt * kMaps + lane.group + 8 * (i / 2) < plan.maps) dot[i % 2] += maps[kt][i] * grads[kt][i];
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) dot[i] = sum_of_column(dot[i]);
#pragma unroll
      for (int kt = 0; kt < KT; ++kt) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const bool is_map = kt * kMaps + lane.group + 8 * (i / 2) < plan.maps;
          grads[kt][i] = is_map ? maps[kt][i] * (grads[kt][i] - dot[i % 2]) : A(0);
        }
      }
      store_coef(coef_maps, maps, plan.k_tiles, lane);
      store_coef(coef_logits, grads, plan.k_tiles, lane);
    } else {
#pragma unroll 1
      for (int kt0 = 0; kt0 < plan.k_tiles; kt0 += KT) {
        A logits[KT][4] = {}, grads[KT][4] = {};
        project_tiles<true, true, T>(logits, grads, plan, args.map, image, p0, kt0, shared, lane, stage_all_rows,
                                     [](const Panel&, const A*) {});
        store_coef(coef_maps + kt0 * kMaps * kCoefStride, logits, plan.k_tiles - kt0, lane);
        store_coef(coef_logits + kt0 * kMaps * kCoefStride, grads, plan.k_tiles - kt0, lane);
      }
      // each thread works on what it stored itself
      const int column = lane.warp * 8 + 2 * lane.member, p = p0 + column;
      bool part[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        part[i] = p + i < plan.pixels &&
                  (args.mask == nullptr || __ldg(args.mask + static_cast<int64_t>(image) * plan.pixels + p + i) != 0);
      }
#pragma unroll 1
      for (int row = lane.group; row < kMaps * plan.k_tiles; row += 8) {
        const bool is_map = k0 + row < plan.maps;
        const int64_t at = static_cast<int64_t>(image) * plan.maps + k0 + row;
        const A lse = is_map ? __ldg(args.lse + at) : A(0);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          A* to_map = coef_maps + row * kCoefStride + column + i;
          A* to_logit = coef_logits + row * kCoefStride + column + i;
          const bool used = part[i] && is_map;
          const A map = used ? exp(*to_map - lse) : A(0);
          A direct = A(0);
          if (used && args.grad_maps != nullptr) direct = to_acc(__ldg(args.grad_maps + at * plan.pixels + p + i));
          *to_logit = used ? map * (*to_logit + direct - offset[row]) : A(0);
          *to_map = map;
        }
      }
    }
    if (plan.resident) __syncthreads();
    for (int i = 0; i < panels; ++i) {
      const Panel panel = panel_at(plan, i);
      A* tile = shared + panel.tile;
      T* grad = of_side(args.grad, panel.side);
      const bool writes = GX && grad != nullptr;
      const bool adds = TPW > 0 && of_side(args.partial, panel.side) != nullptr &&
                        panel.first_tile < group_tile + TPW * kWarps && panel.first_tile + panel.tiles > group_tile;
      if (!writes && !adds) continue;
      if (!plan.resident) {
        __syncthreads();
        if (adds) stage_tile(plan, panel, of_side(args.map, panel.side), image, p0, tile);
        if (writes) stage_all_rows(panel);
        __syncthreads();
      }
      if constexpr (TPW > 0) {
        const A* coef = (SPREAD && panel.side == 0 ? coef_maps : coef_logits) + sum_row * kCoefStride;
        if (adds) accumulate<TPW, kExact<T>>(sums, coef, tile, panel, panel.stride, group_tile, lane);
      }
      if constexpr (GX) {
        if (writes) {
          __syncthreads();  // the tile has been read
          const bool values = !SPREAD && panel.side == 0, mean = !SPREAD && panel.side == 1;
          blend(tile, coef_logits, shared + panel.first, values ? coef_maps : nullptr, shared + panel.second,
                mean ? args.grad_mean + static_cast<int64_t>(image) * plan.channels[1] : nullptr, args.inverse_pixels,
                plan, panel, lane);
          __syncthreads();
          unstage_tile(plan, panel, grad, image, p0, tile);
        }
      }
    }
    if (!plan.resident) __syncthreads();  // the coefficients have been read
  }
  if constexpr (TPW > 0) {
    const int64_t row = block * plan.maps;
    A* partial0 = args.partial[0] == nullptr ? nullptr : args.partial[0] + row * plan.channels[0];
    A* partial1 = args.partial[1] == nullptr ? nullptr : args.partial[1] + row * plan.channels[1];
    store_sums(sums, partial0, partial1, plan, k0 + sum_row, group_tile, lane);
  }
}

// What of a Plan the caller knows: the sizes, and how the maps lie in memory.
inline Plan sizes_of(int64_t c0, int64_t c1, int64_t pixels, int64_t maps, bool channels_last, bool vector) {
  Plan p{};
  p.channels[0] = static_cast<int>(c0), p.channels[1] = static_cast<int>(c1);
  p.pixels = static_cast<int>(pixels), p.maps = static_cast<int>(maps);
  p.channels_last = channels_last, p.vector = vector;
  return p;
}

// Whether maps at these pointers can be read four elements at a time.
template <typename... Pointers>
bool four_at_a_time(bool channels_last, int64_t c0, int64_t c1, int64_t pixels, Pointers... maps) {
  bool ok = channels_last ? c0 % 4 == 0 && c1 % 4 == 0 : pixels % 4 == 0;
  for (const void* p : {static_cast<const void*>(maps)...}) ok = ok && aligned16(p);  // null is aligned
  return ok;
}

// Shared memory, chunks and splits of a backward kernel, and its launch. `args` holds all but plan, groups, k_splits.
template <typename T, int KT, int TPW, bool GX, bool SPREAD>
cudaError_t launch_backward(Backward<T>& args, const Plan& like, int64_t batch, cudaStream_t stream) {
  using A = acc_t<T>;
  const int k_tiles = ceil_div(like.maps, kMaps);
  const int tiles = ceil_div(like.channels[0], 8) + ceil_div(like.channels[1], 8);
  args.groups = TPW > 0 && tiles > 0 ? ceil_div(tiles, TPW * kWarps) : 1;
  args.k_splits = TPW > 0 ? k_tiles : 1;
  const int in_block = SPREAD || TPW == 0 ? k_tiles : 1;
  if (SPREAD && in_block > KT) return cudaErrorInvalidValue;
  const RowSets rows{{!SPREAD, true}, {true, false}};
  args.plan =
      make_plan<A>(batch, like.channels[0], like.channels[1], like.pixels, like.maps, in_block, rows, kMostMaps);
  args.plan.channels_last = like.channels_last, args.plan.vector = like.vector;
  const int64_t blocks = args.plan.blocks * args.groups * args.k_splits;
  if (blocks > 0x7fffffffLL) return cudaErrorInvalidConfiguration;
  return launch_shared(attention_bwd_kernel<T, KT, TPW, GX, SPREAD>, dim3(static_cast<unsigned>(blocks)),
                       kAttentionThreads, args.plan.bytes, stream, args);
}

// One kernel where its sums fit into registers and the maps into one product, else one for the maps' gradients and one
// for the sums.
template <typename A>
constexpr int kFusedTiles = sizeof(A) == 8 ? 4 : 6;  // channel tiles per warp: 192 channels (128 of type double)
template <typename A>
constexpr int kSumTiles = sizeof(A) == 8 ? 1 : 4;

template <typename T, bool SPREAD>
cudaError_t run_backward(Backward<T>& args, const Plan& like, int64_t batch, cudaStream_t stream) {
  const bool writes = args.grad[0] != nullptr || args.grad[1] != nullptr;
  const bool adds = args.partial[0] != nullptr || args.partial[1] != nullptr;
  const int tiles = ceil_div(like.channels[0], 8) + ceil_div(like.channels[1], 8);
  constexpr int kTiles = kFusedTiles<acc_t<T>>;
  if (like.maps <= kMaps && tiles <= kTiles * kWarps) {
    return launch_backward<T, 1, kTiles, true, SPREAD>(args, like, batch, stream);
  }
  constexpr int kMost = kMostMaps / kMaps, kSums = kSumTiles<acc_t<T>>;
  if (writes)
    MIXSYN_RETURN_IF_ERROR((launch_backward<T, SPREAD ? kMost : 1, 0, true, SPREAD>(args, like, batch, stream)));
  if (adds) {
    MIXSYN_RETURN_IF_ERROR((launch_backward<T, SPREAD ? kMost : 1, kSums, false, SPREAD>(args, like, batch, stream)));
  }
  return cudaSuccess;
}

}  // namespace mixsyn_fast::kernels

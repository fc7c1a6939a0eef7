// Arguments and entry points of the CPU kernels of region_norm, which are compiled once per instruction set and
// chosen at run time, so one build runs on every machine and uses what it finds.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mixsyn_fast::cpu {

// One problem, shared by all passes. A is the accumulation type of T (double for double, else float).
template <typename T, typename A>
struct RegionNorm {
  int64_t batch = 0, channels = 0, pixels = 0;  // pixels = H * W
  int64_t groups = 1;                           // G: 1 or batch
  int64_t rows = 0;                             // R
  int64_t image_row = 0;                        // without index, the row of image b is b * image_row: 0 or 1
  const T* x = nullptr;                         // (B, C, H, W) in either layout
  const A* mean = nullptr;                      // (G, C), zeros where nothing is normalised
  const A* rstd = nullptr;                      // (G, C), ones where nothing is normalised
  const int32_t* index = nullptr;               // (B, H*W)
  const A* table = nullptr;                     // (R, 2C) in channels_last, its transpose (2C, R) in contiguous layout
  const int32_t* block_row = nullptr;  // contiguous layout: (B, blocks of 64 / sizeof(A) pixels): their one row, or -1
  const T* scale = nullptr;            // as x, or null
  const T* shift = nullptr;            // as x, or null
  const T* noise = nullptr;            // (B, H*W), or null
  const A* noise_scale = nullptr;      // (C), or null
  A slope = 1;                         // of LeakyReLU; 1 without activation
  bool silu = false;                   // SiLU in its place
  T* y = nullptr;                      // as x
  // backward
  const T* grad = nullptr;  // as x
  A* grad_table = nullptr;  // (splits, R, 2C) in channels_last, (splits, 2C, R) in contiguous layout; zeroed
  A* sums = nullptr;        // (splits, G, 2, C): sum ghat, sum ghat * xhat; zeroed. backward_planes: (B, C, 2), of g'
  int64_t splits = 1;
  const A* mean_g = nullptr;   // (G, C): sum_g / count, zeros where statistics are constants
  const A* mean_gx = nullptr;  // (G, C): sum_gx / count
  T* grad_x = nullptr;         // as x
  T* grad_scale = nullptr;     // as x, or null
  T* grad_shift = nullptr;     // as x, or null
  int64_t chunk = 1;           // pixels per item of input_chunks
  A* noise_sums = nullptr;  // (items, C) in channels_last, (B, C) in contiguous layout: sums of grad_x * noise, or null
};

// Pixels per work item of the statistics and per block of the reductions; fixed, so that the order of sums does not depend on threads.
constexpr int64_t kPixelChunk = 1024;
// Channels per item of the statistics in channels_last, in lines of 64 bytes.
constexpr int64_t kTileLines = 4;

template <typename T, typename A>
struct RegionNormKernels {
  // channels_last; an item is (pixel chunk, channel tile), channel tiles adjacent
  void (*stats_tiles)(const RegionNorm<T, A>&, A* partial_mean, A* partial_m2, int64_t begin, int64_t end);
  void (*apply_pixels)(const RegionNorm<T, A>&, int64_t begin, int64_t end);
  void (*reduce_tiles)(const RegionNorm<T, A>&, int64_t tile_channels, int64_t begin, int64_t end);
  void (*input_chunks)(const RegionNorm<T, A>&, int64_t begin, int64_t end);
  // contiguous; an item is one (image, channel) plane, or one channel for reduce_planes
  void (*stats_planes)(const RegionNorm<T, A>&, A* mean, A* m2, int64_t begin, int64_t end);
  void (*apply_planes)(const RegionNorm<T, A>&, int64_t begin, int64_t end);
  void (*reduce_planes)(const RegionNorm<T, A>&, int64_t begin, int64_t end);
  void (*input_planes)(const RegionNorm<T, A>&, int64_t begin, int64_t end);
  // both passes of an even problem; an item is `shared` planes whose statistics are those of `count` values
  void (*backward_planes)(const RegionNorm<T, A>&, int64_t shared, A count, int64_t begin, int64_t end);
};

MIXSYN_CPU_KERNELS(RegionNormKernels, region_norm_kernels)

}  // namespace mixsyn_fast::cpu

// Arguments and entry points of the CPU kernels of masked_roi_pool, compiled once per instruction set and chosen at run time.
#pragma once

#include <cstdint>
#include <vector>

#include "isa.h"

namespace mixsyn_fast::cpu {

// What all channels of one image share: found once per image, in one pass over its labels.
struct RoiPlan {
  std::vector<int32_t> row;     // (pixels): row of the tables; the last row collects the pixels of no region
  std::vector<int32_t> block;   // (blocks of 64 / sizeof(A) pixels): their one row, or -1
  std::vector<int32_t> row_of;  // (K): row of a region, or -1 where it is absent
  std::vector<int32_t> first;   // (splits, rows): first pixel of the row inside the split, or -1
  std::vector<int64_t> area;    // (rows)
  int64_t rows = 0;             // regions present, and one
};

template <typename T, typename A>
struct RoiPool {
  int64_t batch = 0, channels = 0, pixels = 0, regions = 0;
  bool maximum = true;
  const T* x = nullptr;            // (B, C, H, W) in either layout
  const RoiPlan* plans = nullptr;  // (B)
  int64_t splits = 1;              // parts of the pixels of an image, fixed by the shape
  int64_t split_pixels = 0;        // a multiple of the pixels of a block
  int64_t tile = 0, tiles = 0;     // channels per item
  // Tables of all items; item (image, tile, split) begins at table_begin[image] + (tile * splits + split) * rows * tile.
  const int64_t* table_begin = nullptr;
  A* table = nullptr;           // (rows, tile): maximum or sum
  int32_t* where = nullptr;     // (rows, tile): position of the maximum, -1 where the split has no pixel of the row
  T* pooled = nullptr;          // (B, K, C)
  int32_t* position = nullptr;  // (B, K, C), or null for the mean
};

// Channels per item of a channels_last pass, in lines of 64 bytes; a contiguous pass has one (it transposes blocks).
constexpr int64_t kRoiLines = 4;

template <typename T, typename A>
struct RoiPoolKernels {
  // Items: (image, tile, split), splits adjacent.
  void (*pool_last)(const RoiPool<T, A>&, int64_t begin, int64_t end);
  void (*pool_first)(const RoiPool<T, A>&, int64_t begin, int64_t end);
};

MIXSYN_CPU_KERNELS(RoiPoolKernels, masked_roi_pool_kernels)

}  // namespace mixsyn_fast::cpu

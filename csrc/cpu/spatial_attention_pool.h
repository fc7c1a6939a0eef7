// Arguments and entry points of the CPU kernels of spatial_attention_pool, compiled once per instruction set.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mixsyn_fast::cpu {

// One problem. A is the accumulation type of T (double for double, else float). K maps, N features, M conditions; Kp, Np, Mp
// are these padded with zeros to whole vectors of 64 bytes. "Parts" are chunks of positions of one image, fixed by the shape.
template <typename T, typename A>
struct SpatialAttentionPool {
  int64_t batch = 0, features = 0, conditions = 0, maps = 0, pixels = 0;
  int64_t chunk = 1, chunks = 0;  // positions per part, parts per image
  int64_t tile = 16;              // positions per tile, which lies in the cache
  bool channels_last = false;
  const T* feature = nullptr;         // (B, N, H*W), or (B, H*W, N) in channels_last
  const T* condition = nullptr;       // as feature, M
  const uint8_t* mask = nullptr;      // (B, H*W), or null
  const A* weight_rows = nullptr;     // (K, N + M), contiguous layout
  const A* weight_columns = nullptr;  // (N + M, Kp), channels_last
  // forward, per part: running maximum and sum (Kp), sums of the features (N, Kp) or, in channels_last, (K, Np), and of
  // the condition: (M, lanes) or (Mp)
  A* part_max = nullptr;
  A* part_sum = nullptr;
  A* part_values = nullptr;
  A* part_condition = nullptr;
  A* logits = nullptr;  // (B, K, H*W), or null
  // backward
  const A* lse = nullptr;             // (B, Kp), zero in the padding
  const A* offset = nullptr;          // (B, Kp): D of the formula
  const T* grad_maps = nullptr;       // (B, K, H*W), or null
  const A* both_rows = nullptr;       // contiguous: (B, 2K, N): weight_features, then grad_values
  const A* both_columns = nullptr;    // channels_last: (B, N, 2Kp): the transposes of the two, side by side
  const A* back_rows = nullptr;       // contiguous: (B, N, 2K): transposed grad_values, then transposed weight_features
  const A* back_columns = nullptr;    // channels_last: (B, 2Kp, Np): grad_values, then weight_features
  const A* condition_rows = nullptr;  // contiguous: (B, M, K + 1): transposed weight_condition, and the mean's gradient
  const A* condition_columns = nullptr;  // channels_last: (K, Mp)
  const A* condition_bias = nullptr;     // channels_last: (B, Mp): the mean's gradient divided by H*W
  T* grad_feature = nullptr;             // as feature, or null
  T* grad_condition = nullptr;           // as condition, or null
  A* part_offset = nullptr;              // per part (Kp): sums of maps * grad_maps
  A* part_weight_features = nullptr;     // per part (K, Np) or, contiguous, (N, Kp); zeroed; or null
  A* part_weight_condition = nullptr;    // per part (K, Mp) or (M, Kp); zeroed; or null
};

template <typename T, typename A>
struct SpatialAttentionPoolKernels {
  // elements of A that one thread needs, 64-byte aligned
  int64_t (*scratch)(const SpatialAttentionPool<T, A>&);
  // items are parts
  void (*forward)(const SpatialAttentionPool<T, A>&, A* scratch, int64_t begin, int64_t end);
  void (*offsets)(const SpatialAttentionPool<T, A>&, A* scratch, int64_t begin, int64_t end);
  void (*backward)(const SpatialAttentionPool<T, A>&, A* scratch, int64_t begin, int64_t end);
  // items are rows (image, map): exp(logits - lse) to maps, which may be the same memory
  void (*normalise)(const A* logits, const A* lse, T* maps, int64_t pixels, int64_t begin, int64_t end);
};

MIXSYN_CPU_KERNELS(SpatialAttentionPoolKernels, spatial_attention_pool_kernels)

}  // namespace mixsyn_fast::cpu

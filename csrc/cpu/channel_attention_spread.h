// Arguments and entry points of the CPU kernels of channel_attention_spread, compiled once per instruction set.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mixsyn_fast::cpu {

// One problem. A is the accumulation type of T (double for double, else float). K maps, N features, M conditions; Kp, Np, Mp
// are these padded with zeros to whole vectors of 64 bytes. "Parts" are chunks of positions of one image, fixed by the shape.
template <typename T, typename A>
struct ChannelAttentionSpread {
  int64_t batch = 0, features = 0, conditions = 0, maps = 0, pixels = 0;
  int64_t chunk = 1, chunks = 0;  // positions per part, parts per image
  int64_t tile = 16;              // positions per tile, which lies in the cache
  bool channels_last = false;
  const T* condition = nullptr;       // (B, M, H*W), or (B, H*W, M) in channels_last
  const A* weight_rows = nullptr;     // (K, M): logits of the contiguous layout
  const A* weight_columns = nullptr;  // (M, Kp): logits of channels_last
  const A* value_rows = nullptr;      // contiguous: (B, N, K), transposed values
  const A* value_columns = nullptr;   // channels_last: (B, K, Np)
  T* result = nullptr;                // (B, N, H*W), or (B, H*W, N) in channels_last
  // backward
  const T* grad = nullptr;               // as result
  const A* grad_rows = nullptr;          // contiguous: (B, K, N), the values as they are
  const A* grad_columns = nullptr;       // channels_last: (B, N, Kp), transposed values
  const A* condition_rows = nullptr;     // contiguous: (M, K), transposed weight
  const A* condition_columns = nullptr;  // channels_last: (K, Mp)
  T* grad_condition = nullptr;           // as condition, or null
  A* part_values = nullptr;              // per part (K, Np) or, contiguous, (N, Kp); zeroed; or null
  A* part_weight = nullptr;              // per part (K, Mp) or (M, Kp); zeroed; or null
};

template <typename T, typename A>
struct ChannelAttentionSpreadKernels {
  // elements of A that one thread needs, 64-byte aligned
  int64_t (*scratch)(const ChannelAttentionSpread<T, A>&);
  // items are parts
  void (*forward)(const ChannelAttentionSpread<T, A>&, A* scratch, int64_t begin, int64_t end);
  void (*backward)(const ChannelAttentionSpread<T, A>&, A* scratch, int64_t begin, int64_t end);
};

MIXSYN_CPU_KERNELS(ChannelAttentionSpreadKernels, channel_attention_spread_kernels)

}  // namespace mixsyn_fast::cpu

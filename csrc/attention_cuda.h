// What the torch sides of the two attention ops on CUDA share: checks of maps and operands.
#pragma once

#include "check.h"
#include "cuda_torch.h"

namespace mixsyn_fast {

inline void check_maps(const char* op, const char* argument, int64_t maps) {
  MIXSYN_CHECK(maps >= 1 && maps <= 64, op, argument, "1 to 64 rows", maps);
}

// Positions are counted by 32-bit integers, with room for a tile; elements are not. The means of the condition's
// channels are added up in shared memory.
inline void check_sizes(const char* op, const char* argument, const Tensor& map) {
  MIXSYN_CHECK(map.size(2) * map.size(3) <= (int64_t{1} << 30), op, argument, "at most 2^30 positions",
               map.size(2) * map.size(3));
  MIXSYN_CHECK(map.size(1) <= 4096, op, argument, "at most 4096 channels", map.size(1));
}

// A dense tensor of a given type on the device of `like`.
inline void check_operand(const char* op, const char* argument, const Tensor& t, ScalarType dtype, const Tensor& like) {
  check_dtype(op, argument, t, dtype);
  check_same_device(op, argument, t, like);
  MIXSYN_CHECK(t.is_contiguous(), op, argument, "contiguous memory", "other strides");
}

inline bool is_channels_last(const Tensor& map) {
  return map.numel() == 0 || layout_of(map) == Layout4d::kChannelsLast;
}

// Whether two maps are read as channels_last: a map may be both that and contiguous, then the other one decides, and
// contiguous if that is both, too.
inline bool common_channels_last(const char* op, const char* argument, const Tensor& map, const char* other_argument,
                                 const Tensor& other) {
  const bool contiguous = map.is_contiguous(), other_contiguous = other.is_contiguous();
  if (contiguous && other_contiguous) return false;
  if (is_channels_last(map) && is_channels_last(other)) return true;
  MIXSYN_CHECK(contiguous || is_channels_last(map), op, argument, "contiguous or channels_last memory",
               "other strides");
  MIXSYN_CHECK(false, op, other_argument, contiguous ? "contiguous memory" : "channels_last memory", "other strides");
  return true;
}

// What a launcher takes for an output that is not needed: null.
inline void* data_unless_empty(const Tensor& t) { return t.numel() == 0 ? nullptr : t.mutable_data_ptr(); }

}  // namespace mixsyn_fast

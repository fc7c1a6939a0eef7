// masked_roi_pool for every processor, in vectors that the compiler splits.
#include "isa.h"
#include "masked_roi_pool.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

namespace mixsyn_fast::cpu::baseline {
#include "vec.inl"

#include "masked_roi_pool.inl"
}  // namespace mixsyn_fast::cpu::baseline

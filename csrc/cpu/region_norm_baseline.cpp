// region_norm for every processor, in vectors that the compiler splits.
#include "isa.h"
#include "region_norm.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

namespace mixsyn_fast::cpu::baseline {
#include "vec.inl"

#include "region_norm.inl"
}  // namespace mixsyn_fast::cpu::baseline

// spatial_attention_pool for every processor, in vectors that the compiler splits.
#include "isa.h"
#include "spatial_attention_pool.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <limits>
#include <type_traits>

namespace mixsyn_fast::cpu::baseline {
#include "vec.inl"

#include "products.inl"

#include "spatial_attention_pool.inl"
}  // namespace mixsyn_fast::cpu::baseline

// channel_attention_spread for every processor, in vectors that the compiler splits.
#include "isa.h"
#include "channel_attention_spread.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <limits>
#include <type_traits>

namespace mixsyn_fast::cpu::baseline {
#include "vec.inl"

#include "products.inl"

#include "channel_attention_spread.inl"
}  // namespace mixsyn_fast::cpu::baseline

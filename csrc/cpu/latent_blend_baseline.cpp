// latent_blend for every processor, in vectors that the compiler splits.
#include "isa.h"
#include "latent_blend.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

namespace mixsyn_fast::cpu::baseline {
#include "vec.inl"

#include "latent_blend.inl"
}  // namespace mixsyn_fast::cpu::baseline

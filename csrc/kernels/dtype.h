// Element types as a run-time value; shared by the launchers' interfaces.
#pragma once

namespace mixsyn_fast::kernels {

enum class DType { kDouble, kFloat, kHalf, kBFloat16 };

}  // namespace mixsyn_fast::kernels

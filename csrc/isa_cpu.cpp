// Run-time choice of the instruction set; see cpu/isa.h.
#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace mixsyn_fast::cpu {
namespace {

InstructionSet choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  const char* wanted = std::getenv("MIXSYN_FAST_CPU");
  InstructionSet most = InstructionSet::avx512;
#define MIXSYN_LOWER(isa, ...) \
  if (wanted && std::strcmp(wanted, #isa) == 0) most = InstructionSet::isa;
  MIXSYN_EACH_ISA(MIXSYN_LOWER)
#define MIXSYN_TAKE(isa, ...) \
  if (InstructionSet::isa <= most && MIXSYN_RUNS_##isa) return InstructionSet::isa;
  MIXSYN_EACH_ISA(MIXSYN_TAKE)
  throw std::runtime_error(
      "mixsyn_fast: the extension was compiled for a processor with other instructions than this one's: "
      "remove it from the cache, and it is compiled anew");
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet chosen = choose();
  return chosen;
}

}  // namespace mixsyn_fast::cpu

// The name of the instruction set in force, for Python; empty where this object has none that this processor runs.
extern "C" __attribute__((visibility("default"))) const char* mixsyn_fast_instruction_set() {
  using namespace mixsyn_fast::cpu;
  try {
    switch (instruction_set()) {
#define MIXSYN_NAME(isa, ...) \
  case InstructionSet::isa:   \
    return #isa;
      MIXSYN_EACH_ISA(MIXSYN_NAME)
      default:
        return "";
    }
  } catch (const std::exception&) {
    return "";
  }
}

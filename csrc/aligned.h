// Scratch memory of the CPU kernels at multiples of 64 bytes: a vector then never straddles two cache lines.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

namespace mixsyn_fast {

struct AlignedDelete {
  void operator()(void* p) const { ::operator delete[](p, std::align_val_t{64}); }
};

// Uninitialised; lives as long as the object.
template <typename A>
using AlignedBuffer = std::unique_ptr<A[], AlignedDelete>;

template <typename A>
AlignedBuffer<A> aligned_buffer(int64_t n) {
  const size_t bytes = static_cast<size_t>(std::max<int64_t>(n, 1)) * sizeof(A);
  return AlignedBuffer<A>(static_cast<A*>(::operator new[](bytes, std::align_val_t{64})));
}

template <typename A>
AlignedBuffer<A> aligned_buffer(int64_t n, A value) {
  AlignedBuffer<A> result = aligned_buffer<A>(n);
  std::fill_n(result.get(), n, value);
  return result;
}

// n rounded up to whole vectors of 64 bytes.
template <typename A>
constexpr int64_t padded(int64_t n) {
  constexpr int64_t lanes = 64 / static_cast<int64_t>(sizeof(A));
  return (n + lanes - 1) / lanes * lanes;
}

}  // namespace mixsyn_fast

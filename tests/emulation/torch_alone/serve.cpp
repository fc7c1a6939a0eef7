// Serves the ops of csrc/ without torch: a call on standard input, its results or its error on standard output, until the
// input ends. tests/emulation/arm.py is the other side.
//   call:    int64 length, name, '\0', arguments (torch/csrc/stable/library.h)
//   answer:  'r', int64 count, then per tensor int64 dtype, dim, sizes, strides, bytes, and the bytes
//            'e', int64 length, message
#include <torch/csrc/stable/library.h>

#include <cstdio>
#include <cstdlib>

// Scratch memory that nobody wrote shows, as NaN or -1.
void* operator new(std::size_t n) {
  void* memory = std::malloc(n ? n : 1);
  if (!memory) throw std::bad_alloc();
  return std::memset(memory, 0xff, n);
}
void* operator new[](std::size_t n) { return operator new(n); }
void* operator new[](std::size_t n, std::align_val_t line) {
  const std::size_t step = static_cast<std::size_t>(line), whole = (n + step) / step * step;
  void* memory = std::aligned_alloc(step, whole);
  if (!memory) throw std::bad_alloc();
  return std::memset(memory, 0xff, whole);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }

namespace {

using torch::stable::Results;
using torch::stable::Tensor;

void put(const void* from, int64_t n) {
  if (std::fwrite(from, 1, static_cast<size_t>(n), stdout) != static_cast<size_t>(n)) std::exit(2);
}
void put(int64_t value) { put(&value, sizeof(value)); }

void answer(const Results& results) {
  put("r", 1);
  put(static_cast<int64_t>(results.size()));
  for (const Tensor& t : results) {
    put(static_cast<int64_t>(t.scalar_type()));
    put(t.dim());
    put(t.sizes().data(), t.dim() * static_cast<int64_t>(sizeof(int64_t)));
    put(t.strides().data(), t.dim() * static_cast<int64_t>(sizeof(int64_t)));
    put(t.span());
    put(t.const_data_ptr(), t.span());
  }
}

void answer(const std::exception& error) {
  const std::string words = error.what();
  put("e", 1);
  put(static_cast<int64_t>(words.size()));
  put(words.data(), static_cast<int64_t>(words.size()));
}

}  // namespace

int main() {
  int64_t length = 0;
  while (std::fread(&length, sizeof(length), 1, stdin) == 1) {
    std::vector<char> call(static_cast<size_t>(length));
    if (std::fread(call.data(), 1, call.size(), stdin) != call.size()) return 1;
    const std::string name = call.data();
    try {
      const auto op = torch::stable::registered_ops().find(name);
      if (op == torch::stable::registered_ops().end()) throw std::logic_error("stand-in for torch: no op " + name);
      torch::stable::Arguments arguments({call.begin() + static_cast<std::ptrdiff_t>(name.size()) + 1, call.end()});
      answer(op->second(arguments));
    } catch (const std::exception& error) {
      answer(error);
    }
    std::fflush(stdout);
  }
}

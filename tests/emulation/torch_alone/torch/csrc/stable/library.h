// Stands in for torch's header of the same name; see tensor.h beside it. Ops are registered in a table that serve.cpp reads:
// a boxed op takes its arguments from a stream of bytes and gives its results to another.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdio>
#include <functional>
#include <map>
#include <tuple>
#include <type_traits>

namespace torch::stable {

template <typename T>
struct Kind {
  using type = T;
};

// Arguments as tests/emulation/arm.py packs them: a letter for the type, then the value.
class Arguments {
 public:
  explicit Arguments(std::vector<char> bytes) : bytes_(std::move(bytes)) {}

  template <typename T>
  T take() {
    return take(Kind<T>{});
  }
  void finish() const {
    if (at_ != bytes_.size()) throw std::logic_error("stand-in for torch: more arguments than the op takes");
  }

 private:
  template <typename T>
  T raw() {
    T value;
    std::memcpy(&value, here(sizeof(T)), sizeof(T));
    return value;
  }
  const char* here(size_t n) {
    if (bytes_.size() - at_ < n) throw std::logic_error("stand-in for torch: fewer arguments than the op takes");
    at_ += n;
    return bytes_.data() + at_ - n;
  }
  void expect(char letter) {
    const char got = raw<char>();
    if (got != letter)
      throw std::logic_error(std::string("stand-in for torch: argument of type ") + got + ", not " + letter);
  }
  Sizes sizes(int64_t n) {
    Sizes values(static_cast<size_t>(n));
    for (int64_t& value : values) value = raw<int64_t>();
    return values;
  }

  int64_t take(Kind<int64_t>) { return expect('i'), raw<int64_t>(); }
  double take(Kind<double>) { return expect('f'), raw<double>(); }
  bool take(Kind<bool>) { return expect('b'), raw<char>() != 0; }
  Sizes take(Kind<Sizes>) { return expect('l'), sizes(raw<int64_t>()); }
  template <typename T>
  std::optional<T> take(Kind<std::optional<T>>) {
    if (at_ < bytes_.size() && bytes_[at_] == 'n') return ++at_, std::nullopt;
    return take(Kind<T>{});
  }
  Tensor take(Kind<Tensor>) {
    expect('t');
    const auto dtype = static_cast<ScalarType>(raw<int64_t>());
    const int64_t dim = raw<int64_t>(), offset = raw<int64_t>();
    const Sizes shape = sizes(dim), strides = sizes(dim);
    const int64_t bytes = Tensor(shape, strides, dtype, nullptr).span();
    std::shared_ptr<char> memory = allocate(bytes, offset);
    std::memcpy(memory.get(), here(static_cast<size_t>(bytes)), static_cast<size_t>(bytes));
    return Tensor(shape, strides, dtype, memory);
  }

  std::vector<char> bytes_;
  size_t at_ = 0;
};

using Results = std::vector<Tensor>;
using Boxed = std::function<Results(Arguments&)>;

template <typename R, typename... A>
Boxed box(R (*op)(A...)) {
  return [op](Arguments& from) -> Results {
    std::tuple<std::decay_t<A>...> arguments{from.take<std::decay_t<A>>()...};  // in their order
    from.finish();
    if constexpr (std::is_same_v<R, Tensor>)
      return {std::apply(op, arguments)};
    else
      return std::apply([](const auto&... each) { return Results{each...}; }, std::apply(op, arguments));
  };
}

inline std::map<std::string, Boxed>& registered_ops() {
  static std::map<std::string, Boxed> ops;
  return ops;
}

struct Library {
  void impl(const char* name, Boxed op) const { registered_ops()[name] = std::move(op); }
};

struct Registration {
  explicit Registration(void (*ops)(Library&)) {
    Library library;
    ops(library);
  }
};

}  // namespace torch::stable

#define TORCH_BOX(op) ::torch::stable::box(op)
#define STABLE_TORCH_LIBRARY_IMPL(ns, key, m)                                     \
  static void register_##ns##_##key(::torch::stable::Library&);                   \
  static const ::torch::stable::Registration registration(register_##ns##_##key); \
  static void register_##ns##_##key(::torch::stable::Library& m)

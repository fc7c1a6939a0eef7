// latent_blend on the CPU: checks, allocation, threads. The arithmetic is in cpu/latent_blend.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "check.h"
#include "cpu/latent_blend.h"
#include "cpu_torch.h"
#include "dispatch.h"

namespace mixsyn_fast {
namespace {

using torch::stable::new_empty;
using torch::stable::parallel_for;

// Shapes checked once, in the order of the arguments; returns the first channel of every layer.
std::vector<int64_t> check_blend(const char* op, const Tensor& a, const Tensor& b, const Tensor& logits,
                                 const std::vector<int64_t>& channels) {
  MIXSYN_CHECK(a.dim() == 2, op, "a", "shape (B, S)", "shape " + shape_string(a));
  MIXSYN_CHECK(logits.dim() == 3, op, "logits", "shape (B, L, D)", "shape " + shape_string(logits));
  const int64_t depth = logits.size(2);
  std::vector<int64_t> offsets;
  int64_t size = 0;
  for (const int64_t width : channels) {
    MIXSYN_CHECK(width > 0 && depth > 0 && depth % width == 0, op, "channels",
                 "divisors of the last dimension of logits, " + std::to_string(depth), width);
    offsets.push_back(size);
    size += width;
  }
  check_shape(op, "a", a, {-1, size});
  check_shape(op, "b", b, {a.size(0), size});
  check_shape(op, "logits", logits, {a.size(0), static_cast<int64_t>(channels.size()), -1});
  check_dtype(op, "b", b, a.scalar_type());
  check_dtype(op, "logits", logits, a.scalar_type());
  MIXSYN_CHECK(a.is_contiguous() && b.is_contiguous() && logits.is_contiguous(), op, "a, b and logits",
               "contiguous memory", "other strides");
  return offsets;
}

template <typename T>
cpu::LatentBlend<T, acc_t<T>> blend_problem(const Tensor& a, const Tensor& b, const Tensor& logits,
                                            const std::vector<int64_t>& channels, const std::vector<int64_t>& offsets,
                                            bool q_on_b) {
  cpu::LatentBlend<T, acc_t<T>> problem;
  problem.layers = static_cast<int64_t>(channels.size());
  problem.size = a.size(1), problem.depth = logits.size(2);
  problem.channels = channels.data(), problem.offsets = offsets.data();
  problem.q_on_b = q_on_b;
  problem.a = data<T>(a), problem.b = data<T>(b), problem.logits = data<T>(logits);
  return problem;
}

std::tuple<Tensor, Tensor> latent_blend_cpu(Tensor a, Tensor b, Tensor logits, std::vector<int64_t> channels,
                                            bool q_on_b) {
  constexpr const char* op = "latent_blend";
  const std::vector<int64_t> offsets = check_blend(op, a, b, logits, channels);
  const std::vector<int64_t> shape = {a.size(0), a.size(1)};
  Tensor blended = new_empty(a, shape), q = new_empty(a, shape);
  if (a.numel() == 0) return std::make_tuple(blended, q);
  dispatch_floating(a.scalar_type(), op, "a", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    auto problem = blend_problem<T>(a, b, logits, channels, offsets, q_on_b);
    problem.blended = mutable_data<T>(blended), problem.q = mutable_data<T>(q);
    const auto& kernels = cpu::latent_blend_kernels<T, A>();
    parallel_for(0, a.size(0) * problem.layers, grain(problem.depth),
                 [&](int64_t begin, int64_t end) { kernels.forward(problem, begin, end); });
  });
  return std::make_tuple(blended, q);
}

std::tuple<Tensor, Tensor, Tensor> latent_blend_backward_cpu(std::optional<Tensor> grad, std::optional<Tensor> grad_q,
                                                             Tensor a, Tensor b, Tensor logits,
                                                             std::vector<int64_t> channels, bool q_on_b) {
  constexpr const char* op = "latent_blend_backward";
  const std::vector<int64_t> offsets = check_blend(op, a, b, logits, channels);
  for (const auto& [name, t] :
       {std::pair<const char*, const std::optional<Tensor>&>{"grad", grad}, {"grad_q", grad_q}}) {
    if (!t) continue;
    check_shape(op, name, *t, {a.size(0), a.size(1)});
    check_dtype(op, name, *t, a.scalar_type());
    MIXSYN_CHECK(t->is_contiguous(), op, name, "contiguous memory", "other strides");
  }
  const std::vector<int64_t> shape = {a.size(0), a.size(1)};
  const std::vector<int64_t> deep = {logits.size(0), logits.size(1), logits.size(2)};
  Tensor grad_a = new_empty(a, shape), grad_b = new_empty(a, shape), grad_logits = new_empty(a, deep);
  if (a.numel() == 0) return std::make_tuple(grad_a, grad_b, grad_logits);
  dispatch_floating(a.scalar_type(), op, "a", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    auto problem = blend_problem<T>(a, b, logits, channels, offsets, q_on_b);
    problem.grad = data<T>(grad), problem.grad_q = data<T>(grad_q);
    problem.grad_a = mutable_data<T>(grad_a), problem.grad_b = mutable_data<T>(grad_b);
    problem.grad_logits = mutable_data<T>(grad_logits);
    const auto& kernels = cpu::latent_blend_kernels<T, A>();
    parallel_for(0, a.size(0) * problem.layers, grain(2 * problem.depth),
                 [&](int64_t begin, int64_t end) { kernels.backward(problem, begin, end); });
  });
  return std::make_tuple(grad_a, grad_b, grad_logits);
}

}  // namespace
}  // namespace mixsyn_fast

STABLE_TORCH_LIBRARY_IMPL(mixsyn_fast, CPU, m) {
  m.impl("latent_blend", TORCH_BOX(&mixsyn_fast::latent_blend_cpu));
  m.impl("latent_blend_backward", TORCH_BOX(&mixsyn_fast::latent_blend_backward_cpu));
}

// channel_attention_spread on the CPU: checks, allocation, threads. The arithmetic is in cpu/channel_attention_spread.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "aligned.h"
#include "check.h"
#include "cpu/channel_attention_spread.h"
#include "cpu_torch.h"
#include "dispatch.h"

namespace mixsyn_fast {
namespace {

using torch::stable::empty_like;
using torch::stable::new_empty;
using torch::stable::parallel_for;

enum Needs : int64_t { kValues = 1, kCondition = 2, kWeight = 4 };

// Everything that has no element type: shapes checked once, in the order of the arguments.
struct Inputs {
  const char* op;
  const Tensor &values, &condition, &weight;
  int64_t batch = 0, channels = 0, conditions = 0, maps = 0, height = 0, width = 0;
  bool channels_last = false;

  void check() {
    MIXSYN_CHECK(condition.dim() == 4, op, "condition", "shape (B, M, H, W)", "shape " + shape_string(condition));
    batch = condition.size(0), conditions = condition.size(1), height = condition.size(2), width = condition.size(3);
    channels_last = !condition.is_contiguous();  // contiguous where both fit, as in Python
    MIXSYN_CHECK(!channels_last || layout_of(condition) == Layout4d::kChannelsLast, op, "condition",
                 "contiguous or channels_last memory", "other strides");
    const ScalarType acc = condition.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    check_shape(op, "weight", weight, {-1, conditions});
    maps = weight.size(0);
    check_shape(op, "values", values, {batch, maps, -1});
    channels = values.size(2);
    check_dtype(op, "values", values, acc);
    check_dtype(op, "weight", weight, acc);
    MIXSYN_CHECK(values.is_contiguous(), op, "values", "contiguous memory", "other strides");
    MIXSYN_CHECK(weight.is_contiguous(), op, "weight", "contiguous memory", "other strides");
  }

  void check_grad(const Tensor& grad) const {
    check_shape(op, "grad", grad, {batch, channels, height, width});
    check_dtype(op, "grad", grad, condition.scalar_type());
    const bool fits =
        channels_last ? grad.numel() == 0 || layout_of(grad) == Layout4d::kChannelsLast : grad.is_contiguous();
    MIXSYN_CHECK(fits, op, "grad", "the memory layout of condition", "another layout");
  }
};

// A typed problem and the buffers that live as long as it.
template <typename T>
struct Typed {
  using A = acc_t<T>;
  cpu::ChannelAttentionSpread<T, A> problem;
  const cpu::ChannelAttentionSpreadKernels<T, A>& kernels = cpu::channel_attention_spread_kernels<T, A>();
  int64_t kp, np, mp, parts;
  AlignedBuffer<A> weight, values, turned_weight, turned_values;

  Typed(const Inputs& in, bool backward) {
    auto& p = problem;
    p.batch = in.batch, p.features = in.channels, p.conditions = in.conditions, p.maps = in.maps;
    p.pixels = in.height * in.width;
    p.channels_last = in.channels_last;
    p.condition = data<T>(in.condition);
    kp = padded<A>(p.maps), np = padded<A>(p.features), mp = padded<A>(p.conditions);
    // a tile takes about a quarter of a second-level cache; parts depend on the shape alone, so results do not on threads
    const int64_t position = (np + mp) * static_cast<int64_t>(sizeof(A));
    p.tile = p.channels_last ? 64 : 256;
    while (p.tile > 32 && p.tile * position > 262144) p.tile /= 2;
    p.chunk = std::max<int64_t>(1024, (p.pixels + 63) / 64);
    p.chunk = (p.chunk + 255) / 256 * 256;
    p.chunks = (p.pixels + p.chunk - 1) / p.chunk;
    parts = p.batch * p.chunks;
    const int64_t K = p.maps, N = p.features, M = p.conditions;
    const A* w = data<A>(in.weight);
    const A* v = data<A>(in.values);
    // each matrix of the products in the order in which the kernels read it
    if (p.channels_last) {
      weight = aligned_buffer<A>(M * kp, A(0));
      turn(w, K, M, kp, weight.get());
      p.weight_columns = weight.get();
      values = aligned_buffer<A>(p.batch * K * np, A(0));
      for (int64_t row = 0; row < p.batch * K; ++row) std::copy_n(v + row * N, N, values.get() + row * np);
      p.value_columns = values.get();
      if (!backward) return;
      turned_weight = aligned_buffer<A>(K * mp, A(0));
      for (int64_t k = 0; k < K; ++k) std::copy_n(w + k * M, M, turned_weight.get() + k * mp);
      p.condition_columns = turned_weight.get();
      turned_values = aligned_buffer<A>(p.batch * N * kp, A(0));
      for (int64_t b = 0; b < p.batch; ++b) turn(v + b * K * N, K, N, kp, turned_values.get() + b * N * kp);
      p.grad_columns = turned_values.get();
    } else {
      p.weight_rows = w;
      values = aligned_buffer<A>(p.batch * N * K);
      for (int64_t b = 0; b < p.batch; ++b) turn(v + b * K * N, K, N, K, values.get() + b * N * K);
      p.value_rows = values.get();
      if (!backward) return;
      turned_weight = aligned_buffer<A>(M * K);
      turn(w, K, M, K, turned_weight.get());
      p.condition_rows = turned_weight.get();
      p.grad_rows = v;
    }
  }

  static void turn(const A* from, int64_t rows, int64_t columns, int64_t stride, A* to) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c) to[c * stride + r] = from[r * columns + c];
  }

  using Kernel = void (*)(const cpu::ChannelAttentionSpread<T, A>&, A*, int64_t, int64_t);
  void run(Kernel kernel) const {
    parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      if (begin >= end) return;
      AlignedBuffer<A> scratch = aligned_buffer<A>(kernels.scratch(problem));
      kernel(problem, scratch.get(), begin, end);
    });
  }
};

Tensor channel_attention_spread_cpu(const Tensor& values, const Tensor& condition, const Tensor& weight) {
  Inputs in{"channel_attention_spread", values, condition, weight};
  in.check();
  return dispatch_floating(condition.scalar_type(), in.op, "condition", [&](auto tag) {
    using T = typename decltype(tag)::type;
    Typed<T> typed(in, false);
    const std::vector<int64_t> shape = {in.batch, in.channels, in.height, in.width};
    Tensor result = torch::stable::empty(
        shape, condition.scalar_type(), std::nullopt, condition.device(), std::nullopt,
        in.channels_last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous);
    typed.problem.result = mutable_data<T>(result);
    typed.run(typed.kernels.forward);
    return result;
  });
}

// out (rows, columns) = the sum over parts of from[part][r][c], or of from[part][c][r] where turned.
template <typename A>
void sum_parts(const A* from, int64_t parts, int64_t stride, int64_t part_size, bool turned, A* out, int64_t rows,
               int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) {
    A* to = out + r * columns;
    std::fill_n(to, columns, A(0));
    for (int64_t i = 0; i < parts; ++i) {
      const A* part = from + i * part_size;
      if (turned)
        for (int64_t c = 0; c < columns; ++c) to[c] += part[c * stride + r];
      else
        for (int64_t c = 0; c < columns; ++c) to[c] += part[r * stride + c];
    }
  }
}

std::tuple<Tensor, Tensor, Tensor> channel_attention_spread_backward_cpu(const Tensor& grad, const Tensor& values,
                                                                         const Tensor& condition, const Tensor& weight,
                                                                         int64_t needs) {
  Inputs in{"channel_attention_spread_backward", values, condition, weight};
  in.check();
  in.check_grad(grad);
  return dispatch_floating(condition.scalar_type(), in.op, "condition", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    Typed<T> typed(in, true);
    auto& p = typed.problem;
    const int64_t B = p.batch, K = p.maps, N = p.features, M = p.conditions;
    const std::vector<int64_t> none = {0}, value_shape = {B, K, N}, weight_shape = {K, M};
    Tensor grad_values = new_empty(values, needs & kValues ? value_shape : none);
    Tensor grad_condition = needs & kCondition ? empty_like(condition) : new_empty(condition, none);
    Tensor grad_weight = new_empty(weight, needs & kWeight ? weight_shape : none);
    p.grad = data<T>(grad);
    if (needs & kCondition) p.grad_condition = mutable_data<T>(grad_condition);
    AlignedBuffer<A> part_values, part_weight;
    const bool last = p.channels_last;
    const int64_t value_size = last ? K * typed.np : N * typed.kp, weight_size = last ? K * typed.mp : M * typed.kp;
    if (needs & kValues) part_values = aligned_buffer<A>(typed.parts * value_size, A(0));
    if (needs & kWeight) part_weight = aligned_buffer<A>(typed.parts * weight_size, A(0));
    p.part_values = part_values.get(), p.part_weight = part_weight.get();
    typed.run(typed.kernels.backward);
    if (needs & kValues) {
      A* out = mutable_data<A>(grad_values);
      parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
          sum_parts<A>(part_values.get() + b * p.chunks * value_size, p.chunks, last ? typed.np : typed.kp, value_size,
                       !last, out + b * K * N, K, N);
      });
    }
    if (needs & kWeight)
      sum_parts<A>(part_weight.get(), typed.parts, last ? typed.mp : typed.kp, weight_size, !last,
                   mutable_data<A>(grad_weight), K, M);
    return std::make_tuple(grad_values, grad_condition, grad_weight);
  });
}

}  // namespace
}  // namespace mixsyn_fast

STABLE_TORCH_LIBRARY_IMPL(mixsyn_fast, CPU, m) {
  m.impl("channel_attention_spread", TORCH_BOX(&mixsyn_fast::channel_attention_spread_cpu));
  m.impl("channel_attention_spread_backward", TORCH_BOX(&mixsyn_fast::channel_attention_spread_backward_cpu));
}

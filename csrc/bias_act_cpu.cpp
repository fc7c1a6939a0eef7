// bias_act on the CPU: checks, allocation, threads. The arithmetic is in cpu/bias_act.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "check.h"
#include "cpu/bias_act.h"
#include "cpu_torch.h"
#include "dispatch.h"

namespace mixsyn_fast {
namespace {

using torch::stable::empty_like;
using torch::stable::new_empty;
using torch::stable::parallel_for;

// Checks of an input (B, C, H, W); returns its layout.
Layout4d check_dense(const char* op, const char* name, const Tensor& x) {
  MIXSYN_CHECK(x.dim() == 4, op, name, "shape (B, C, H, W)", "shape " + shape_string(x));
  const Layout4d layout = layout_of(x);
  MIXSYN_CHECK(layout != Layout4d::kOther, op, name, "contiguous or channels_last memory", "other strides");
  return layout;
}

void check_like(const char* op, const char* name, const Tensor& t, const Tensor& x) {
  check_shape(op, name, t, {x.size(0), x.size(1), x.size(2), x.size(3)});
  check_dtype(op, name, t, x.scalar_type());
  MIXSYN_CHECK(x.numel() == 0 || layout_of(t) == layout_of(x), op, name, "the memory layout of the first tensor",
               "another layout");
}

void check_small(const char* op, const char* name, const std::optional<Tensor>& t, const std::vector<int64_t>& shape,
                 ScalarType dtype) {
  if (!t) return;
  check_shape(op, name, *t, shape);
  check_dtype(op, name, *t, dtype);
  MIXSYN_CHECK(t->is_contiguous(), op, name, "contiguous memory", "other strides");
}

ScalarType acc_type_of(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// What forward and backward have in common, and rows of ones and zeros for what is absent.
template <typename T>
struct Typed {
  using A = acc_t<T>;
  cpu::BiasAct<T, A> problem;
  const cpu::BiasActKernels<T, A>& kernels = cpu::bias_act_kernels<T, A>();
  Buffer<A> ones, zeros;

  Typed(const Tensor& x, const std::optional<Tensor>& scale, double slope, double gain) {
    auto& p = problem;
    p.batch = x.size(0), p.channels = x.size(1), p.pixels = x.size(2) * x.size(3);
    p.high = static_cast<A>(gain), p.low = static_cast<A>(gain * slope);
    if (scale) {
      p.scale = data<A>(scale), p.scale_stride = p.channels;
    } else {
      ones = buffer<A>(p.channels);
      std::fill_n(ones.get(), p.channels, A(1));
      p.scale = ones.get();
    }
  }

  // Parts of `chunk` pixels; the number depends on the shape alone, so results do not depend on the number of threads.
  int64_t set_chunk(int64_t chunk) {
    problem.chunk = std::max<int64_t>(1, std::min(chunk, problem.pixels));
    problem.chunks = (problem.pixels + problem.chunk - 1) / problem.chunk;
    return problem.batch * problem.chunks;
  }
};

Tensor bias_act_cpu(const Tensor& x, const std::optional<Tensor>& bias, const std::optional<Tensor>& scale,
                    const std::optional<Tensor>& noise, const std::optional<Tensor>& strength, double slope,
                    double gain) {
  constexpr const char* op = "bias_act";
  const bool channels_last = check_dense(op, "x", x) == Layout4d::kChannelsLast;
  const int64_t batch = x.size(0), channels = x.size(1);
  check_small(op, "bias", bias, {channels}, acc_type_of(x));
  check_small(op, "scale", scale, {batch, channels}, acc_type_of(x));
  MIXSYN_CHECK(noise.has_value() == strength.has_value(), op, "noise and strength", "both or neither", "one");
  check_small(op, "noise", noise, {-1, 1, x.size(2), x.size(3)}, x.scalar_type());
  MIXSYN_CHECK(!noise || noise->size(0) == 1 || noise->size(0) == batch, op, "noise", "1 or B rows", noise->size(0));
  check_small(op, "strength", strength, {1}, acc_type_of(x));
  Tensor y = empty_like(x);
  if (x.numel() == 0) return y;
  dispatch_floating(x.scalar_type(), op, "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    Typed<T> typed(x, scale, slope, gain);
    auto& p = typed.problem;
    p.x = data<T>(x), p.result = mutable_data<T>(y);
    if (bias) {
      p.bias = data<A>(bias);
    } else {
      typed.zeros = buffer<A>(channels);
      std::fill_n(typed.zeros.get(), channels, A(0));
      p.bias = typed.zeros.get();
    }
    if (noise) {
      p.noise = data<T>(noise), p.noise_stride = noise->size(0) == 1 ? 0 : p.pixels;
      p.strength = *data<A>(strength);
    }
    if (channels_last) {
      parallel_for(0, batch * p.pixels, grain(channels),
                   [&](int64_t begin, int64_t end) { typed.kernels.forward_pixels(p, begin, end); });
    } else {
      const int64_t parts = typed.set_chunk(noise ? 2048 : p.pixels);  // noise that stays near for all channels
      parallel_for(0, parts * channels, grain(p.chunk),
                   [&](int64_t begin, int64_t end) { typed.kernels.forward_planes(p, begin, end); });
    }
  });
  return y;
}

// to[group][c] = sum over the parts of a group (group, part, c), in their order and in float64.
template <typename A>
void merge(const A* parts, A* to, int64_t groups, int64_t parts_per_group, int64_t channels) {
  std::vector<double> total(static_cast<size_t>(channels));
  for (int64_t g = 0; g < groups; ++g) {
    std::fill(total.begin(), total.end(), 0.0);
    for (int64_t k = 0; k < parts_per_group; ++k) {
      const A* from = parts + (g * parts_per_group + k) * channels;
      for (int64_t c = 0; c < channels; ++c) total[static_cast<size_t>(c)] += static_cast<double>(from[c]);
    }
    for (int64_t c = 0; c < channels; ++c) to[g * channels + c] = static_cast<A>(total[static_cast<size_t>(c)]);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> bias_act_backward_cpu(const Tensor& grad, const Tensor& y,
                                                                 const std::optional<Tensor>& x,
                                                                 const std::optional<Tensor>& scale, double slope,
                                                                 double gain, bool per_pixel) {
  constexpr const char* op = "bias_act_backward";
  const bool channels_last = check_dense(op, "grad", grad) == Layout4d::kChannelsLast;
  check_like(op, "y", y, grad);
  if (x) check_like(op, "x", *x, grad);
  const int64_t batch = grad.size(0), channels = grad.size(1), height = grad.size(2), width = grad.size(3);
  const ScalarType acc = acc_type_of(grad);
  check_small(op, "scale", scale, {batch, channels}, acc);
  using Shape = std::vector<int64_t>;
  Tensor grad_x = empty_like(y), grad_bias = new_empty(grad, Shape{channels}, acc);
  Tensor grad_scale = new_empty(grad, x ? Shape{batch, channels} : Shape{0}, acc);
  Tensor sums = new_empty(grad, per_pixel ? Shape{batch, 1, height, width} : Shape{0}, acc);
  dispatch_floating(grad.scalar_type(), op, "grad", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    if (grad.numel() == 0) {  // a sum over nothing is zero
      for (const Tensor& t : {grad_bias, grad_scale, sums}) std::fill_n(mutable_data<A>(t), t.numel(), A(0));
      return;
    }
    Typed<T> typed(grad, scale, slope, gain);
    auto& p = typed.problem;
    p.grad = data<T>(grad), p.y = data<T>(y), p.x = data<T>(x), p.grad_x = mutable_data<T>(grad_x);
    if (per_pixel) p.sums = mutable_data<A>(sums);
    // channels_last: parts enough for many threads, and small enough for sums in float32; large enough that their sums,
    // which lie in the cache, are little beside them. Contiguous: runs of a page and more.
    const int64_t least = std::min<int64_t>(32768 / channels + 1, 512);
    const int64_t most = std::min<int64_t>(131072 / channels + 1, 1024);
    const int64_t parts = typed.set_chunk(channels_last ? std::clamp(batch * p.pixels / 32, least, most)
                                          : per_pixel   ? 2048
                                                        : 4096);
    const Buffer<A> part_bias = buffer<A>(parts * channels), part_scale = buffer<A>(x ? parts * channels : 0);
    p.part_bias = part_bias.get(), p.part_scale = part_scale.get();
    if (channels_last) {
      parallel_for(0, parts, grain(p.chunk * channels),
                   [&](int64_t begin, int64_t end) { typed.kernels.backward_pixels(p, begin, end); });
    } else if (per_pixel) {
      // where there are few parts, groups of channels have sums over channels of their own
      const int64_t groups = std::clamp<int64_t>(16 / parts, 1, std::min<int64_t>(channels, 8)), all = batch * p.pixels;
      const Buffer<A> part_sums = buffer<A>(groups > 1 ? groups * all : 0);
      parallel_for(0, parts * groups, grain(p.chunk * channels / groups), [&](int64_t begin, int64_t end) {
        auto own = p;
        for (int64_t item = begin; item < end; ++item) {
          const int64_t part = item / groups, group = item % groups;
          if (groups > 1) own.sums = part_sums.get() + group * all;
          typed.kernels.backward_planes(own, part * channels + group * channels / groups,
                                        part * channels + (group + 1) * channels / groups);
        }
      });
      if (groups > 1) merge(part_sums.get(), p.sums, 1, groups, all);
    } else {
      parallel_for(0, parts * channels, grain(p.chunk),
                   [&](int64_t begin, int64_t end) { typed.kernels.backward_planes(p, begin, end); });
    }
    merge(part_bias.get(), mutable_data<A>(grad_bias), 1, parts, channels);
    if (x) merge(part_scale.get(), mutable_data<A>(grad_scale), batch, p.chunks, channels);
  });
  return std::make_tuple(grad_x, grad_bias, grad_scale, sums);
}

}  // namespace
}  // namespace mixsyn_fast

STABLE_TORCH_LIBRARY_IMPL(mixsyn_fast, CPU, m) {
  m.impl("bias_act", TORCH_BOX(&mixsyn_fast::bias_act_cpu));
  m.impl("bias_act_backward", TORCH_BOX(&mixsyn_fast::bias_act_backward_cpu));
}

// spatial_attention_pool on the CPU: checks, allocation, threads. The arithmetic is in cpu/spatial_attention_pool.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "aligned.h"
#include "check.h"
#include "cpu/spatial_attention_pool.h"
#include "cpu_torch.h"
#include "dispatch.h"

namespace mixsyn_fast {
namespace {

using torch::stable::empty_like;
using torch::stable::new_empty;
using torch::stable::parallel_for;

enum Needs : int64_t { kFeatures = 1, kCondition = 2, kWeightFeatures = 4, kWeightCondition = 8 };

// Everything that has no element type: shapes checked once, in the order of the arguments.
struct Inputs {
  const char* op;
  const Tensor &features, &condition, &weight_features, &weight_condition;
  const std::optional<Tensor>& mask;
  int64_t batch = 0, channels = 0, conditions = 0, maps = 0, height = 0, width = 0;
  bool channels_last = false;

  void check() {
    MIXSYN_CHECK(features.dim() == 4, op, "features", "shape (B, N, H, W)", "shape " + shape_string(features));
    batch = features.size(0), channels = features.size(1), height = features.size(2), width = features.size(3);
    check_shape(op, "condition", condition, {batch, -1, height, width});
    check_dtype(op, "condition", condition, features.scalar_type());
    conditions = condition.size(1);
    const bool contiguous = features.is_contiguous() && condition.is_contiguous();
    channels_last = !contiguous;
    MIXSYN_CHECK(contiguous || (is_channels_last(features) && is_channels_last(condition)), op,
                 "features and condition", "contiguous or channels_last memory, the same for both", "other strides");
    const ScalarType acc = features.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    check_shape(op, "weight_features", weight_features, {-1, channels});
    maps = weight_features.size(0);
    dense("weight_features", weight_features, {maps, channels}, acc);
    dense("weight_condition", weight_condition, {maps, conditions}, acc);
    if (mask) dense("mask", *mask, {batch, height, width}, ScalarType::Bool);
  }

  void dense(const char* name, const Tensor& t, const std::vector<int64_t>& shape, ScalarType dtype) const {
    check_shape(op, name, t, shape);
    check_dtype(op, name, t, dtype);
    MIXSYN_CHECK(t.is_contiguous(), op, name, "contiguous memory", "other strides");
  }

  static bool is_channels_last(const Tensor& t) { return t.numel() == 0 || layout_of(t) == Layout4d::kChannelsLast; }
};

// A typed problem and the buffers that live as long as it.
template <typename T>
struct Typed {
  using A = acc_t<T>;
  static constexpr int64_t kLanes = 64 / static_cast<int64_t>(sizeof(A));
  cpu::SpatialAttentionPool<T, A> problem;
  const cpu::SpatialAttentionPoolKernels<T, A>& kernels = cpu::spatial_attention_pool_kernels<T, A>();
  int64_t kp, np, mp, parts;
  AlignedBuffer<A> weight_rows, weight_columns;

  explicit Typed(const Inputs& in) {
    auto& p = problem;
    p.batch = in.batch, p.features = in.channels, p.conditions = in.conditions, p.maps = in.maps;
    p.pixels = in.height * in.width;
    p.channels_last = in.channels_last;
    p.feature = data<T>(in.features), p.condition = data<T>(in.condition);
    p.mask = data<uint8_t>(in.mask);
    kp = padded<A>(p.maps), np = padded<A>(p.features), mp = padded<A>(p.conditions);
    // A tile of features and condition takes about a quarter of a second-level cache. Parts: at most 64 per image, and none
    // so small that its sums cost more than its positions. Both depend on the shape alone, so results do not on threads.
    const int64_t position = (np + mp) * static_cast<int64_t>(sizeof(A));
    p.tile = p.channels_last ? 64 : 256;
    while (p.tile > 32 && p.tile * position > 262144) p.tile /= 2;
    p.chunk = std::max<int64_t>(1024, (p.pixels + 63) / 64);
    p.chunk = (p.chunk + 255) / 256 * 256;
    p.chunks = (p.pixels + p.chunk - 1) / p.chunk;
    parts = p.batch * p.chunks;
    const A* wf = data<A>(in.weight_features);
    const A* wc = data<A>(in.weight_condition);
    const int64_t N = p.features, M = p.conditions, K = p.maps;
    if (p.channels_last) {
      weight_columns = aligned_buffer<A>((N + M) * kp, A(0));
      for (int64_t k = 0; k < K; ++k) {
        for (int64_t n = 0; n < N; ++n) weight_columns[n * kp + k] = wf[k * N + n];
        for (int64_t m = 0; m < M; ++m) weight_columns[(N + m) * kp + k] = wc[k * M + m];
      }
      p.weight_columns = weight_columns.get();
    } else {
      weight_rows = aligned_buffer<A>(K * (N + M));
      for (int64_t k = 0; k < K; ++k) {
        std::copy_n(wf + k * N, N, weight_rows.get() + k * (N + M));
        std::copy_n(wc + k * M, M, weight_rows.get() + k * (N + M) + N);
      }
      p.weight_rows = weight_rows.get();
    }
  }

  using Kernel = void (*)(const cpu::SpatialAttentionPool<T, A>&, A*, int64_t, int64_t);
  void run(Kernel kernel) const {
    parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      if (begin >= end) return;
      AlignedBuffer<A> scratch = aligned_buffer<A>(kernels.scratch(problem));
      kernel(problem, scratch.get(), begin, end);
    });
  }
};

// Merges the parts of every image in their order: values (B, K, N), mean (B, M), lse (B, K).
template <typename T, typename A = acc_t<T>>
void merge(const Typed<T>& typed, A* values, A* mean, A* lse) {
  const auto& p = typed.problem;
  const int64_t K = p.maps, N = p.features, M = p.conditions, kp = typed.kp, np = typed.np, mp = typed.mp;
  constexpr int64_t L = Typed<T>::kLanes;
  constexpr A kNothing = -std::numeric_limits<A>::infinity();
  std::vector<A> weight(static_cast<size_t>(typed.parts * kp), A(0));  // of the sums of a part
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t first = b * p.chunks, last = first + p.chunks;
    for (int64_t k = 0; k < K; ++k) {
      A high = kNothing, sum = 0;
      for (int64_t i = first; i < last; ++i) high = std::max(high, p.part_max[i * kp + k]);
      const A shift = high == kNothing ? A(0) : high;
      for (int64_t i = first; i < last; ++i) {
        weight[i * kp + k] = std::exp(p.part_max[i * kp + k] - shift);
        sum += weight[i * kp + k] * p.part_sum[i * kp + k];
      }
      lse[b * K + k] = sum == A(0) ? kNothing : shift + std::log(sum);
      const A inverse = sum == A(0) ? A(0) : A(1) / sum;
      for (int64_t i = first; i < last; ++i) weight[i * kp + k] *= inverse;
    }
    for (int64_t m = 0; m < M; ++m) {
      A sum = 0;
      for (int64_t i = first; i < last; ++i) {
        if (p.channels_last) {
          sum += p.part_condition[i * mp + m];
        } else {
          for (int64_t l = 0; l < L; ++l) sum += p.part_condition[(i * M + m) * L + l];
        }
      }
      mean[b * M + m] = sum / static_cast<A>(std::max<int64_t>(p.pixels, 1));
    }
  }
  if (p.channels_last) {
    parallel_for(0, p.batch * K, grain(p.chunks * N), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t b = row / K, k = row % K;
        A* out = values + row * N;
        std::fill_n(out, N, A(0));
        for (int64_t i = b * p.chunks; i < (b + 1) * p.chunks; ++i) {
          const A factor = weight[i * kp + k];
          const A* from = p.part_values + (i * K + k) * np;
          for (int64_t n = 0; n < N; ++n) out[n] += factor * from[n];
        }
      }
    });
    return;
  }
  parallel_for(0, p.batch * N, grain(p.chunks * K), [&](int64_t begin, int64_t end) {
    std::vector<A> sum(static_cast<size_t>(kp));
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / N, n = row % N;
      std::fill(sum.begin(), sum.end(), A(0));
      for (int64_t i = b * p.chunks; i < (b + 1) * p.chunks; ++i) {
        const A* factor = weight.data() + i * kp;
        const A* from = p.part_values + (i * N + n) * kp;
        for (int64_t k = 0; k < kp; ++k) sum[k] += factor[k] * from[k];
      }
      for (int64_t k = 0; k < K; ++k) values[(b * K + k) * N + n] = sum[k];
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> spatial_attention_pool_cpu(const Tensor& features, const Tensor& condition,
                                                                      const Tensor& weight_features,
                                                                      const Tensor& weight_condition,
                                                                      const std::optional<Tensor>& mask,
                                                                      bool return_maps) {
  Inputs in{"spatial_attention_pool", features, condition, weight_features, weight_condition, mask};
  in.check();
  return dispatch_floating(features.scalar_type(), in.op, "features", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    constexpr ScalarType acc = acc_scalar_type<A>();
    Typed<T> typed(in);
    auto& p = typed.problem;
    const std::vector<int64_t> value_shape = {p.batch, p.maps, p.features}, mean_shape = {p.batch, p.conditions};
    const std::vector<int64_t> maps_shape =
        return_maps ? std::vector<int64_t>{p.batch, p.maps, in.height, in.width} : std::vector<int64_t>{0};
    const std::vector<int64_t> lse_shape = {p.batch, p.maps};
    Tensor values = new_empty(features, value_shape, acc), mean = new_empty(features, mean_shape, acc);
    Tensor maps = new_empty(features, maps_shape), lse = new_empty(features, lse_shape, acc);
    const int64_t value_size = p.channels_last ? p.maps * typed.np : p.features * typed.kp;
    const int64_t mean_size = p.channels_last ? typed.mp : p.conditions * Typed<T>::kLanes;
    AlignedBuffer<A> part_max = aligned_buffer<A>(typed.parts * typed.kp, -std::numeric_limits<A>::infinity());
    AlignedBuffer<A> part_sum = aligned_buffer<A>(typed.parts * typed.kp, A(0));
    AlignedBuffer<A> part_values = aligned_buffer<A>(typed.parts * value_size, A(0));
    AlignedBuffer<A> part_condition = aligned_buffer<A>(typed.parts * mean_size, A(0));
    p.part_max = part_max.get(), p.part_sum = part_sum.get();
    p.part_values = part_values.get(), p.part_condition = part_condition.get();
    AlignedBuffer<A> logits;
    if (return_maps && std::is_same_v<T, A>) {
      p.logits = static_cast<A*>(maps.mutable_data_ptr());
    } else if (return_maps) {
      logits = aligned_buffer<A>(p.batch * p.maps * p.pixels);
      p.logits = logits.get();
    }
    typed.run(typed.kernels.forward);
    A* lse_out = mutable_data<A>(lse);
    merge(typed, mutable_data<A>(values), mutable_data<A>(mean), lse_out);
    if (return_maps && p.pixels > 0) {
      T* out = mutable_data<T>(maps);
      parallel_for(0, p.batch * p.maps, grain(p.pixels), [&](int64_t begin, int64_t end) {
        typed.kernels.normalise(p.logits, lse_out, out, p.pixels, begin, end);
      });
    }
    return std::make_tuple(values, mean, maps, lse);
  });
}

// out[r * columns + c] of (rows, columns) += the sum over parts of from[part][r][c], or of from[part][c][r] where turned.
template <typename A>
void sum_parts(const A* from, int64_t parts, int64_t stride, int64_t part_size, bool turned, A* out, int64_t rows,
               int64_t columns) {
  parallel_for(0, rows, grain(parts * columns), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
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
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> spatial_attention_pool_backward_cpu(
    const Tensor& grad_values, const Tensor& grad_mean, const std::optional<Tensor>& grad_maps, const Tensor& features,
    const Tensor& condition, const Tensor& weight_features, const Tensor& weight_condition,
    const std::optional<Tensor>& mask, const Tensor& values, const Tensor& lse, int64_t needs) {
  Inputs in{"spatial_attention_pool_backward", features, condition, weight_features, weight_condition, mask};
  in.check();
  return dispatch_floating(features.scalar_type(), in.op, "features", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    constexpr ScalarType acc = acc_scalar_type<A>();
    in.dense("grad_values", grad_values, {in.batch, in.maps, in.channels}, acc);
    in.dense("grad_mean", grad_mean, {in.batch, in.conditions}, acc);
    if (grad_maps) in.dense("grad_maps", *grad_maps, {in.batch, in.maps, in.height, in.width}, features.scalar_type());
    in.dense("values", values, {in.batch, in.maps, in.channels}, acc);
    in.dense("lse", lse, {in.batch, in.maps}, acc);
    Typed<T> typed(in);
    auto& p = typed.problem;
    const int64_t B = p.batch, K = p.maps, N = p.features, M = p.conditions, kp = typed.kp, np = typed.np,
                  mp = typed.mp;
    const std::vector<int64_t> none = {0}, wf_shape = {K, N}, wc_shape = {K, M};
    Tensor grad_features = needs & kFeatures ? empty_like(features) : new_empty(features, none);
    Tensor grad_condition = needs & kCondition ? empty_like(condition) : new_empty(features, none);
    Tensor grad_wf = new_empty(weight_features, needs & kWeightFeatures ? wf_shape : none);
    Tensor grad_wc = new_empty(weight_features, needs & kWeightCondition ? wc_shape : none);
    p.grad_maps = data<T>(grad_maps);
    if (needs & kFeatures) p.grad_feature = mutable_data<T>(grad_features);
    if (needs & kCondition) p.grad_condition = mutable_data<T>(grad_condition);

    const A* gv = data<A>(grad_values);
    const A* v = data<A>(values);
    const A* wf = data<A>(weight_features);
    const A* wc = data<A>(weight_condition);
    const A* gm = data<A>(grad_mean);
    AlignedBuffer<A> lse_padded = aligned_buffer<A>(B * kp, A(0)), offset = aligned_buffer<A>(B * kp, A(0));
    for (int64_t b = 0; b < B; ++b)
      for (int64_t k = 0; k < K; ++k) {
        lse_padded[b * kp + k] = data<A>(lse)[b * K + k];
        A sum = 0;
        for (int64_t n = 0; n < N; ++n) sum += gv[(b * K + k) * N + n] * v[(b * K + k) * N + n];
        offset[b * kp + k] = sum;
      }
    p.lse = lse_padded.get(), p.offset = offset.get();
    if (p.grad_maps) {
      AlignedBuffer<A> part_offset = aligned_buffer<A>(typed.parts * kp);
      p.part_offset = part_offset.get();
      typed.run(typed.kernels.offsets);
      for (int64_t i = 0; i < typed.parts; ++i)
        for (int64_t k = 0; k < K; ++k) offset[i / p.chunks * kp + k] += part_offset[i * kp + k];
    }

    // the matrices of the products, in the order in which the kernels read them
    AlignedBuffer<A> both = aligned_buffer<A>(B * N * 2 * (p.channels_last ? kp : K), A(0));
    AlignedBuffer<A> back = aligned_buffer<A>(B * 2 * (p.channels_last ? kp * np : K * N), A(0));
    AlignedBuffer<A> to_condition = aligned_buffer<A>(p.channels_last ? K * mp : B * M * (K + 1), A(0));
    AlignedBuffer<A> bias = aligned_buffer<A>(B * mp, A(0));
    const A share = A(1) / static_cast<A>(std::max<int64_t>(p.pixels, 1));
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t k = 0; k < K; ++k)
        for (int64_t n = 0; n < N; ++n) {
          const A g = gv[(b * K + k) * N + n], w = wf[k * N + n];
          if (p.channels_last) {
            both[(b * N + n) * 2 * kp + k] = w, both[(b * N + n) * 2 * kp + kp + k] = g;
            back[(b * 2 * kp + k) * np + n] = g, back[(b * 2 * kp + kp + k) * np + n] = w;
          } else {
            both[(b * 2 * K + k) * N + n] = w, both[(b * 2 * K + K + k) * N + n] = g;
            back[(b * N + n) * 2 * K + k] = g, back[(b * N + n) * 2 * K + K + k] = w;
          }
        }
      for (int64_t m = 0; m < M; ++m) {
        bias[b * mp + m] = gm[b * M + m] * share;
        if (p.channels_last) continue;
        for (int64_t k = 0; k < K; ++k) to_condition[(b * M + m) * (K + 1) + k] = wc[k * M + m];
        to_condition[(b * M + m) * (K + 1) + K] = bias[b * mp + m];
      }
    }
    if (p.channels_last)
      for (int64_t k = 0; k < K; ++k) std::copy_n(wc + k * M, M, to_condition.get() + k * mp);
    p.both_rows = p.both_columns = both.get();
    p.back_rows = p.back_columns = back.get();
    p.condition_rows = p.condition_columns = to_condition.get();
    p.condition_bias = bias.get();

    AlignedBuffer<A> part_wf, part_wc;
    const int64_t wf_size = p.channels_last ? K * np : N * kp, wc_size = p.channels_last ? K * mp : M * kp;
    if (needs & kWeightFeatures) part_wf = aligned_buffer<A>(typed.parts * wf_size, A(0));
    if (needs & kWeightCondition) part_wc = aligned_buffer<A>(typed.parts * wc_size, A(0));
    p.part_weight_features = part_wf.get(), p.part_weight_condition = part_wc.get();
    typed.run(typed.kernels.backward);
    if (needs & kWeightFeatures)
      sum_parts<A>(part_wf.get(), typed.parts, p.channels_last ? np : kp, wf_size, !p.channels_last,
                   mutable_data<A>(grad_wf), K, N);
    if (needs & kWeightCondition)
      sum_parts<A>(part_wc.get(), typed.parts, p.channels_last ? mp : kp, wc_size, !p.channels_last,
                   mutable_data<A>(grad_wc), K, M);
    return std::make_tuple(grad_features, grad_condition, grad_wf, grad_wc);
  });
}

}  // namespace
}  // namespace mixsyn_fast

STABLE_TORCH_LIBRARY_IMPL(mixsyn_fast, CPU, m) {
  m.impl("spatial_attention_pool", TORCH_BOX(&mixsyn_fast::spatial_attention_pool_cpu));
  m.impl("spatial_attention_pool_backward", TORCH_BOX(&mixsyn_fast::spatial_attention_pool_backward_cpu));
}

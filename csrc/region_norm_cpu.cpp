// region_norm on the CPU: checks, allocation, threads. The arithmetic is in cpu/region_norm.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <tuple>
#include <vector>

#include "check.h"
#include "cpu/region_norm.h"
#include "cpu_torch.h"
#include "dispatch.h"

namespace mixsyn_fast {
namespace {

using torch::stable::empty_like;
using torch::stable::new_empty;
using torch::stable::new_zeros;
using torch::stable::parallel_for;

enum Norm : int64_t { kNone = 0, kGiven = 1, kInstance = 2, kBatch = 3, kGroup = 4 };

// Everything that has no element type: shapes checked once, in the order of the arguments.
struct Inputs {
  const char* op;
  const Tensor& x;
  const std::optional<Tensor>&mean, &variance, &index, &table, &scale, &shift, &noise, &noise_scale;
  int64_t norm;
  double eps;
  std::optional<double> negative_slope;
  int64_t num_groups;
  bool silu;
  Layout4d layout = Layout4d::kOther;

  bool computes() const { return norm == kInstance || norm == kBatch || norm == kGroup; }
  bool per_image() const { return norm == kInstance || norm == kGroup; }
  // Adjacent channels that share statistics.
  int64_t shared_channels() const { return norm == kGroup ? x.size(1) / num_groups : 1; }
  // Values that share statistics.
  int64_t group_size() const { return x.size(2) * x.size(3) * (per_image() ? shared_channels() : x.size(0)); }

  void check() {
    MIXSYN_CHECK(x.dim() == 4, op, "x", "shape (B, C, H, W)", "shape " + shape_string(x));
    const int64_t b = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3);
    layout = layout_of(x);
    MIXSYN_CHECK(layout != Layout4d::kOther, op, "x", "contiguous or channels_last memory", "other strides");
    MIXSYN_CHECK(norm >= kNone && norm <= kGroup, op, "norm", "0 to 4", norm);
    MIXSYN_CHECK(norm != kGroup || (num_groups > 0 && c % num_groups == 0), op, "num_groups",
                 "a divisor of the channels", num_groups);
    MIXSYN_CHECK(!(silu && negative_slope), op, "silu and negative_slope", "one of them", "both");
    const ScalarType acc = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    auto statistic = [&](const char* name, const std::optional<Tensor>& t) {
      if (!t) return;
      check_shape(op, name, *t, {-1, c});
      MIXSYN_CHECK(t->size(0) == 1 || t->size(0) == b, op, name, "1 or B rows", t->size(0));
      check_dtype(op, name, *t, acc);
      MIXSYN_CHECK(t->is_contiguous(), op, name, "contiguous memory", "other strides");
    };
    statistic("mean", mean);
    statistic("variance", variance);
    MIXSYN_CHECK(norm != kGiven || (mean && variance), op, "mean and variance", "tensors with norm 1", "none");
    MIXSYN_CHECK(!index || table, op, "table", "a tensor with index", "none");
    MIXSYN_CHECK(scale.has_value() == shift.has_value(), op, "scale and shift", "both or neither", "one");
    MIXSYN_CHECK(!(table && scale), op, "table and scale", "a table or dense maps", "both");
    MIXSYN_CHECK(noise.has_value() == noise_scale.has_value(), op, "noise and noise_scale", "both or neither", "one");
    if (index) {
      check_shape(op, "index", *index, {b, h, w});
      check_dtype(op, "index", *index, ScalarType::Int);
      MIXSYN_CHECK(index->is_contiguous(), op, "index", "contiguous memory", "other strides");
    }
    if (table) {
      check_shape(op, "table", *table, {-1, 2 * c});
      MIXSYN_CHECK(index || table->size(0) == 1 || table->size(0) == b, op, "table", "1 or B rows without index",
                   table->size(0));
      check_dtype(op, "table", *table, acc);
      MIXSYN_CHECK(table->is_contiguous(), op, "table", "contiguous memory", "other strides");
    }
    like_x("scale", scale);
    like_x("shift", shift);
    if (noise) {
      check_shape(op, "noise", *noise, {b, 1, h, w});
      check_dtype(op, "noise", *noise, x.scalar_type());
      MIXSYN_CHECK(noise->is_contiguous() || b * h * w == noise->numel(), op, "noise", "dense memory", "other strides");
      check_shape(op, "noise_scale", *noise_scale, {c});
      check_dtype(op, "noise_scale", *noise_scale, x.scalar_type());
      MIXSYN_CHECK(noise_scale->is_contiguous(), op, "noise_scale", "contiguous memory", "other strides");
    }
  }

  // The backward's: everything above, and grad.
  void check_backward(const Tensor& grad) {
    check();
    like_x("grad", grad);
    MIXSYN_CHECK(norm == kNone || (mean && variance), op, "mean and variance", "tensors", "none");
  }

  void like_x(const char* name, const std::optional<Tensor>& t) const {
    if (!t) return;
    check_shape(op, name, *t, {x.size(0), x.size(1), x.size(2), x.size(3)});
    check_dtype(op, name, *t, x.scalar_type());
    const Layout4d other = layout_of(*t);
    MIXSYN_CHECK(other == layout || x.numel() == 0, op, name, "the memory layout of x", "another layout");
  }
};

// (rows, columns) -> (columns, rows), tile by tile through a buffer: read straight from memory, rows that lie a power of two
// apart would fall into the same few cache lines.
template <typename A>
void transpose(const A* from, A* to, int64_t rows, int64_t columns) {
  constexpr int64_t kTile = 32;
  const int64_t grain = std::max<int64_t>(1, 16384 / (rows * kTile + 1));
  parallel_for(0, (columns + kTile - 1) / kTile, grain, [&](int64_t begin, int64_t end) {
    A tile[kTile][kTile + 1];
    for (int64_t c0 = begin * kTile; c0 < std::min(end * kTile, columns); c0 += kTile) {
      const int64_t nc = std::min(kTile, columns - c0);
      for (int64_t r0 = 0; r0 < rows; r0 += kTile) {
        const int64_t nr = std::min(kTile, rows - r0);
        for (int64_t r = 0; r < nr; ++r)
          for (int64_t c = 0; c < nc; ++c) tile[c][r] = from[(r0 + r) * columns + c0 + c];
        for (int64_t c = 0; c < nc; ++c)
          for (int64_t r = 0; r < nr; ++r) to[(c0 + c) * rows + r0 + r] = tile[c][r];
      }
    }
  });
}

// A typed problem and the buffers that live as long as it.
template <typename T>
struct Typed {
  using A = acc_t<T>;
  cpu::RegionNorm<T, A> problem;
  const cpu::RegionNormKernels<T, A>& kernels = cpu::region_norm_kernels<T, A>();
  bool channels_last;
  Buffer<A> mean, rstd, table, noise_scale;
  std::vector<int32_t> block_row;

  explicit Typed(const Inputs& in) : channels_last(in.layout == Layout4d::kChannelsLast) {
    auto& p = problem;
    p.batch = in.x.size(0), p.channels = in.x.size(1), p.pixels = in.x.size(2) * in.x.size(3);
    p.x = data<T>(in.x);
    p.index = data<int32_t>(in.index);
    p.scale = data<T>(in.scale), p.shift = data<T>(in.shift);
    p.noise = data<T>(in.noise);
    p.slope = static_cast<A>(in.negative_slope.value_or(1.0));
    p.silu = in.silu;
    if (in.noise) {
      noise_scale = buffer<A>(p.channels);
      const T* from = data<T>(in.noise_scale);
      for (int64_t c = 0; c < p.channels; ++c) noise_scale[c] = static_cast<A>(from[c]);
      p.noise_scale = noise_scale.get();
    }
    if (in.table) {
      p.rows = in.table->size(0);
      p.image_row = !in.index && p.rows > 1;
    }
    if (in.index) check_index(in);
    if (in.table && channels_last) {
      p.table = data<A>(in.table);
    } else if (in.table) {
      table = buffer<A>(p.rows * 2 * p.channels);
      transpose(data<A>(in.table), table.get(), p.rows, 2 * p.channels);
      p.table = table.get();
      if (in.index) find_blocks();
    } else if (!in.scale) {
      p.rows = 1;  // the identity: one row of ones and zeros, the same in both layouts
      table = buffer<A>(2 * p.channels);
      std::fill_n(table.get(), p.channels, A(1));
      std::fill_n(table.get() + p.channels, p.channels, A(0));
      p.table = table.get();
    }
  }

  void check_index(const Inputs& in) const {
    const int64_t n = in.index->numel();
    int32_t low = 0, high = -1;
    for (int64_t i = 0; i < n; ++i) {
      low = std::min(low, problem.index[i]);
      high = std::max(high, problem.index[i]);
    }
    MIXSYN_CHECK(low >= 0 && high < problem.rows, in.op, "index", "values in [0, " + std::to_string(problem.rows) + ")",
                 low < 0 ? low : high);
  }

  // Blocks of pixels that lie in one row, found once for all planes.
  void find_blocks() {
    const int64_t lanes = 64 / static_cast<int64_t>(sizeof(A)), blocks = (problem.pixels + lanes - 1) / lanes;
    block_row.resize(static_cast<size_t>(problem.batch * blocks));
    for (int64_t b = 0; b < problem.batch; ++b)
      for (int64_t k = 0; k < blocks; ++k) {
        const int32_t* from = problem.index + b * problem.pixels + k * lanes;
        const int64_t n = std::min(lanes, problem.pixels - k * lanes);
        int32_t differs = n < lanes;
        for (int64_t i = 1; i < n; ++i) differs |= from[i] ^ from[0];
        block_row[b * blocks + k] = differs ? -1 : from[0];
      }
    problem.block_row = block_row.data();
  }

  // Statistics given as (mean, variance) or none at all: zeros and ones.
  void set_statistics(const Inputs& in) {
    auto& p = problem;
    p.groups = in.norm == kNone ? 1 : in.mean->size(0);
    const int64_t n = p.groups * p.channels;
    rstd = buffer<A>(n);
    if (in.norm == kNone) {
      mean = buffer<A>(n);
      std::fill_n(mean.get(), n, A(0));
      std::fill_n(rstd.get(), n, A(1));
      p.mean = mean.get();
    } else {
      p.mean = data<A>(in.mean);
      set_rstd(data<A>(in.variance), n, in.eps);
    }
    p.rstd = rstd.get();
  }

  void set_rstd(const A* variance, int64_t n, double eps) {
    for (int64_t i = 0; i < n; ++i) rstd[i] = A(1) / std::sqrt(variance[i] + static_cast<A>(eps));
  }

  // mean and m2 (C) of `shared` channels at a time, each of `count` values, become those of all of them together.
  static void share(A* mean, A* m2, int64_t channels, int64_t shared, A count) {
    for (int64_t c = 0; shared > 1 && c < channels; c += shared) {
      A sum = 0, squares = 0;  // relative to the first mean: no digits are lost to it
      for (int64_t i = 1; i < shared; ++i) sum += mean[c + i] - mean[c];
      const A together = mean[c] + sum / static_cast<A>(shared);
      for (int64_t i = 0; i < shared; ++i) {
        const A delta = mean[c + i] - together;
        squares += m2[c + i] + count * delta * delta;
      }
      std::fill_n(mean + c, shared, together), std::fill_n(m2 + c, shared, squares);
    }
  }

  // mean and m2 (G, C) of x' over images (instance) or the batch; partial results merged in a fixed order.
  void statistics(bool per_instance, A* mean_out, A* m2_out) const {
    const auto& p = problem;
    const int64_t chunks = channels_last ? (p.pixels + cpu::kPixelChunk - 1) / cpu::kPixelChunk : 1;
    const int64_t parts = p.batch * chunks, C = p.channels;
    if (parts == 0 || C == 0) {
      std::fill_n(mean_out, (per_instance ? p.batch : 1) * C, A(0));
      std::fill_n(m2_out, (per_instance ? p.batch : 1) * C, A(0));
      return;
    }
    Buffer<A> part_mean = buffer<A>(parts * C), part_m2 = buffer<A>(parts * C);
    if (channels_last) {
      const int64_t tile = cpu::kTileLines * static_cast<int64_t>(64 / sizeof(A));
      const int64_t items = parts * ((C + tile - 1) / tile);
      parallel_for(0, items, grain(std::min(p.pixels, cpu::kPixelChunk) * tile), [&](int64_t begin, int64_t end) {
        kernels.stats_tiles(p, part_mean.get(), part_m2.get(), begin, end);
      });
    } else {
      parallel_for(0, parts * C, grain(p.pixels), [&](int64_t begin, int64_t end) {
        kernels.stats_planes(p, part_mean.get(), part_m2.get(), begin, end);
      });
    }
    const int64_t groups = per_instance ? p.batch : 1, parts_per_group = parts / groups;
    for (int64_t g = 0; g < groups; ++g) {
      A* mean = mean_out + g * C;
      A* m2 = m2_out + g * C;
      int64_t done = 0;
      for (int64_t k = g * parts_per_group; k < (g + 1) * parts_per_group; ++k) {
        const int64_t first = (k % chunks) * cpu::kPixelChunk;
        const int64_t count = channels_last ? std::min(cpu::kPixelChunk, p.pixels - first) : p.pixels;
        const A* pm = part_mean.get() + k * C;
        const A* p2 = part_m2.get() + k * C;
        if (done == 0) {
          std::copy_n(pm, C, mean), std::copy_n(p2, C, m2);
        } else {
          const A weight = static_cast<A>(count) / static_cast<A>(done + count);
          const A cross = static_cast<A>(done) * weight;
          for (int64_t c = 0; c < C; ++c) {
            const A delta = pm[c] - mean[c];
            mean[c] += delta * weight;
            m2[c] += p2[c] + delta * delta * cross;
          }
        }
        done += count;
      }
    }
  }
};

std::tuple<Tensor, Tensor, Tensor> region_norm_cpu(
    const Tensor& x, const std::optional<Tensor>& mean, const std::optional<Tensor>& variance,
    const std::optional<Tensor>& index, const std::optional<Tensor>& table, const std::optional<Tensor>& scale,
    const std::optional<Tensor>& shift, const std::optional<Tensor>& noise, const std::optional<Tensor>& noise_scale,
    int64_t norm, double eps, std::optional<double> negative_slope, int64_t num_groups, bool silu) {
  Inputs in{"region_norm", x,           mean, variance, index,          table,      scale, shift,
            noise,         noise_scale, norm, eps,      negative_slope, num_groups, silu};
  in.check();
  return dispatch_floating(x.scalar_type(), in.op, "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    const ScalarType acc = acc_scalar_type<A>();
    Typed<T> typed(in);
    auto& p = typed.problem;
    Tensor y = empty_like(x);
    p.y = mutable_data<T>(y);
    const int64_t C = p.channels, planes = p.batch * C;
    const bool computes = in.computes();
    const int64_t groups = in.per_image() ? p.batch : 1;
    std::vector<int64_t> shape = computes ? std::vector<int64_t>{groups, C} : std::vector<int64_t>{0};
    Tensor new_mean = new_empty(x, shape, acc), new_variance = new_empty(x, shape, acc);
    auto apply = [&] {
      if (typed.channels_last) {
        parallel_for(0, p.batch * p.pixels, grain(C), [&](int64_t begin, int64_t end) {
          if (begin < end) typed.kernels.apply_pixels(p, begin, end);
        });
      } else {
        parallel_for(0, planes, grain(p.pixels),
                     [&](int64_t begin, int64_t end) { typed.kernels.apply_planes(p, begin, end); });
      }
    };
    if (!computes) {
      typed.set_statistics(in);
      if (x.numel() > 0) apply();
      return std::make_tuple(y, new_mean, new_variance);
    }
    A* mean_out = mutable_data<A>(new_mean);
    A* variance_out = mutable_data<A>(new_variance);
    p.groups = groups, p.mean = mean_out;
    typed.rstd = buffer<A>(groups * C);
    p.rstd = typed.rstd.get();
    const A count = static_cast<A>(in.group_size()), values = static_cast<A>(p.pixels);
    const int64_t shared = in.shared_channels();
    const int64_t units = shared ? planes / shared : 0;  // planes that share statistics
    // Few of them, or too large for a cache: statistics of all first.
    const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
    const bool near = shared * p.pixels * static_cast<int64_t>(sizeof(T)) <= (1 << 20) && units >= threads;
    if (in.per_image() && !typed.channels_last && (near || shared == 1)) {
      // statistics and result of one unit after another, while its planes are in the cache
      parallel_for(0, units, grain(shared * p.pixels), [&](int64_t begin, int64_t end) {
        for (int64_t at = begin * shared; at < end * shared; at += shared) {
          typed.kernels.stats_planes(p, mean_out, variance_out, at, at + shared);
          typed.share(mean_out + at, variance_out + at, shared, shared, values);
          for (int64_t plane = at; plane < at + shared; ++plane) {
            variance_out[plane] /= count;
            typed.rstd[plane] = A(1) / std::sqrt(variance_out[plane] + static_cast<A>(eps));
          }
          typed.kernels.apply_planes(p, at, at + shared);
        }
      });
      return std::make_tuple(y, new_mean, new_variance);
    }
    typed.statistics(in.per_image(), mean_out, variance_out);
    for (int64_t b = 0; b < groups; ++b) typed.share(mean_out + b * C, variance_out + b * C, C, shared, values);
    for (int64_t i = 0; i < groups * C; ++i) variance_out[i] /= count;
    typed.set_rstd(variance_out, groups * C, eps);
    if (x.numel() > 0) apply();
    return std::make_tuple(y, new_mean, new_variance);
  });
}

std::tuple<Tensor, Tensor, Tensor> region_norm_stats_cpu(const Tensor& x, const std::optional<Tensor>& noise,
                                                         const std::optional<Tensor>& noise_scale, bool per_instance) {
  const std::optional<Tensor> none;
  Inputs in{"region_norm_stats", x,     none, none,         none, none, none, none, noise,
            noise_scale,         kNone, 0.0,  std::nullopt, 0,    false};
  in.check();
  return dispatch_floating(x.scalar_type(), in.op, "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    Typed<T> typed(in);
    const auto& p = typed.problem;
    const std::vector<int64_t> shape = {per_instance ? p.batch : 1, p.channels};
    const std::vector<int64_t> one = {1};
    Tensor count = new_empty(x, one, acc_scalar_type<A>());
    Tensor mean = new_empty(x, shape, acc_scalar_type<A>()), m2 = new_empty(x, shape, acc_scalar_type<A>());
    *mutable_data<A>(count) = static_cast<A>(p.pixels * (per_instance ? 1 : p.batch));
    typed.statistics(per_instance, mutable_data<A>(mean), mutable_data<A>(m2));
    return std::make_tuple(count, mean, m2);
  });
}

// sums_g and sums_gx (G, C), or null where the statistics are constants, and grad_table (R, 2C) or null: all zeroed.
template <typename T>
void reduce(const Inputs& in, Typed<T>& typed, acc_t<T>* sum_g, acc_t<T>* sum_gx, acc_t<T>* grad_table) {
  using A = acc_t<T>;
  auto& p = typed.problem;
  const int64_t C = p.channels, L = 64 / static_cast<int64_t>(sizeof(A));
  // Channels are shared out among threads; where there are too few of them, pixels are too, with partial results.
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  int64_t tile = C, tiles = C;
  if (typed.channels_last) {
    tile = ((C + threads - 1) / threads + 2 * L - 1) / (2 * L) * (2 * L);
    tiles = (C + tile - 1) / tile;
    p.splits = std::min((threads + tiles - 1) / tiles, std::max<int64_t>(p.batch * p.pixels / 4096, 1));
  }
  const int64_t table_size = grad_table ? p.rows * 2 * C : 0, sums_size = p.groups * 2 * C;
  const bool in_place = p.splits == 1 && typed.channels_last;  // else partial or transposed
  Buffer<A> partial_sums = buffer<A>(p.splits * sums_size), partial_table;
  std::fill_n(partial_sums.get(), p.splits * sums_size, A(0));
  p.sums = sum_g ? partial_sums.get() : nullptr;
  if (grad_table) {
    if (!in_place) {
      partial_table = buffer<A>(p.splits * table_size);
      std::fill_n(partial_table.get(), p.splits * table_size, A(0));
    }
    p.grad_table = in_place ? grad_table : partial_table.get();
  }
  if (typed.channels_last) {
    parallel_for(0, p.splits * tiles, 1,
                 [&](int64_t begin, int64_t end) { typed.kernels.reduce_tiles(p, tile, begin, end); });
  } else {
    parallel_for(0, C, 1, [&](int64_t begin, int64_t end) { typed.kernels.reduce_planes(p, begin, end); });
  }
  if (grad_table && !in_place) {
    if (!typed.channels_last) {
      transpose(partial_table.get(), grad_table, 2 * C, p.rows);
    } else {
      parallel_for(0, table_size, 16384, [&](int64_t begin, int64_t end) {
        for (int64_t s = 0; s < p.splits; ++s)
          for (int64_t i = begin; i < end; ++i) grad_table[i] += partial_table[s * table_size + i];
      });
    }
  }
  if (!sum_g) return;
  for (int64_t s = 0; s < p.splits; ++s)
    for (int64_t group = 0; group < p.groups; ++group)
      for (int64_t c = 0; c < C; ++c) {
        const A* from = partial_sums.get() + s * sums_size + group * 2 * C;
        sum_g[group * C + c] += from[c];
        sum_gx[group * C + c] += from[C + c];
      }
  const int64_t shared = in.shared_channels();
  for (int64_t c = 0; shared > 1 && c < p.groups * C; c += shared) {
    std::fill_n(sum_g + c, shared, std::accumulate(sum_g + c, sum_g + c + shared, A(0)));
    std::fill_n(sum_gx + c, shared, std::accumulate(sum_gx + c, sum_gx + c + shared, A(0)));
  }
}

// grad_x and, where the problem asks for them, the gradients of the maps and of noise_scale, from sums (G, C) over `count`
// values, or none.
template <typename T>
void input_gradients(Typed<T>& typed, const acc_t<T>* sum_g, const acc_t<T>* sum_gx, acc_t<T> count,
                     acc_t<T>* grad_noise_scale) {
  using A = acc_t<T>;
  auto& p = typed.problem;
  const int64_t C = p.channels, all = p.batch * p.pixels;
  Buffer<A> mean_g, mean_gx, noise_sums;
  if (sum_g) {
    mean_g = buffer<A>(p.groups * C), mean_gx = buffer<A>(p.groups * C);
    for (int64_t i = 0; i < p.groups * C; ++i) mean_g[i] = sum_g[i] / count, mean_gx[i] = sum_gx[i] / count;
    p.mean_g = mean_g.get(), p.mean_gx = mean_gx.get();
  }
  p.chunk = std::min<int64_t>(1024, std::max<int64_t>(16, (all + 63) / 64));
  const int64_t parts = typed.channels_last ? (all + p.chunk - 1) / p.chunk : p.batch;
  if (p.noise) {
    noise_sums = buffer<A>(parts * C);
    std::fill_n(noise_sums.get(), parts * C, A(0));
    p.noise_sums = noise_sums.get();
  }
  if (typed.channels_last) {
    parallel_for(0, parts, grain(p.chunk * C),
                 [&](int64_t begin, int64_t end) { typed.kernels.input_chunks(p, begin, end); });
  } else {
    parallel_for(0, p.batch * C, grain(p.pixels),
                 [&](int64_t begin, int64_t end) { typed.kernels.input_planes(p, begin, end); });
  }
  for (int64_t k = 0; p.noise && k < parts; ++k)
    for (int64_t c = 0; c < C; ++c) grad_noise_scale[c] += noise_sums[k * C + c];
}

std::tuple<Tensor, Tensor, Tensor> region_norm_backward_reduce_cpu(
    const Tensor& grad, const Tensor& x, const std::optional<Tensor>& mean, const std::optional<Tensor>& variance,
    const std::optional<Tensor>& index, const std::optional<Tensor>& table, const std::optional<Tensor>& scale,
    const std::optional<Tensor>& shift, const std::optional<Tensor>& noise, const std::optional<Tensor>& noise_scale,
    int64_t norm, double eps, std::optional<double> negative_slope, int64_t num_groups, bool silu) {
  const char* op = "region_norm_backward_reduce";
  Inputs in{op,    x,           mean, variance, index,          table,      scale, shift,
            noise, noise_scale, norm, eps,      negative_slope, num_groups, silu};
  in.check_backward(grad);
  return dispatch_floating(x.scalar_type(), in.op, "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    const ScalarType acc = acc_scalar_type<A>();
    Typed<T> typed(in);
    typed.set_statistics(in);
    auto& p = typed.problem;
    p.grad = data<T>(grad);
    const int64_t C = p.channels;
    const bool sums = in.computes();
    const std::vector<int64_t> sum_shape = sums ? std::vector<int64_t>{p.groups, C} : std::vector<int64_t>{0};
    const std::vector<int64_t> table_shape = table ? std::vector<int64_t>{p.rows, 2 * C} : std::vector<int64_t>{0};
    Tensor sum_g = new_zeros(x, sum_shape, acc), sum_gx = new_zeros(x, sum_shape, acc);
    Tensor grad_table = new_zeros(x, table_shape, acc);
    if (x.numel() > 0)
      reduce<T>(in, typed, sums ? mutable_data<A>(sum_g) : nullptr, sums ? mutable_data<A>(sum_gx) : nullptr,
                table ? mutable_data<A>(grad_table) : nullptr);
    return std::make_tuple(sum_g, sum_gx, grad_table);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> region_norm_backward_input_cpu(
    const Tensor& grad, const Tensor& x, const std::optional<Tensor>& mean, const std::optional<Tensor>& variance,
    const std::optional<Tensor>& index, const std::optional<Tensor>& table, const std::optional<Tensor>& scale,
    const std::optional<Tensor>& shift, const std::optional<Tensor>& noise, const std::optional<Tensor>& noise_scale,
    const std::optional<Tensor>& sum_g, const std::optional<Tensor>& sum_gx, double count, int64_t norm, double eps,
    std::optional<double> negative_slope, int64_t num_groups, bool silu, bool need_maps) {
  const char* op = "region_norm_backward_input";
  Inputs in{op,    x,           mean, variance, index,          table,      scale, shift,
            noise, noise_scale, norm, eps,      negative_slope, num_groups, silu};
  in.check_backward(grad);
  const bool sums = in.computes();
  MIXSYN_CHECK(!sums || (sum_g && sum_gx), in.op, "sum_g and sum_gx", "tensors", "none");
  return dispatch_floating(x.scalar_type(), in.op, "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    const ScalarType acc = acc_scalar_type<A>();
    Typed<T> typed(in);
    typed.set_statistics(in);
    auto& p = typed.problem;
    p.grad = data<T>(grad);
    const int64_t C = p.channels;
    if (sums) {
      check_shape(in.op, "sum_g", *sum_g, {p.groups, C});
      check_shape(in.op, "sum_gx", *sum_gx, {p.groups, C});
      check_dtype(in.op, "sum_g", *sum_g, acc);
      check_dtype(in.op, "sum_gx", *sum_gx, acc);
      MIXSYN_CHECK(sum_g->is_contiguous() && sum_gx->is_contiguous(), in.op, "sum_g and sum_gx", "contiguous memory",
                   "other strides");
    }
    const std::vector<int64_t> none = {0}, per_channel = {noise ? C : 0};
    const bool maps = need_maps && scale;
    Tensor grad_x = empty_like(x);
    Tensor grad_scale = maps ? empty_like(x) : new_empty(x, none),
           grad_shift = maps ? empty_like(x) : new_empty(x, none);
    Tensor grad_noise_scale = new_zeros(x, per_channel, acc);
    if (x.numel() == 0) return std::make_tuple(grad_x, grad_scale, grad_shift, grad_noise_scale);
    p.grad_x = mutable_data<T>(grad_x);
    if (maps) p.grad_scale = mutable_data<T>(grad_scale), p.grad_shift = mutable_data<T>(grad_shift);
    input_gradients<T>(typed, sums ? data<A>(*sum_g) : nullptr, sums ? data<A>(*sum_gx) : nullptr,
                       static_cast<A>(count), noise ? mutable_data<A>(grad_noise_scale) : nullptr);
    return std::make_tuple(grad_x, grad_scale, grad_shift, grad_noise_scale);
  });
}

// Both passes of an even problem. Contiguous, and where what shares statistics fits a cache, one unit after another: what is
// before the activation is then found once, and read again from where grad_x will lie.
std::tuple<Tensor, Tensor> region_norm_backward_cpu(
    const Tensor& grad, const Tensor& x, const std::optional<Tensor>& mean, const std::optional<Tensor>& variance,
    const std::optional<Tensor>& index, const std::optional<Tensor>& table, const std::optional<Tensor>& scale,
    const std::optional<Tensor>& shift, const std::optional<Tensor>& noise, const std::optional<Tensor>& noise_scale,
    int64_t norm, double eps, std::optional<double> negative_slope, int64_t num_groups, bool silu) {
  const char* op = "region_norm_backward";
  Inputs in{op,    x,           mean, variance, index,          table,      scale, shift,
            noise, noise_scale, norm, eps,      negative_slope, num_groups, silu};
  in.check_backward(grad);
  MIXSYN_CHECK(in.computes(), op, "norm", "2 to 4", norm);
  MIXSYN_CHECK(!index && !scale && !noise, op, "index, scale and noise", "none", "a tensor");
  return dispatch_floating(x.scalar_type(), in.op, "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    const ScalarType acc = acc_scalar_type<A>();
    Typed<T> typed(in);
    typed.set_statistics(in);
    auto& p = typed.problem;
    const int64_t C = p.channels, shared = in.shared_channels();
    const A count = static_cast<A>(in.group_size());
    const std::vector<int64_t> table_shape = table ? std::vector<int64_t>{p.rows, 2 * C} : std::vector<int64_t>{0};
    Tensor grad_x = empty_like(x), grad_table = new_zeros(x, table_shape, acc);
    if (x.numel() == 0) return std::make_tuple(grad_x, grad_table);
    A* to_table = table ? mutable_data<A>(grad_table) : nullptr;
    p.grad = data<T>(grad), p.grad_x = mutable_data<T>(grad_x);
    const int64_t units = p.batch * C / shared, threads = static_cast<int64_t>(torch::stable::get_num_threads());
    const bool near = 3 * shared * p.pixels * static_cast<int64_t>(sizeof(T)) <= (1 << 20) && units >= threads;
    if (in.per_image() && !typed.channels_last && near) {
      Buffer<A> sums = buffer<A>(2 * p.batch * C);  // of every plane: of g' and of g' xhat
      p.sums = sums.get();
      parallel_for(0, units, grain(shared * p.pixels),
                   [&](int64_t begin, int64_t end) { typed.kernels.backward_planes(p, shared, count, begin, end); });
      for (int64_t b = 0; table && b < p.batch; ++b)
        for (int64_t c = 0; c < C; ++c) {
          A* row = to_table + b * p.image_row * 2 * C;
          row[c] += sums[2 * (b * C + c) + 1], row[C + c] += sums[2 * (b * C + c)];
        }
      return std::make_tuple(grad_x, grad_table);
    }
    Buffer<A> sums = buffer<A>(2 * p.groups * C);
    std::fill_n(sums.get(), 2 * p.groups * C, A(0));
    A *sum_g = sums.get(), *sum_gx = sum_g + p.groups * C;
    reduce<T>(in, typed, sum_g, sum_gx, to_table);
    input_gradients<T>(typed, sum_g, sum_gx, count, nullptr);
    return std::make_tuple(grad_x, grad_table);
  });
}

}  // namespace
}  // namespace mixsyn_fast

STABLE_TORCH_LIBRARY_IMPL(mixsyn_fast, CPU, m) {
  m.impl("region_norm", TORCH_BOX(&mixsyn_fast::region_norm_cpu));
  m.impl("region_norm_stats", TORCH_BOX(&mixsyn_fast::region_norm_stats_cpu));
  m.impl("region_norm_backward_reduce", TORCH_BOX(&mixsyn_fast::region_norm_backward_reduce_cpu));
  m.impl("region_norm_backward_input", TORCH_BOX(&mixsyn_fast::region_norm_backward_input_cpu));
  m.impl("region_norm_backward", TORCH_BOX(&mixsyn_fast::region_norm_backward_cpu));
}

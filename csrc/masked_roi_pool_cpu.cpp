// masked_roi_pool on the CPU: checks, the plan of an image (which pixel belongs to which row), threads, results.
// The arithmetic of the forward is in cpu/masked_roi_pool.cpp; the backward only places values, so it is here.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "check.h"
#include "cpu/masked_roi_pool.h"
#include "cpu_torch.h"
#include "dispatch.h"

namespace mixsyn_fast {
namespace {

using torch::stable::new_empty;
using torch::stable::parallel_for;

constexpr const char* kOp = "masked_roi_pool";
// Items that the pixels of an image are split for where batch and channels give fewer, and pixels a split has at least.
constexpr int64_t kItems = 8;
constexpr int64_t kLeastPixels = 4096;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void check_labels(const Tensor& labels, int64_t batch, int64_t height, int64_t width, const char* op) {
  check_shape(op, "labels", labels, {batch, height, width});
  check_dtype(op, "labels", labels, ScalarType::Int);
  MIXSYN_CHECK(labels.is_contiguous(), op, "labels", "contiguous memory", "other strides");
}

// Smallest and largest label must lie in [-1, regions).
void check_range(const int32_t* labels, int64_t n, int64_t regions, const char* op) {
  int32_t low = 0, high = -1;
  for (int64_t i = 0; i < n; ++i) {
    low = std::min(low, labels[i]);
    high = std::max(high, labels[i]);
  }
  MIXSYN_CHECK(low >= -1 && high < regions, op, "labels", "values in [0, " + std::to_string(regions) + ") or -1",
               low < -1 ? low : high);
}

// One pass over the labels of an image; labels are in range.
void make_plan(const int32_t* labels, int64_t pixels, int64_t regions, int64_t lanes, int64_t splits,
               int64_t split_pixels, cpu::RoiPlan& plan) {
  std::vector<uint8_t> seen(static_cast<size_t>(regions) + 1, 0);
  for (int64_t p = 0; p < pixels; ++p) seen[static_cast<size_t>(labels[p] + 1)] = 1;
  std::vector<int32_t> row_of(static_cast<size_t>(regions) + 1, -1);  // shifted by one: label -1 first
  int32_t rows = 0;
  for (int64_t k = 0; k < regions; ++k)
    if (seen[static_cast<size_t>(k) + 1]) row_of[static_cast<size_t>(k) + 1] = rows++;
  row_of[0] = rows++;
  plan.rows = rows;
  plan.row.resize(static_cast<size_t>(pixels));
  plan.block.resize(static_cast<size_t>(ceil_div(pixels, lanes)));
  plan.first.assign(static_cast<size_t>(splits * rows), -1);
  plan.area.assign(static_cast<size_t>(rows), 0);
  for (int64_t p0 = 0, k = 0; p0 < pixels; p0 += lanes, ++k) {
    const int64_t n = std::min(lanes, pixels - p0);
    const int32_t head = labels[p0];
    int32_t differs = n < lanes;
    for (int64_t i = 1; i < n; ++i) differs |= labels[p0 + i] ^ head;
    int32_t* first = plan.first.data() + p0 / split_pixels * rows;
    int32_t* row = plan.row.data() + p0;
    if (!differs) {
      const int32_t r = row_of[static_cast<size_t>(head + 1)];
      plan.block[static_cast<size_t>(k)] = r;
      plan.area[static_cast<size_t>(r)] += n;
      if (first[r] < 0) first[r] = static_cast<int32_t>(p0);
      std::fill_n(row, n, r);
      continue;
    }
    plan.block[static_cast<size_t>(k)] = -1;
    for (int64_t i = 0; i < n; ++i) {
      const int32_t r = row_of[static_cast<size_t>(labels[p0 + i] + 1)];
      row[i] = r;
      ++plan.area[static_cast<size_t>(r)];
      if (first[r] < 0) first[r] = static_cast<int32_t>(p0 + i);
    }
  }
  plan.row_of.assign(row_of.begin() + 1, row_of.end());
}

// Joins the splits of one tile of one image in their order and writes its results, absent regions included.
template <typename T, typename A>
void finish(const cpu::RoiPool<T, A>& a, int64_t image, int64_t tile) {
  const cpu::RoiPlan& plan = a.plans[image];
  const int64_t c0 = tile * a.tile, nc = std::min(a.tile, a.channels - c0), part = plan.rows * a.tile;
  const int64_t begin = a.table_begin[image] + tile * a.splits * part;
  for (int64_t k = 0; k < a.regions; ++k) {
    const int64_t to = (image * a.regions + k) * a.channels + c0;
    const int32_t row = plan.row_of[static_cast<size_t>(k)];
    if (row < 0) {
      std::fill_n(a.pooled + to, nc, static_cast<T>(0.0f));
      if (a.maximum) std::fill_n(a.position + to, nc, -1);
      continue;
    }
    A* values = a.table + begin + row * a.tile;
    if (!a.maximum) {
      const A area = static_cast<A>(plan.area[static_cast<size_t>(row)]);
      for (int64_t s = 1; s < a.splits; ++s)
        for (int64_t c = 0; c < nc; ++c) values[c] += values[s * part + c];
      for (int64_t c = 0; c < nc; ++c) a.pooled[to + c] = static_cast<T>(values[c] / area);
      continue;
    }
    int32_t* where = a.where + begin + row * a.tile;
    for (int64_t s = 1; s < a.splits; ++s) {
      const A* other = values + s * part;
      const int32_t* at = where + s * part;
      if (at[0] < 0) continue;  // the split has no pixel of this region
      for (int64_t c = 0; c < nc; ++c) {
        // the earlier of equals stays; a NaN is larger than everything, the first NaN stays
        const bool stays = where[c] >= 0 && (other[c] <= values[c] || values[c] != values[c]);
        if (!stays) values[c] = other[c], where[c] = at[c];
      }
    }
    for (int64_t c = 0; c < nc; ++c) a.pooled[to + c] = static_cast<T>(values[c]);
    std::copy_n(where, nc, a.position + to);
  }
}

std::tuple<Tensor, Tensor, Tensor> masked_roi_pool_cpu(const Tensor& features, const Tensor& labels,
                                                       int64_t num_regions, bool maximum) {
  MIXSYN_CHECK(features.dim() == 4, kOp, "features", "shape (B, C, H, W)", "shape " + shape_string(features));
  const int64_t batch = features.size(0), channels = features.size(1), pixels = features.size(2) * features.size(3);
  check_labels(labels, batch, features.size(2), features.size(3), kOp);
  MIXSYN_CHECK(num_regions >= 1, kOp, "num_regions", "a positive number", num_regions);
  MIXSYN_CHECK(pixels < (int64_t{1} << 31), kOp, "features", "fewer than 2^31 pixels", pixels);
  const Layout4d layout = layout_of(features);
  MIXSYN_CHECK(layout != Layout4d::kOther, kOp, "features", "contiguous or channels_last memory", "other strides");
  return dispatch_floating(features.scalar_type(), kOp, "features", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    const std::vector<int64_t> shape = {batch, num_regions, channels}, plane = {batch, num_regions}, none = {0};
    Tensor pooled = new_empty(features, shape);
    Tensor position = new_empty(features, maximum ? shape : none, ScalarType::Int);
    Tensor area = new_empty(features, maximum ? none : plane, acc_scalar_type<A>());
    constexpr int64_t lanes = 64 / static_cast<int64_t>(sizeof(A));

    cpu::RoiPool<T, A> a;
    a.batch = batch, a.channels = channels, a.pixels = pixels, a.regions = num_regions, a.maximum = maximum;
    a.x = data<T>(features);
    const bool channels_last = layout == Layout4d::kChannelsLast;
    a.tile = (channels_last ? cpu::kRoiLines : 1) * lanes;
    a.tiles = ceil_div(channels, a.tile);
    const int64_t items = batch * a.tiles;
    if (items > 0) a.splits = std::clamp<int64_t>(std::min(ceil_div(kItems, items), pixels / kLeastPixels), 1, kItems);
    a.split_pixels = std::max(lanes, ceil_div(ceil_div(pixels, a.splits), lanes) * lanes);
    a.pooled = mutable_data<T>(pooled);
    a.position = maximum ? mutable_data<int32_t>(position) : nullptr;

    check_range(data<int32_t>(labels), labels.numel(), num_regions, kOp);
    std::vector<cpu::RoiPlan> plans(static_cast<size_t>(batch));
    parallel_for(0, batch, grain(4 * pixels), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        make_plan(data<int32_t>(labels) + b * pixels, pixels, num_regions, lanes, a.splits, a.split_pixels, plans[b]);
    });
    a.plans = plans.data();
    if (!maximum) {
      A* to = mutable_data<A>(area);
      for (int64_t b = 0; b < batch; ++b)
        for (int64_t k = 0; k < num_regions; ++k) {
          const int32_t row = plans[b].row_of[k];
          to[b * num_regions + k] = row < 0 ? A(0) : static_cast<A>(plans[b].area[row]);
        }
    }
    if (items == 0) return std::make_tuple(pooled, position, area);

    std::vector<int64_t> table_begin(static_cast<size_t>(batch));
    int64_t total = 0;
    for (int64_t b = 0; b < batch; ++b) {
      table_begin[b] = total;
      total += a.tiles * a.splits * plans[b].rows * a.tile;
    }
    a.table_begin = table_begin.data();
    Buffer<A> table = buffer<A>(total);
    Buffer<int32_t> where = buffer<int32_t>(maximum ? total : 0);
    a.table = table.get(), a.where = where.get();
    const auto& kernels = cpu::masked_roi_pool_kernels<T, A>();
    const auto pool = channels_last ? kernels.pool_last : kernels.pool_first;
    if (a.splits == 1) {  // results of an item are written while its table is in the cache
      parallel_for(0, items, grain(pixels * a.tile), [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
          pool(a, item, item + 1);
          finish(a, item / a.tiles, item % a.tiles);
        }
      });
    } else {
      parallel_for(0, items * a.splits, 1, [&](int64_t begin, int64_t end) { pool(a, begin, end); });
      for (int64_t item = 0; item < items; ++item) finish(a, item / a.tiles, item % a.tiles);
    }
    return std::make_tuple(pooled, position, area);
  });
}

// ------------------------------------------------------------------------------------------------------- backward

Tensor masked_roi_pool_backward_cpu(const Tensor& grad, const Tensor& labels, const Tensor& position,
                                    const Tensor& area, bool maximum, bool channels_last) {
  constexpr const char* op = "masked_roi_pool_backward";
  MIXSYN_CHECK(grad.dim() == 3, op, "grad", "shape (B, K, C)", "shape " + shape_string(grad));
  MIXSYN_CHECK(grad.is_contiguous(), op, "grad", "contiguous memory", "other strides");
  MIXSYN_CHECK(labels.dim() == 3, op, "labels", "shape (B, H, W)", "shape " + shape_string(labels));
  const int64_t batch = grad.size(0), regions = grad.size(1), channels = grad.size(2);
  const int64_t height = labels.size(1), width = labels.size(2), pixels = height * width;
  check_labels(labels, batch, height, width, op);
  if (maximum) {
    check_shape(op, "position", position, {batch, regions, channels});
    check_dtype(op, "position", position, ScalarType::Int);
    MIXSYN_CHECK(position.is_contiguous(), op, "position", "contiguous memory", "other strides");
  } else {
    check_shape(op, "area", area, {batch, regions});
    MIXSYN_CHECK(area.is_contiguous(), op, "area", "contiguous memory", "other strides");
  }
  return dispatch_floating(grad.scalar_type(), op, "grad", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    const std::vector<int64_t> first = {batch, channels, height, width}, last = {batch, height, width, channels};
    Tensor memory = new_empty(grad, channels_last ? last : first);
    T* out = mutable_data<T>(memory);
    const T* g = data<T>(grad);
    const int32_t* label = data<int32_t>(labels);
    // (B, C, H, W) seen through the memory asked for
    auto result = [&] {
      if (!channels_last) return memory;
      return torch::stable::transpose(torch::stable::transpose(memory, 1, 3), 2, 3);
    };
    if (grad.numel() == 0 || pixels == 0) {
      if (memory.numel() > 0) std::memset(out, 0, static_cast<size_t>(memory.numel()) * sizeof(T));
      return result();
    }
    check_range(label, labels.numel(), regions, op);
    if (maximum) {
      const int32_t* at = data<int32_t>(position);
      MIXSYN_CHECK(*std::max_element(at, at + position.numel()) < pixels, op, "position", "values below H * W", "more");
      const int64_t row = channels_last ? channels : 1, plane = channels_last ? 1 : pixels;
      if (channels_last)
        parallel_for(0, batch * pixels, grain(channels), [&](int64_t begin, int64_t end) {
          std::memset(out + begin * channels, 0, static_cast<size_t>((end - begin) * channels) * sizeof(T));
        });
      constexpr int64_t kTile = 16;  // channels that one thread places: a cache line
      const int64_t tiles = ceil_div(channels, kTile);
      parallel_for(0, batch * tiles, grain(pixels * kTile), [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
          const int64_t b = item / tiles, c0 = item % tiles * kTile, c1 = std::min(c0 + kTile, channels);
          T* image = out + b * channels * pixels;
          if (!channels_last) std::memset(image + c0 * pixels, 0, static_cast<size_t>((c1 - c0) * pixels) * sizeof(T));
          for (int64_t k = 0; k < regions; ++k) {
            const int64_t from = (b * regions + k) * channels;
            if (at[from + c0] < 0) continue;  // absent: in all channels
            for (int64_t c = c0; c < c1; ++c) image[c * plane + at[from + c] * row] = g[from + c];
          }
        }
      });
      return result();
    }
    const A* areas = data<A>(area);
    // the share of a pixel of every region, the last row for pixels of none
    const int64_t rows = regions + 1;
    Buffer<T> share = buffer<T>(batch * rows * channels);
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t k = 0; k < rows; ++k) {
        const bool some = k < regions && areas[b * regions + k] > A(0);
        const A inverse = some ? A(1) / areas[b * regions + k] : A(0);
        for (int64_t c = 0; c < channels; ++c) {
          const A value = some ? static_cast<A>(g[(b * regions + k) * channels + c]) * inverse : A(0);
          share[channels_last ? (b * rows + k) * channels + c : (b * channels + c) * rows + k] = static_cast<T>(value);
        }
      }
    if (channels_last) {
      parallel_for(0, batch * pixels, grain(channels), [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
          const int64_t k = label[p] < 0 ? regions : label[p];
          std::memcpy(out + p * channels, share.get() + (p / pixels * rows + k) * channels,
                      static_cast<size_t>(channels) * sizeof(T));
        }
      });
    } else {
      // blocks of pixels of one region are filled, for all channels alike; the others pixel by pixel
      constexpr int64_t kBlock = 16;
      const int64_t blocks = ceil_div(pixels, kBlock), all = batch * pixels;
      Buffer<int32_t> row = buffer<int32_t>(all);  // of the shares
      for (int64_t p = 0; p < all; ++p) row[p] = label[p] < 0 ? static_cast<int32_t>(regions) : label[p];
      std::vector<uint8_t> uniform(static_cast<size_t>(batch * blocks));
      for (int64_t b = 0; b < batch; ++b)
        for (int64_t k = 0; k < blocks; ++k) {
          const int32_t* r = row.get() + b * pixels + k * kBlock;
          const int64_t n = std::min(kBlock, pixels - k * kBlock);
          int32_t differs = n < kBlock;
          for (int64_t i = 1; i < n; ++i) differs |= r[i] ^ r[0];
          uniform[static_cast<size_t>(b * blocks + k)] = differs == 0;
        }
      parallel_for(0, batch * channels, grain(pixels), [&](int64_t begin, int64_t end) {
        for (int64_t plane = begin; plane < end; ++plane) {
          const int64_t b = plane / channels;
          const T* table = share.get() + plane * rows;
          const uint8_t* same = uniform.data() + b * blocks;
          for (int64_t k = 0; k < pixels / kBlock; ++k) {
            const int32_t* r = row.get() + b * pixels + k * kBlock;
            T* to = out + plane * pixels + k * kBlock;
            if (same[k]) {
              const T value = table[*r];
              for (int64_t i = 0; i < kBlock; ++i) to[i] = value;
            } else {
              for (int64_t i = 0; i < kBlock; ++i) to[i] = table[r[i]];
            }
          }
          for (int64_t p = pixels / kBlock * kBlock; p < pixels; ++p)
            out[plane * pixels + p] = table[row[b * pixels + p]];
        }
      });
    }
    return result();
  });
}

}  // namespace
}  // namespace mixsyn_fast

STABLE_TORCH_LIBRARY_IMPL(mixsyn_fast, CPU, m) {
  m.impl("masked_roi_pool", TORCH_BOX(&mixsyn_fast::masked_roi_pool_cpu));
  m.impl("masked_roi_pool_backward", TORCH_BOX(&mixsyn_fast::masked_roi_pool_backward_cpu));
}

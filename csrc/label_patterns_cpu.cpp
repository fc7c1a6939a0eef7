// label_patterns on the CPU: the distinct label neighbourhoods of a label map, in order of first appearance.
//
// A 3x3 neighbourhood fits 99 bits (nine codes of 11 bits), so its key IS its labels. A 5x5 neighbourhood is the union of
// the four 3x3 ones centred at its inner corners, so the four exact ids of those are an exact key as well: nothing is
// ever decided by a hash. Most pixels repeat their left neighbour's key and skip the table.
//
// Threads take stripes of rows with ids of their own; the stripes' rows are merged afterwards by comparing all labels,
// in raster order, so that the result does not depend on the number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "check.h"

namespace mixsyn_fast {
namespace {

using torch::stable::new_empty;
using torch::stable::parallel_for;

constexpr const char* kOp = "label_patterns";
constexpr int64_t kMaxRegions = 512;
constexpr int kCodeBits = 11;  // 2 * (512 + 2) codes

struct Key {
  uint64_t low, high;
  bool operator==(const Key& other) const { return low == other.low && high == other.high; }
};

inline uint64_t hash_of(const Key& key) {
  uint64_t h = (key.low ^ (key.high * 0x9E3779B97F4A7C15ull)) * 0xD6E8FEB86659FD93ull;
  h ^= h >> 32;
  return h * 0xD6E8FEB86659FD93ull;
}

// Open addressing from exact keys to ids 0, 1, 2, ... in order of insertion.
class IdTable {
 public:
  explicit IdTable(size_t expected) {
    size_t slots = 1024;
    while (slots < 2 * expected) slots *= 2;
    ids_.assign(slots, -1);
    keys_.resize(slots);
  }

  // The id of the key; `added` tells whether it is new.
  int32_t find_or_add(const Key& key, bool& added) {
    size_t at = slot(key);
    added = ids_[at] < 0;
    if (!added) return ids_[at];
    if (2 * (size_ + 1) > ids_.size()) {
      grow();
      at = slot(key);
    }
    keys_[at] = key;
    ids_[at] = static_cast<int32_t>(size_);
    return static_cast<int32_t>(size_++);
  }

 private:
  size_t slot(const Key& key) const {
    const size_t mask = ids_.size() - 1;
    size_t at = (hash_of(key) >> 20) & mask;
    while (ids_[at] >= 0 && !(keys_[at] == key)) at = (at + 1) & mask;
    return at;
  }

  void grow() {
    std::vector<int32_t> ids(ids_.size() * 2, -1);
    std::vector<Key> keys(ids.size());
    ids.swap(ids_), keys.swap(keys_);
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] < 0) continue;
      const size_t at = slot(keys[i]);
      keys_[at] = keys[i], ids_[at] = ids[i];
    }
  }

  std::vector<int32_t> ids_;
  std::vector<Key> keys_;
  size_t size_ = 0;
};

// One image's codes with a border of `radius` out-of-image pixels.
struct CodeMap {
  int64_t height, width, radius, stride;
  std::vector<uint16_t> codes;

  CodeMap(int64_t h, int64_t w, int64_t r, uint16_t outside)
      : height(h),
        width(w),
        radius(r),
        stride(w + 2 * r),
        codes(static_cast<size_t>((h + 2 * r) * (w + 2 * r)), outside) {}
  uint16_t* row(int64_t y) { return codes.data() + (y + radius) * stride + radius; }
  const uint16_t* row(int64_t y) const { return codes.data() + (y + radius) * stride + radius; }
};

// A stripe of rows [y0, y1) of one image: local ids per pixel (written to index) and a representative pixel per id.
struct Stripe {
  int64_t image, y0, y1;
  std::vector<int32_t> first_y, first_x;
};

// Ids of the 3x3 neighbourhoods centred on row y, columns [-border, width + border).
void ids_of_row(const CodeMap& map, int64_t y, int64_t border, IdTable& table, int32_t* out) {
  const uint16_t *above = map.row(y - 1), *here = map.row(y), *below = map.row(y + 1);
  auto column = [&](int64_t x) {
    return static_cast<unsigned __int128>(above[x]) | (static_cast<unsigned __int128>(here[x]) << kCodeBits) |
           (static_cast<unsigned __int128>(below[x]) << (2 * kCodeBits));
  };
  Key previous{~0ull, ~0ull};  // more bits than any key has
  int32_t id = -1;
  for (int64_t x = -border; x < map.width + border; ++x) {
    const unsigned __int128 packed =
        column(x - 1) | (column(x) << (3 * kCodeBits)) | (column(x + 1) << (6 * kCodeBits));
    const Key key{static_cast<uint64_t>(packed), static_cast<uint64_t>(packed >> 64)};
    if (!(key == previous)) {
      bool added;
      id = table.find_or_add(key, added);
      previous = key;
    }
    *out++ = id;
  }
}

void find_patterns(const CodeMap& map, int64_t radius, Stripe& stripe, int32_t* index) {
  const int64_t width = map.width;
  const size_t expected = static_cast<size_t>((stripe.y1 - stripe.y0) * width / 16);
  auto note = [&](bool added, int64_t y, int64_t x) {
    if (added) stripe.first_y.push_back(static_cast<int32_t>(y)), stripe.first_x.push_back(static_cast<int32_t>(x));
  };
  if (radius == 0) {
    std::vector<int32_t> ids(2 * (kMaxRegions + 2), -1);
    for (int64_t y = stripe.y0; y < stripe.y1; ++y) {
      const uint16_t* codes = map.row(y);
      for (int64_t x = 0; x < width; ++x) {
        int32_t& id = ids[codes[x]];
        const bool added = id < 0;
        if (added) id = static_cast<int32_t>(stripe.first_y.size());
        note(added, y, x);
        index[y * width + x] = id;
      }
    }
    return;
  }
  IdTable small(expected), large(radius == 2 ? expected : 0);
  if (radius == 1) {
    std::vector<int32_t> ids(static_cast<size_t>(width));
    size_t known = 0;
    for (int64_t y = stripe.y0; y < stripe.y1; ++y) {
      ids_of_row(map, y, 0, small, ids.data());
      for (int64_t x = 0; x < width; ++x) {
        const bool added = static_cast<size_t>(ids[x]) == known;  // ids count up in order of appearance
        known += added;
        note(added, y, x);
        index[y * width + x] = ids[x];
      }
    }
    return;
  }
  // radius 2: ids of the 3x3 rows y - 1 and y + 1, one column of border on each side; a window of three rows suffices
  const int64_t padded = width + 2;
  std::vector<int32_t> rows[3];
  for (auto& r : rows) r.resize(static_cast<size_t>(padded));
  auto fill = [&](int64_t y) { ids_of_row(map, y, 1, small, rows[(y + 1) % 3].data()); };
  if (stripe.y0 < stripe.y1) {
    fill(stripe.y0 - 1);
    fill(stripe.y0);
  }
  for (int64_t y = stripe.y0; y < stripe.y1; ++y) {
    fill(y + 1);
    const int32_t* top = rows[y % 3].data();           // row y - 1
    const int32_t* bottom = rows[(y + 2) % 3].data();  // row y + 1
    Key previous{~0ull, ~0ull};
    int32_t id = -1;
    for (int64_t x = 0; x < width; ++x) {
      auto pair = [](int32_t a, int32_t b) {
        return static_cast<uint64_t>(static_cast<uint32_t>(a)) |
               (static_cast<uint64_t>(static_cast<uint32_t>(b)) << 32);
      };
      const Key key{pair(top[x], top[x + 2]), pair(bottom[x], bottom[x + 2])};
      if (!(key == previous)) {
        bool added;
        id = large.find_or_add(key, added);
        previous = key;
        note(added, y, x);
      }
      index[y * width + x] = id;
    }
  }
}

// Hash set of whole patterns for the merge: the hash proposes, all labels decide.
class PatternTable {
 public:
  explicit PatternTable(int64_t size) : size_(size), slots_(1024, -1) {}

  // Id of the pattern in `codes` (size_ of them), added at the end where it is new.
  int32_t find_or_add(const uint16_t* codes, int32_t image, bool lookup) {
    if (lookup) {
      size_t at = slot(codes);
      if (slots_[at] >= 0) return slots_[at];
      if (2 * (images.size() + 1) > slots_.size()) {
        grow();
        at = slot(codes);
      }
      slots_[at] = static_cast<int32_t>(images.size());
    }
    patterns.insert(patterns.end(), codes, codes + size_);
    images.push_back(image);
    return static_cast<int32_t>(images.size()) - 1;
  }

  // Forgets earlier rows for look-ups: the rows of an image are its own.
  void start_image(int32_t image) {
    std::fill(slots_.begin(), slots_.end(), -1);
    first_image_ = image;
  }

  std::vector<uint16_t> patterns;
  std::vector<int32_t> images;

 private:
  size_t slot(const uint16_t* codes) const {
    uint64_t h = 0xCBF29CE484222325ull;
    for (int64_t i = 0; i < size_; ++i) h = (h ^ codes[i]) * 0x100000001B3ull;
    h ^= h >> 29;
    const size_t mask = slots_.size() - 1;
    size_t at = h & mask;
    while (slots_[at] >= 0 && std::memcmp(patterns.data() + slots_[at] * size_, codes, size_ * sizeof(uint16_t)) != 0)
      at = (at + 1) & mask;
    return at;
  }

  void grow() {
    slots_.assign(slots_.size() * 2, -1);
    for (size_t i = 0; i < images.size(); ++i) {
      if (images[i] < first_image_) continue;
      slots_[slot(patterns.data() + i * size_)] = static_cast<int32_t>(i);
    }
  }

  int64_t size_;
  int32_t first_image_ = 0;
  std::vector<int32_t> slots_;
};

std::tuple<Tensor, Tensor, Tensor> label_patterns_cpu(const Tensor& labels, const std::optional<Tensor>& edges,
                                                      int64_t num_regions, int64_t radius, bool per_image,
                                                      int64_t max_rows) {
  MIXSYN_CHECK(labels.dim() == 3, kOp, "labels", "shape (B, H, W)", "shape " + shape_string(labels));
  check_dtype(kOp, "labels", labels, ScalarType::Int);
  MIXSYN_CHECK(labels.is_contiguous(), kOp, "labels", "contiguous memory", "other strides");
  MIXSYN_CHECK(num_regions >= 1 && num_regions <= kMaxRegions, kOp, "num_regions", "1 to 512", num_regions);
  MIXSYN_CHECK(radius >= 0 && radius <= 2, kOp, "radius", "0, 1 or 2", radius);
  const int64_t batch = labels.size(0), height = labels.size(1), width = labels.size(2), pixels = height * width;
  if (edges) {
    check_shape(kOp, "edges", *edges, {batch, height, width});
    MIXSYN_CHECK(edges->scalar_type() == ScalarType::Bool || edges->scalar_type() == ScalarType::Byte, kOp, "edges",
                 "bool or uint8", torch::headeronly::toString(edges->scalar_type()));
    MIXSYN_CHECK(edges->is_contiguous(), kOp, "edges", "contiguous memory", "other strides");
  }
  const int32_t* label = static_cast<const int32_t*>(labels.const_data_ptr());
  const uint8_t* edge = edges ? static_cast<const uint8_t*>(edges->const_data_ptr()) : nullptr;

  // Codes, with the range check.
  const int32_t regions = static_cast<int32_t>(num_regions);
  const int64_t border = radius;
  std::vector<CodeMap> maps(static_cast<size_t>(batch), CodeMap(height, width, border, static_cast<uint16_t>(regions)));
  std::vector<int64_t> bad(static_cast<size_t>(batch), -1);
  parallel_for(0, batch, std::max<int64_t>(1, 65536 / std::max<int64_t>(pixels, 1)), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      for (int64_t y = 0; y < height; ++y) {
        uint16_t* out = maps[b].row(y);
        const int32_t* from = label + b * pixels + y * width;
        const uint8_t* bits = edge ? edge + b * pixels + y * width : nullptr;
        for (int64_t x = 0; x < width; ++x) {
          const int32_t k = from[x];
          if ((k < -1 || k >= regions) && bad[b] < 0) bad[b] = y * width + x;
          const int32_t code = (k == -1 ? regions + 1 : k) + (bits && bits[x] ? regions + 2 : 0);
          out[x] = static_cast<uint16_t>(code);
        }
      }
  });
  for (int64_t b = 0; b < batch; ++b) {
    if (bad[b] < 0) continue;
    const std::string where = " at (" + std::to_string(b) + ", " + std::to_string(bad[b] / width) + ", " +
                              std::to_string(bad[b] % width) + ")";
    MIXSYN_CHECK(false, kOp, "labels", "values in [0, " + std::to_string(num_regions) + ") or -1 for no region",
                 std::to_string(label[b * pixels + bad[b]]) + where);
  }

  Tensor index = new_empty(labels, std::vector<int64_t>{batch, height, width}, ScalarType::Int);
  int32_t* index_data = static_cast<int32_t*>(index.mutable_data_ptr());

  // Stripes: whole images where there are enough of them, else shares of at least 64 rows.
  const int64_t threads = std::max<int64_t>(1, torch::stable::get_num_threads());
  const int64_t per = batch > 0 ? std::max<int64_t>(1, std::min((threads + batch - 1) / batch, height / 64)) : 1;
  std::vector<Stripe> stripes;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t s = 0; s < per; ++s) stripes.push_back({b, height * s / per, height * (s + 1) / per, {}, {}});
  parallel_for(0, static_cast<int64_t>(stripes.size()), std::max<int64_t>(1, 4096 / std::max<int64_t>(pixels / per, 1)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t s = begin; s < end; ++s)
                   find_patterns(maps[stripes[s].image], radius, stripes[s], index_data + stripes[s].image * pixels);
               });

  // Merge in raster order. A single stripe, and the first one of an image whose rows are its own, need no look-up.
  const int64_t side = 2 * radius + 1, size = side * side;
  PatternTable merged(size);
  std::vector<std::vector<int32_t>> renumber(stripes.size());
  std::vector<uint16_t> codes(static_cast<size_t>(size));
  for (size_t s = 0; s < stripes.size(); ++s) {
    const Stripe& stripe = stripes[s];
    const bool lookup = per_image ? per > 1 : stripes.size() > 1;
    if (per_image && lookup && stripe.y0 == 0) merged.start_image(static_cast<int32_t>(stripe.image));
    renumber[s].reserve(stripe.first_y.size());
    for (size_t i = 0; i < stripe.first_y.size(); ++i) {
      uint16_t* out = codes.data();
      for (int64_t dy = -radius; dy <= radius; ++dy) {
        const uint16_t* from = maps[stripe.image].row(stripe.first_y[i] + dy) + stripe.first_x[i];
        for (int64_t dx = -radius; dx <= radius; ++dx) *out++ = from[dx];
      }
      renumber[s].push_back(merged.find_or_add(codes.data(), static_cast<int32_t>(stripe.image), lookup));
    }
  }
  if (stripes.size() > 1) {
    parallel_for(0, static_cast<int64_t>(stripes.size()),
                 std::max<int64_t>(1, 65536 / std::max<int64_t>(pixels / per, 1)), [&](int64_t begin, int64_t end) {
                   for (int64_t s = begin; s < end; ++s) {
                     const Stripe& stripe = stripes[s];
                     int32_t* out = index_data + stripe.image * pixels;
                     for (int64_t i = stripe.y0 * width; i < stripe.y1 * width; ++i) out[i] = renumber[s][out[i]];
                   }
                 });
  }

  const int64_t found = static_cast<int64_t>(merged.images.size());
  MIXSYN_CHECK(max_rows < 0 || found <= max_rows, kOp, "max_rows",
               "at least the number of distinct patterns, " + std::to_string(found), max_rows);
  const int64_t rows = max_rows < 0 ? found : max_rows;
  Tensor patterns = new_empty(labels, std::vector<int64_t>{rows, size}, ScalarType::Int);
  Tensor row_image = new_empty(labels, std::vector<int64_t>{rows}, ScalarType::Int);
  int32_t* pattern_data = static_cast<int32_t*>(patterns.mutable_data_ptr());
  int32_t* image_data = static_cast<int32_t*>(row_image.mutable_data_ptr());
  std::copy(merged.patterns.begin(), merged.patterns.end(), pattern_data);
  std::fill(pattern_data + found * size, pattern_data + rows * size, regions);
  std::copy(merged.images.begin(), merged.images.end(), image_data);
  std::fill(image_data + found, image_data + rows, -1);
  return std::make_tuple(index, patterns, row_image);
}

}  // namespace
}  // namespace mixsyn_fast

STABLE_TORCH_LIBRARY_IMPL(mixsyn_fast, CPU, m) {
  m.impl("label_patterns", TORCH_BOX(&mixsyn_fast::label_patterns_cpu));
}

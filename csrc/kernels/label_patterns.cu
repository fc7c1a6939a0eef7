// label_patterns: see label_patterns.h. Steps, each a kernel over all pixels:
//   codes    one 16-bit code per pixel: region, "no region", edge bit; labels are checked here
//   hash     a 32-bit hash of each pixel's window
//   insert   open addressing: a slot is claimed by the first pixel to arrive (atomicCAS) and belongs to that
//            pixel's window from then on; later pixels compare windows, not hashes. Each slot keeps its
//            smallest pixel.
//   count, scan, number   pixels that are the first of their slot are numbered in raster order
//   emit     index, patterns, row_image
#include "label_patterns.h"

#include "launch.cuh"

namespace mixsyn_fast::kernels {
namespace {

// A tap outside the image, in comparisons; no code is as large (codes are below 2 * (512 + 2)).
constexpr unsigned kNone = 0xffffffffu;

struct Grid {
  int height, width;
  int pixels;     // H * W
  int total;      // B * H * W
  unsigned mask;  // slots - 1
  bool per_image;
};

// What the steps hand to each other; all in the caller's workspace.
struct Buffers {
  uint16_t* codes;      // (B*H*W,)
  uint32_t* hashes;     // (B*H*W,)
  int32_t* slot_of;     // (B*H*W,) slot of each pixel's window
  int32_t* number;      // (B*H*W,) firsts before the pixel = row of the window where the pixel is a first
  int32_t* owner;       // (slots,) the pixel that claimed the slot, -1 where free
  int32_t* first;       // (slots,) smallest pixel of the slot
  int32_t* block_sums;  // (scan blocks,)
};

// Calls body(tap, code) for the taps of the window of pixel p, row-major; code is `outside` beyond the image.
template <int RADIUS, typename Body>
__device__ __forceinline__ void for_window(const Grid& grid, const uint16_t* codes, int p, unsigned outside,
                                           Body body) {
  const int in_image = p % grid.pixels;
  const int y = in_image / grid.width, x = in_image % grid.width;
  const uint16_t* centre = codes + p;
#pragma unroll
  for (int dy = -RADIUS; dy <= RADIUS; ++dy) {
#pragma unroll
    for (int dx = -RADIUS; dx <= RADIUS; ++dx) {
      const bool inside = y + dy >= 0 && y + dy < grid.height && x + dx >= 0 && x + dx < grid.width;
      const unsigned code = inside ? centre[static_cast<int64_t>(dy) * grid.width + dx] : outside;
      body((dy + RADIUS) * (2 * RADIUS + 1) + dx + RADIUS, code);
    }
  }
}

// Exact comparison of the windows of pixels p and q.
template <int RADIUS>
__device__ __forceinline__ bool same_window(const Grid& grid, const uint16_t* codes, int p, int q) {
  if (grid.per_image && p / grid.pixels != q / grid.pixels) return false;
  const int in_p = p % grid.pixels, in_q = q % grid.pixels;
  const int yp = in_p / grid.width, xp = in_p % grid.width;
  const int yq = in_q / grid.width, xq = in_q % grid.width;
  const uint16_t *cp = codes + p, *cq = codes + q;
  bool same = true;
#pragma unroll
  for (int dy = -RADIUS; dy <= RADIUS; ++dy) {
#pragma unroll
    for (int dx = -RADIUS; dx <= RADIUS; ++dx) {
      const int64_t offset = static_cast<int64_t>(dy) * grid.width + dx;
      const bool inside_p = yp + dy >= 0 && yp + dy < grid.height && xp + dx >= 0 && xp + dx < grid.width;
      const bool inside_q = yq + dy >= 0 && yq + dy < grid.height && xq + dx >= 0 && xq + dx < grid.width;
      const unsigned code_p = inside_p ? cp[offset] : kNone;
      const unsigned code_q = inside_q ? cq[offset] : kNone;
      same = same && code_p == code_q;
    }
  }
  return same;
}

// Grid-stride loop over pixels: B*H*W <= 2^28 and at most 2^24 threads, so int does not overflow.
__device__ __forceinline__ int first_item() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }
__device__ __forceinline__ int item_stride() { return static_cast<int>(gridDim.x * blockDim.x); }

__device__ __forceinline__ uint64_t mix(uint64_t h) {
  h ^= h >> 32;
  h *= 0x9e3779b97f4a7c15ull;
  h ^= h >> 29;
  h *= 0xbf58476d1ce4e5b9ull;
  h ^= h >> 32;
  return h;
}

// labels (B*H*W,), edges (B*H*W,) or null -> codes (B*H*W,)
__global__ void __launch_bounds__(kThreads)
    label_patterns_codes_kernel(const int32_t* __restrict__ labels, const uint8_t* __restrict__ edges,
                                uint16_t* __restrict__ codes, int total, int num_regions) {
  for (int p = first_item(); p < total; p += item_stride()) {
    const int label = __ldg(labels + p);
    MIXSYN_DEVICE_ASSERT(label >= -1 && label < num_regions,
                         "label_patterns: labels: expected -1 or 0 .. num_regions - 1");
    int code = label < 0 ? num_regions + 1 : label;
    if (edges && __ldg(edges + p)) code += num_regions + 2;
    codes[p] = static_cast<uint16_t>(code);
  }
}

// Frees all slots. owner, first (slots,)
__global__ void __launch_bounds__(kThreads)
    label_patterns_clear_kernel(int32_t* __restrict__ owner, int32_t* __restrict__ first, int64_t slots) {
  for (int64_t s = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; s < slots; s += int64_t{gridDim.x} * blockDim.x) {
    owner[s] = -1;
    first[s] = 0x7fffffff;
  }
}

template <int RADIUS>
__global__ void __launch_bounds__(kThreads) label_patterns_hash_kernel(Grid grid, Buffers buffers, unsigned outside) {
  for (int p = first_item(); p < grid.total; p += item_stride()) {
    uint64_t h = grid.per_image ? mix(static_cast<uint64_t>(p / grid.pixels) + 1) : 0;
    for_window<RADIUS>(grid, buffers.codes, p, outside, [&](int, unsigned code) {
      h = (h ^ code) * 0x100000001b3ull;  // FNV-1a, word-wise; mixed at the end
      h ^= h >> 29;
    });
    buffers.hashes[p] = static_cast<uint32_t>(mix(h));
  }
}

template <int RADIUS>
__global__ void __launch_bounds__(kThreads) label_patterns_insert_kernel(Grid grid, Buffers buffers) {
  for (int p = first_item(); p < grid.total; p += item_stride()) {
    const uint32_t hash = buffers.hashes[p];
    unsigned slot = hash & grid.mask;
    // Slots outnumber pixels, so a free one always comes. A slot never changes hands, so equal windows, which
    // probe the same sequence, stop at the same slot whatever the order of arrival.
    while (true) {
      int owner = __ldcg(buffers.owner + slot);
      if (owner < 0) {
        owner = atomicCAS(buffers.owner + slot, -1, p);
        if (owner < 0) owner = p;
      }
      if (owner == p || (buffers.hashes[owner] == hash && same_window<RADIUS>(grid, buffers.codes, p, owner))) break;
      slot = (slot + 1) & grid.mask;
    }
    buffers.slot_of[p] = static_cast<int32_t>(slot);
    // most pixels come after the smallest one: a possibly stale (larger) value only costs a needless atomic
    if (__ldcg(buffers.first + slot) > p) atomicMin(buffers.first + slot, p);
  }
}

// --- numbering: exclusive prefix sum of "is the first of its slot" over the pixels ---
constexpr int kScanItems = 4;                     // pixels of a thread
constexpr int kScanTile = kThreads * kScanItems;  // pixels of a block

__device__ __forceinline__ int is_first(const Grid& grid, const Buffers& buffers, int64_t p) {
  return p < grid.total && buffers.first[buffers.slot_of[p]] == static_cast<int>(p) ? 1 : 0;
}

// Exclusive prefix sum of one value per thread over the block, and its total. scratch (kThreads,)
__device__ __forceinline__ int block_scan(int value, int* scratch, int* total) {
  const int id = static_cast<int>(threadIdx.x);
  __syncthreads();  // scratch may still be read from an earlier call
  scratch[id] = value;
  __syncthreads();
  for (int offset = 1; offset < kThreads; offset *= 2) {
    const int before = id >= offset ? scratch[id - offset] : 0;
    __syncthreads();
    scratch[id] += before;
    __syncthreads();
  }
  *total = scratch[kThreads - 1];
  return scratch[id] - value;
}

// block_sums[b]: firsts among the pixels of tile b; number[p]: firsts of the tile before p.
__global__ void __launch_bounds__(kThreads) label_patterns_count_kernel(Grid grid, Buffers buffers) {
  __shared__ int scratch[kThreads];
  const int64_t base = int64_t{blockIdx.x} * kScanTile + int64_t{threadIdx.x} * kScanItems;
  int flag[kScanItems], sum = 0, total;
#pragma unroll
  for (int k = 0; k < kScanItems; ++k) {
    flag[k] = is_first(grid, buffers, base + k);
    sum += flag[k];
  }
  int before = block_scan(sum, scratch, &total);
#pragma unroll
  for (int k = 0; k < kScanItems; ++k) {
    if (base + k < grid.total) buffers.number[base + k] = before;
    before += flag[k];
  }
  if (threadIdx.x == 0) buffers.block_sums[blockIdx.x] = total;
}

// One block: block_sums (blocks,) becomes its exclusive prefix sum; total (1,) the sum.
__global__ void __launch_bounds__(kThreads)
    label_patterns_scan_kernel(int32_t* __restrict__ block_sums, int32_t* __restrict__ total_out, int blocks) {
  __shared__ int scratch[kThreads];
  int carry = 0;
  for (int base = 0; base < blocks; base += kThreads) {
    const int i = base + static_cast<int>(threadIdx.x);
    int total;
    const int before = block_scan(i < blocks ? block_sums[i] : 0, scratch, &total);
    if (i < blocks) block_sums[i] = carry + before;
    carry += total;
  }
  if (threadIdx.x == 0) *total_out = carry;
}

// index (B, H, W); patterns (max_rows, (2r+1)^2); row_image (max_rows,)
template <int RADIUS>
__global__ void __launch_bounds__(kThreads)
    label_patterns_emit_kernel(Grid grid, Buffers buffers, int64_t max_rows, unsigned outside,
                               int32_t* __restrict__ index, int32_t* __restrict__ patterns,
                               int32_t* __restrict__ row_image) {
  constexpr int kTaps = (2 * RADIUS + 1) * (2 * RADIUS + 1);
  for (int p = first_item(); p < grid.total; p += item_stride()) {
    const int first = buffers.first[buffers.slot_of[p]];
    const int row = buffers.number[first] + buffers.block_sums[first / kScanTile];
    index[p] = row;
    if (first != p) continue;
    MIXSYN_DEVICE_ASSERT(row < max_rows, "label_patterns: max_rows: fewer rows than distinct patterns");
    int32_t* out = patterns + static_cast<int64_t>(row) * kTaps;
    for_window<RADIUS>(grid, buffers.codes, p, outside,
                       [&](int tap, unsigned code) { out[tap] = static_cast<int>(code); });
    row_image[row] = p / grid.pixels;
  }
}

// Rows from *total on. patterns (max_rows, taps); row_image (max_rows,); total null: from 0 on.
__global__ void __launch_bounds__(kThreads)
    label_patterns_fill_kernel(const int32_t* __restrict__ total, int64_t max_rows, int taps, int outside,
                               int32_t* __restrict__ patterns, int32_t* __restrict__ row_image) {
  const int64_t used = total ? *total : 0;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < max_rows * taps;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t row = i / taps;
    if (row < used) continue;
    patterns[i] = outside;
    if (i % taps == 0) row_image[row] = -1;
  }
}

Grid make_grid(const LabelPatterns& op) {
  Grid g{};
  g.height = static_cast<int>(op.height);
  g.width = static_cast<int>(op.width);
  g.pixels = static_cast<int>(op.height * op.width);
  g.total = static_cast<int>(op.batch * op.height * op.width);
  int64_t slots = 2;
  while (slots < 2 * int64_t{g.total}) slots *= 2;
  g.mask = static_cast<unsigned>(slots - 1);
  g.per_image = op.per_image;
  return g;
}

// Lays the buffers out in `base` (may be null) and returns the bytes they take.
int64_t place(const Grid& grid, char* base, Buffers* b) {
  int64_t used = 0;
  const auto take = [&](int64_t bytes) {
    char* p = base + used;
    used += round_up<int64_t>(bytes, 256);
    return p;
  };
  const int64_t slots = int64_t{grid.mask} + 1, n = grid.total;
  b->owner = reinterpret_cast<int32_t*>(take(slots * 4));
  b->first = reinterpret_cast<int32_t*>(take(slots * 4));
  b->hashes = reinterpret_cast<uint32_t*>(take(n * 4));
  b->slot_of = reinterpret_cast<int32_t*>(take(n * 4));
  b->number = reinterpret_cast<int32_t*>(take(n * 4));
  b->codes = reinterpret_cast<uint16_t*>(take(n * 2));
  b->block_sums = reinterpret_cast<int32_t*>(take(ceil_div<int64_t>(n, kScanTile) * 4));
  return used;
}

// Blocks of a grid-stride loop over n items.
dim3 stride_grid(int64_t n) {
  const int64_t blocks = ceil_div<int64_t>(n, kThreads);
  return dim3(static_cast<unsigned>(blocks < (1 << 16) ? blocks : (1 << 16)));
}

template <typename Body>
cudaError_t dispatch_radius(int radius, Body&& body) {
  switch (radius) {
    case 0:
      return body(std::integral_constant<int, 0>{});
    case 1:
      return body(std::integral_constant<int, 1>{});
    case 2:
      return body(std::integral_constant<int, 2>{});
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace

int64_t label_patterns_workspace(const LabelPatterns& op) {
  Buffers buffers{};
  return place(make_grid(op), nullptr, &buffers);
}

cudaError_t label_patterns_find(const LabelPatterns& op, void* workspace, int32_t* total, cudaStream_t stream) {
  const Grid grid = make_grid(op);
  if (grid.total == 0) return cudaSuccess;
  Buffers buffers{};
  place(grid, static_cast<char*>(workspace), &buffers);
  const int64_t slots = int64_t{grid.mask} + 1;
  const dim3 over_pixels = stride_grid(grid.total);
  const unsigned outside = static_cast<unsigned>(op.num_regions);
  MIXSYN_RETURN_IF_ERROR(launch(label_patterns_codes_kernel, over_pixels, kThreads, stream, op.labels, op.edges,
                                buffers.codes, grid.total, op.num_regions));
  MIXSYN_RETURN_IF_ERROR(
      launch(label_patterns_clear_kernel, stride_grid(slots), kThreads, stream, buffers.owner, buffers.first, slots));
  MIXSYN_RETURN_IF_ERROR(dispatch_radius(op.radius, [&](auto radius) {
    constexpr int RADIUS = decltype(radius)::value;
    MIXSYN_RETURN_IF_ERROR(
        launch(label_patterns_hash_kernel<RADIUS>, over_pixels, kThreads, stream, grid, buffers, outside));
    return launch(label_patterns_insert_kernel<RADIUS>, over_pixels, kThreads, stream, grid, buffers);
  }));
  const int scan_blocks = ceil_div(grid.total, kScanTile);
  MIXSYN_RETURN_IF_ERROR(
      launch(label_patterns_count_kernel, dim3(static_cast<unsigned>(scan_blocks)), kThreads, stream, grid, buffers));
  return launch(label_patterns_scan_kernel, dim3(1), kThreads, stream, buffers.block_sums, total, scan_blocks);
}

cudaError_t label_patterns_read_count(const int32_t* total, int32_t* host, cudaStream_t stream) {
  MIXSYN_RETURN_IF_ERROR(cudaMemcpyAsync(host, total, sizeof(int32_t), cudaMemcpyDeviceToHost, stream));
  return cudaStreamSynchronize(stream);
}

cudaError_t label_patterns_emit(const LabelPatterns& op, const void* workspace, const int32_t* total, int64_t max_rows,
                                int32_t* index, int32_t* patterns, int32_t* row_image, cudaStream_t stream) {
  const Grid grid = make_grid(op);
  const int taps = (2 * op.radius + 1) * (2 * op.radius + 1);
  if (grid.total > 0) {
    Buffers buffers{};
    place(grid, static_cast<char*>(const_cast<void*>(workspace)), &buffers);
    MIXSYN_RETURN_IF_ERROR(dispatch_radius(op.radius, [&](auto radius) {
      return launch(label_patterns_emit_kernel<decltype(radius)::value>, stride_grid(grid.total), kThreads, stream,
                    grid, buffers, max_rows, static_cast<unsigned>(op.num_regions), index, patterns, row_image);
    }));
  }
  if (max_rows == 0) return cudaSuccess;
  return launch(label_patterns_fill_kernel, stride_grid(max_rows * taps), kThreads, stream,
                grid.total > 0 ? total : nullptr, max_rows, taps, op.num_regions, patterns, row_image);
}

}  // namespace mixsyn_fast::kernels

// masked_roi_pool: the mean.
//
// Sums of floats must have a fixed order, so there are no atomics. A block takes kPiece pixels of an image,
// sorts them by label in shared memory (keys label, pixel: the order is the same whatever the threads do) and
// walks over them in that order: every label of the piece is one run, written once into the block's own rows of
// a partial table. A second kernel adds the blocks' rows in ascending order and divides.
//
// Memory: partial (B, blocks, K, C) acc is written, and read again, only where a block holds a label, which
// `counts` (B, blocks, slices, K) tells; so its traffic is that of the labels present. Its size matters all
// the same: where many regions would make it larger than a quarter of the features (and than kFreely), a block
// takes several pieces one after another and adds to its rows. With K = 512, C = 128 and 2^20 pixels in
// bfloat16 that is 5 pieces, 2560 pixels a block, and 105 MiB.
#include "masked_roi_pool.cuh"

namespace mixsyn_fast::kernels {
namespace {

#ifdef MIXSYN_EMULATE_CUDA
constexpr int kPiece = 64;
constexpr int64_t kFreely = 1 << 14;
constexpr int64_t kMeanBlocks = 3;
#else
constexpr int kPiece = 512;
constexpr int64_t kFreely = int64_t{128} << 20;
constexpr int64_t kMeanBlocks = 512;  // fewer than this leave multiprocessors idle
#endif
constexpr int kPieceBits = kPiece == 64 ? 6 : 9;
static_assert(kPiece == 1 << kPieceBits, "a key holds the pixel's number in the piece");
static_assert((kMaxPoolRegions << kPieceBits) < 0xffffffffLL, "and its label");
constexpr uint32_t kNone = 0xffffffffu;  // key of a pixel of no region: sorts last

__device__ __forceinline__ uint32_t label_of(uint32_t key) { return key >> kPieceBits; }

// Bitonic sort, ascending. keys (kPiece,) written by any thread before; sorted for all threads after. A warp
// owns 64 keys side by side, which steps of strides up to 32 do not leave.
__device__ __forceinline__ void sort_keys(uint32_t* keys) {
  static_assert(kPiece <= 2 * kThreads, "one pair a thread");
  const int id = static_cast<int>(threadIdx.x);
  __syncthreads();
#pragma unroll 1
  for (int size = 2; size <= kPiece; size *= 2) {
#pragma unroll 1
    for (int stride = size / 2; stride > 0; stride /= 2) {
      if (id < kPiece / 2) {
        const int low = 2 * id - (id & (stride - 1)), high = low + stride;
        const uint32_t a = keys[low], b = keys[high];
        if ((a > b) == ((low & size) == 0)) keys[low] = b, keys[high] = a;
      }
      // the next step is of half the stride, or of the next size's
      const bool leaves = stride > 1 ? stride / 2 > 32 : size > 32;
      if (leaves || stride > 32)
        __syncthreads();
      else
        __syncwarp();
    }
  }
  __syncthreads();
}

// Split of the work. A block: one image, `pieces` pieces, slices of `groups` x V channels, `lanes` parts of a
// piece side by side.
struct MeanPlan {
  int blocks;   // blocks along the pixels of an image
  int pieces;   // pieces of a block
  int groups;   // groups of V channels side by side in a block
  int lanes;    // kThreads / groups
  int slices;   // slices that cover the channels
  int columns;  // blocks along the slices
};

// Channels of a tile of the contiguous kernel, in shared memory.
template <typename T>
constexpr int mean_tile_channels() {
  return 64 / static_cast<int>(sizeof(T));
}

template <typename I>
I min_of(I a, I b) {
  return a < b ? a : b;
}
template <typename I>
I max_of(I a, I b) {
  return a < b ? b : a;
}

int64_t acc_bytes(const MaskedRoiPool& op) { return op.dtype == DType::kDouble ? 8 : 4; }
int64_t element_bytes(const MaskedRoiPool& op) {
  return op.dtype == DType::kDouble ? 8 : (op.dtype == DType::kFloat ? 4 : 2);
}

// Blocks along the pixels, and their pieces.
void plan_pixels(const MaskedRoiPool& op, MeanPlan* plan) {
  const int64_t total = ceil_div<int64_t>(op.pixels, kPiece);
  const int64_t features = op.batch * op.channels * op.pixels * element_bytes(op);
  const int64_t limit = max_of(features / 4, kFreely);
  const int64_t table = op.batch * op.regions * (op.channels * acc_bytes(op) + 4);  // of one block of every image
  const int64_t most = min_of(max_of<int64_t>(limit / table, 1), total);
  const int64_t pieces = ceil_div(total, most);
  plan->pieces = static_cast<int>(pieces);
  plan->blocks = static_cast<int>(ceil_div(total, pieces));
}

template <typename T>
MeanPlan make_plan(const MaskedRoiPool& op, int v) {
  MeanPlan plan{};
  plan_pixels(op, &plan);
  const int64_t groups = ceil_div<int64_t>(op.channels, v);
  const int64_t image_blocks = op.batch * plan.blocks;
  if (op.channels_last) {
    // small maps are cut along the channels as well, into slices of 16 groups at least
    const int64_t cuts = min_of(ceil_div(kMeanBlocks, image_blocks), ceil_div<int64_t>(groups, 16));
    plan.slices = static_cast<int>(max_of(cuts, ceil_div<int64_t>(groups, kThreads)));
    plan.groups = static_cast<int>(ceil_div<int64_t>(groups, plan.slices));
    plan.slices = static_cast<int>(ceil_div<int64_t>(groups, plan.groups));
  } else {
    plan.groups = mean_tile_channels<T>();
    plan.slices = static_cast<int>(ceil_div<int64_t>(groups, plan.groups));
  }
  plan.lanes = kThreads / plan.groups;
  plan.columns =
      static_cast<int>(max_of<int64_t>(min_of<int64_t>(ceil_div(kPoolBlocks, image_blocks), plan.slices), 1));
  return plan;
}

// partial (B, blocks, K, C); counts (B, blocks, columns, K), zero before.
template <typename T, int V, bool CL, bool VEC>
__global__ void __launch_bounds__(kThreads, CL ? 3 : 2)
    masked_roi_pool_mean_kernel(PoolArgs<T> args, MeanPlan plan, acc_t<T>* partial, int32_t* counts) {
  using A = acc_t<T>;
  constexpr int U = pool_depth<T, V>();
  constexpr int kChannels = mean_tile_channels<T>();
  // a row is one bank longer than its pixels: lanes that read one pixel of many rows touch distinct banks
  constexpr int kRowBytes = kPiece * static_cast<int>(sizeof(T)) + (sizeof(T) == 8 ? 8 : 4);
  __shared__ uint32_t keys[kPiece];
  __shared__ A carry[kThreads * V];
  __shared__ uint2 tile[CL ? 1 : kChannels * kRowBytes / 8];

  const int id = static_cast<int>(threadIdx.x);
  const int lane = id / plan.groups, group = id % plan.groups;
  const int64_t image = blockIdx.x / plan.blocks, block = blockIdx.x % plan.blocks;
  const T* features = args.features + image * args.channels * args.pixels;
  const int32_t* labels = args.labels + image * args.pixels;
  partial += (image * plan.blocks + block) * args.regions * args.channels;
  counts += ((image * plan.blocks + block) * plan.columns + blockIdx.y) * args.regions;
  const int length = ceil_div(kPiece, plan.lanes);  // sorted pixels of a lane
  const int begin = lane < plan.lanes && lane * length < kPiece ? lane * length : kPiece;
  const int end = begin + length < kPiece ? begin + length : kPiece;

  for (int piece = 0; piece < plan.pieces; ++piece) {
    const int64_t first_pixel = (block * plan.pieces + piece) * kPiece;
    if (first_pixel >= args.pixels) break;
    const int base = static_cast<int>(first_pixel);
    const int present = args.pixels - base < kPiece ? args.pixels - base : kPiece;
    __syncthreads();  // keys may still be read
    constexpr int kLabels = ceil_div(kPiece, kThreads);
    int label[kLabels];
#pragma unroll
    for (int k = 0; k < kLabels; ++k)
      label[k] = id + k * kThreads < present ? __ldg(labels + base + id + k * kThreads) : -1;
    check_labels(label, args.regions);
#pragma unroll
    for (int k = 0; k < kLabels; ++k) {
      const int i = id + k * kThreads;
      if (i < kPiece) {
        keys[i] = label[k] < 0 ? kNone : (static_cast<uint32_t>(label[k]) << kPieceBits) | static_cast<uint32_t>(i);
      }
    }
    sort_keys(keys);

    for (int slice = static_cast<int>(blockIdx.y); slice < plan.slices; slice += plan.columns) {
      const int c0 = slice * plan.groups * V + group * V;
      const bool exists = c0 < args.channels && begin < end;
      const int tile_c0 = slice * kChannels;
      __syncthreads();  // tile and carry may still be read
      if constexpr (!CL && VEC) {
        constexpr int W = 16 / static_cast<int>(sizeof(T)), kRowVectors = kPiece / W;
        constexpr int kLoads = kChannels * kRowVectors / kThreads > 0 ? kChannels * kRowVectors / kThreads : 1;
        uint4 raw[kLoads];
#pragma unroll
        for (int k = 0; k < kLoads; ++k) {
          const int i = id + k * kThreads, row = i / kRowVectors, pixel = i % kRowVectors * W;
          raw[k] = make_uint4(0, 0, 0, 0);
          if (row < kChannels && tile_c0 + row < args.channels && pixel < present) {
            raw[k] = __ldcg(reinterpret_cast<const uint4*>(
                features + static_cast<int64_t>(tile_c0 + row) * args.pixels + base + pixel));
          }
        }
#pragma unroll
        for (int k = 0; k < kLoads; ++k) {
          const int i = id + k * kThreads, row = i / kRowVectors, column = i % kRowVectors;
          if (row >= kChannels) continue;
          uint32_t* to = reinterpret_cast<uint32_t*>(reinterpret_cast<char*>(tile) + row * kRowBytes) + column * 4;
          to[0] = raw[k].x, to[1] = raw[k].y, to[2] = raw[k].z, to[3] = raw[k].w;
        }
        __syncthreads();
      } else if constexpr (!CL) {
        for (int i = id; i < kChannels * kPiece; i += kThreads) {
          const int row = i / kPiece, pixel = i % kPiece;
          if (tile_c0 + row < args.channels && pixel < present) {
            *(reinterpret_cast<T*>(reinterpret_cast<char*>(tile) + row * kRowBytes) + pixel) =
                __ldg(features + static_cast<int64_t>(tile_c0 + row) * args.pixels + base + pixel);
          }
        }
        __syncthreads();
      }

      // A run that began in an earlier lane goes to carry; one that begins here is written, the last one only
      // when the lanes after it have left what belongs to it.
      const auto write = [&](uint32_t label, const A(&sum)[V]) {
        A* row = partial + static_cast<int64_t>(label) * args.channels + c0;
        const bool add = piece > 0 && counts[label] > 0;
#pragma unroll
        for (int v = 0; v < V; ++v) row[v] = add ? row[v] + sum[v] : sum[v];
      };
      A sum[V] = {};
      uint32_t current = label_of(kNone);
      bool carried = false;
      if (exists) {
        current = label_of(keys[begin]);
        carried = begin > 0 && label_of(keys[begin - 1]) == current;
        for (int i = begin; i < end; i += U) {
          uint32_t key[U];
          A x[U][V];
#pragma unroll
          for (int u = 0; u < U; ++u) {
            key[u] = i + u < end ? keys[i + u] : kNone;
            const int pixel = key[u] == kNone ? 0 : static_cast<int>(key[u] & (kPiece - 1));
            if constexpr (CL) {
              load_channels<V>(x[u], features + static_cast<int64_t>(base + pixel) * args.channels + c0);
            } else {
              x[u][0] = to_acc(
                  *(reinterpret_cast<const T*>(reinterpret_cast<const char*>(tile) + group * kRowBytes) + pixel));
            }
          }
#pragma unroll
          for (int u = 0; u < U; ++u) {
            if (key[u] == kNone) break;  // no region: all that follow are the same
            if (label_of(key[u]) != current) {
              if (carried) {
#pragma unroll
                for (int v = 0; v < V; ++v) carry[v * kThreads + id] = sum[v];
              } else {
                write(current, sum);
              }
              current = label_of(key[u]);
              carried = false;
#pragma unroll
              for (int v = 0; v < V; ++v) sum[v] = A(0);
            }
#pragma unroll
            for (int v = 0; v < V; ++v) sum[v] += x[u][v];
          }
        }
        if (carried) {
#pragma unroll
          for (int v = 0; v < V; ++v) carry[v * kThreads + id] = sum[v];
        }
      }
      __syncthreads();
      if (exists && !carried && current != label_of(kNone)) {
        for (int other = 1; begin + other * length < kPiece && label_of(keys[begin + other * length]) == current;
             ++other) {
#pragma unroll
          for (int v = 0; v < V; ++v) sum[v] += carry[v * kThreads + id + other * plan.groups];
        }
        write(current, sum);
      }
    }

    __syncthreads();  // counts of the pieces before have been read
    for (int i = id; i < kPiece; i += kThreads) {
      const uint32_t label = label_of(keys[i]);
      if (keys[i] == kNone || (i > 0 && label_of(keys[i - 1]) == label)) continue;
      int low = i + 1, high = kPiece;  // the run ends at the first key beyond the label
      while (low < high) {
        const int middle = (low + high) / 2;
        if (label_of(keys[middle]) > label)
          high = middle;
        else
          low = middle + 1;
      }
      counts[label] += low - i;
    }
  }
}

// pooled (B, K, C), area (B, K) from partial (B, blocks, K, C) and counts (B, blocks, columns, K).
template <typename T>
__global__ void __launch_bounds__(kThreads)
    masked_roi_pool_mean_merge_kernel(const acc_t<T>* __restrict__ partial, const int32_t* __restrict__ counts,
                                      T* __restrict__ pooled, acc_t<T>* __restrict__ area, int64_t rows, int regions,
                                      int channels, int blocks, int columns) {
  using A = acc_t<T>;
  const int64_t width = channels > 0 ? channels : 1;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < rows * width; i += int64_t{gridDim.x} * kThreads) {
    const int64_t row = i / width, c = i % width;
    const int64_t image = row / regions, region = row % regions;
    int32_t n = 0;
    A sum = A(0);
#pragma unroll 4
    for (int block = 0; block < blocks; ++block) {
      const int64_t at = image * blocks + block;
      const int32_t count = __ldg(counts + at * columns * regions + region);
      n += count;
      if (count > 0 && channels > 0) sum += __ldg(partial + (at * regions + region) * channels + c);
    }
    if (c == 0) area[row] = static_cast<A>(n);
    if (channels > 0) pooled[i] = from_acc<T>(n > 0 ? sum / static_cast<A>(n) : A(0));
  }
}

template <typename T, typename Body>
cudaError_t dispatch_plan(const MaskedRoiPool& op, Body&& body) {
  if (op.channels_last) {
    return dispatch_width<T>(op.channels, op.features, [&](auto width) {
      constexpr int V = decltype(width)::value;
      return body(make_plan<T>(op, V), masked_roi_pool_mean_kernel<T, V, true, true>);
    });
  }
  const MeanPlan plan = make_plan<T>(op, 1);
  const bool vector = aligned16(op.features) && op.pixels % (16 / static_cast<int>(sizeof(T))) == 0;
  return body(
      plan, vector ? masked_roi_pool_mean_kernel<T, 1, false, true> : masked_roi_pool_mean_kernel<T, 1, false, false>);
}

}  // namespace

PoolWorkspace masked_roi_pool_mean_workspace(const MaskedRoiPool& op) {
  PoolWorkspace bytes;
  if (op.batch * op.regions * op.pixels == 0) return bytes;
  dispatch_type(op.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return dispatch_plan<T>(op, [&](const MeanPlan& plan, auto) {
      const int64_t cells = op.batch * plan.blocks * op.regions;
      bytes = {cells * plan.columns * 4, cells * op.channels * acc_bytes(op)};
      return cudaSuccess;
    });
  });
  return bytes;
}

cudaError_t masked_roi_pool_mean(const MaskedRoiPool& op, void* pooled, void* area, void* zeroed, void* scratch,
                                 cudaStream_t stream) {
  const int64_t rows = op.batch * op.regions;
  if (rows == 0) return cudaSuccess;
  return dispatch_type(op.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = acc_t<T>;
    A* partial = static_cast<A*>(scratch);
    int32_t* counts = static_cast<int32_t*>(zeroed);
    int blocks = 0, columns = 1;
    if (op.pixels > 0) {
      MIXSYN_RETURN_IF_ERROR(dispatch_plan<T>(op, [&](const MeanPlan& plan, auto kernel) {
        blocks = plan.blocks, columns = plan.columns;
        if (op.batch * blocks > 0x7fffffffLL || columns > 65535) return cudaErrorInvalidConfiguration;
        return launch(kernel, dim3(static_cast<unsigned>(op.batch * blocks), static_cast<unsigned>(columns)), kThreads,
                      stream, make_pool_args<T>(op), plan, partial, counts);
      }));
    }
    const int64_t cells = rows * (op.channels > 0 ? op.channels : 1);
    const int64_t grid = ceil_div<int64_t>(cells, kThreads);
    return launch(masked_roi_pool_mean_merge_kernel<T>,
                  dim3(static_cast<unsigned>(grid < kStreamBlocks ? grid : kStreamBlocks)), kThreads, stream, partial,
                  counts, static_cast<T*>(pooled), static_cast<A*>(area), rows, static_cast<int>(op.regions),
                  static_cast<int>(op.channels), blocks, columns);
  });
}

}  // namespace mixsyn_fast::kernels

// What the forward and backward kernels of region_norm share: arguments on the device, the modulation of a
// tile, and the choice of the template instance.
#pragma once

#include "dtype.cuh"
#include "region_norm.h"
#include "vec.cuh"

namespace mixsyn_fast::kernels {

enum class Mode { kPlain, kTable, kRow, kMaps };  // kRow: a table without index

// T: type of x. P: type of table, scale, shift.
template <typename T, typename P>
struct Args {
  using A = acc_t<T>;
  Tiling tiling;
  int channels, pixels;  // C, H*W
  int rows;              // R
  int image_row;         // without index, the row of image b is b * image_row: 0 or 1
  const T* x;            // (B, C, H, W)
  const A* mean;         // (B or 1, C) or null
  const A* variance;     // (B or 1, C) or null
  int64_t group_stride;  // C where mean and variance have a row per image, else 0
  const int32_t* index;  // (B, H*W)
  const P* table;        // (R, 2C)
  const P* scale;        // (B, C, H, W)
  const P* shift;        // (B, C, H, W)
  const T* noise;        // (B, H*W) or null
  const T* noise_scale;  // (C,)
  A eps, slope;
  bool silu;
};

__device__ __forceinline__ float reciprocal_sqrt(float v) { return 1.0f / sqrtf(v); }
__device__ __forceinline__ double reciprocal_sqrt(double v) { return 1.0 / sqrt(v); }

__device__ __forceinline__ float exponential(float v) { return expf(v); }
__device__ __forceinline__ double exponential(double v) { return exp(v); }

// The activation of a tile, in place.
template <int U, int V, typename A>
__device__ __forceinline__ void activate(A (&value)[U][V], A slope, bool silu) {
  if (silu) {  // the same for every thread
#pragma unroll
    for (int u = 0; u < U; ++u) {
#pragma unroll
      for (int v = 0; v < V; ++v) value[u][v] = value[u][v] / (A(1) + exponential(-value[u][v]));
    }
    return;
  }
#pragma unroll
  for (int u = 0; u < U; ++u) {
#pragma unroll
    for (int v = 0; v < V; ++v) value[u][v] = value[u][v] > A(0) ? value[u][v] : value[u][v] * slope;
  }
}

// The gradient before the activation from that after it, of one element.
template <typename A>
__device__ __forceinline__ A before_activation(A grad, A value, A slope, bool silu) {
  if (silu) {
    const A share = A(1) / (A(1) + exponential(-value));
    return grad * (share * (A(1) + value * (A(1) - share)));
  }
  return value > A(0) ? grad : grad * slope;
}

// Mean and 1/sqrt(variance + eps) of V channels of one group; 0 and 1 where there is no normalisation.
template <int V, typename T, typename P>
__device__ __forceinline__ void load_norm(const Args<T, P>& args, int image, int c0, int valid, acc_t<T> (&mean)[V],
                                          acc_t<T> (&rstd)[V]) {
  const int64_t offset = image * args.group_stride + c0;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int i = v < valid ? v : valid - 1;
    mean[v] = args.mean ? __ldg(args.mean + offset + i) : acc_t<T>(0);
    rstd[v] = args.variance ? reciprocal_sqrt(__ldg(args.variance + offset + i) + args.eps) : acc_t<T>(1);
  }
}

// x + noise * noise_scale, in place. `noise_image`: noise of the image, (H*W,). The scale is read again for
// every tile (from L1): in registers it would cost a warp or two of occupancy to all the kernels that have no
// noise.
template <bool VEC, int U, int V, typename T, typename P>
__device__ __forceinline__ void add_noise(const Args<T, P>& args, acc_t<T> (&x)[U][V], const T* noise_image,
                                          const int (&pixel)[U], int c0, int valid) {
  acc_t<T> noise_scale[V];
  load_row<VEC, Cache::kReuse, V>(noise_scale, args.noise_scale + c0, valid);
#pragma unroll
  for (int u = 0; u < U; ++u) {
    const acc_t<T> noise = to_acc(__ldg(noise_image + pixel[u]));
#pragma unroll
    for (int v = 0; v < V; ++v) x[u][v] += noise * noise_scale[v];
  }
}

// First element of a pixel's row of the table.
template <typename T, typename P>
__device__ __forceinline__ const P* table_row(const Args<T, P>& args, int row) {
  MIXSYN_DEVICE_ASSERT(static_cast<unsigned>(row) < static_cast<unsigned>(args.rows),
                       "region_norm: index is outside the rows of the table");
  return args.table + static_cast<int64_t>(row) * 2 * args.channels;
}

// gamma and beta of a tile; `base` = first element of the image in every map, `index_image` = index of the
// image (in mode kTable).
template <Mode MODE, int U, int V, bool CL, bool VEC, typename T, typename P>
__device__ __forceinline__ void load_modulation(const Args<T, P>& args, int image, int64_t base,
                                                const int32_t* index_image, const int (&pixel)[U], int c0, int valid,
                                                acc_t<T> (&gamma)[U][V], acc_t<T> (&beta)[U][V]) {
  if constexpr (MODE == Mode::kTable) {
    int row[U];
#pragma unroll
    for (int u = 0; u < U; ++u) row[u] = __ldg(index_image + pixel[u]);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const P* p = table_row(args, row[u]) + c0;
      load_row<VEC, Cache::kReuse, V>(gamma[u], p, valid);
      load_row<VEC, Cache::kReuse, V>(beta[u], p + args.channels, valid);
    }
  } else if constexpr (MODE == Mode::kRow) {
    const P* p = args.table + static_cast<int64_t>(image) * args.image_row * 2 * args.channels + c0;
    acc_t<T> row_gamma[V], row_beta[V];
    load_row<VEC, Cache::kReuse, V>(row_gamma, p, valid);
    load_row<VEC, Cache::kReuse, V>(row_beta, p + args.channels, valid);
#pragma unroll
    for (int u = 0; u < U; ++u) {
#pragma unroll
      for (int v = 0; v < V; ++v) gamma[u][v] = row_gamma[v], beta[u][v] = row_beta[v];
    }
  } else if constexpr (MODE == Mode::kMaps) {
    load_tile<U, V, CL, VEC>(gamma, args.scale + base, pixel, c0, valid, args.channels, args.pixels);
    load_tile<U, V, CL, VEC>(beta, args.shift + base, pixel, c0, valid, args.channels, args.pixels);
  }
}

inline int64_t acc_bytes(const RegionNorm& op) { return op.dtype == DType::kDouble ? 8 : 4; }

template <typename T>
constexpr DType dtype_of() {
  return std::is_same<T, double>::value   ? DType::kDouble
         : std::is_same<T, float>::value  ? DType::kFloat
         : std::is_same<T, __half>::value ? DType::kHalf
                                          : DType::kBFloat16;
}

// Whether the tiles of T in the op's layout can be moved as vectors; `others` are the further maps the kernel
// touches.
template <typename T, typename... Pointers>
bool vectorizable(const RegionNorm& op, Pointers... others) {
  bool ok = op.channels_last ? op.channels % TileShape<T, true, true, Load::kLight>::kV == 0
                             : op.channels % TileShape<T, false, true, Load::kLight>::kV == 0 &&
                                   op.pixels % TileShape<T, false, true, Load::kLight>::kU == 0;
  for (const void* p : {op.x, op.table, op.scale, op.shift, op.noise_scale, static_cast<const void*>(others)...}) {
    ok = ok && aligned16(p);  // null is aligned
  }
  return ok;
}

template <typename T, typename P>
Args<T, P> make_args(const RegionNorm& op) {
  using A = acc_t<T>;
  Args<T, P> a{};
  a.channels = static_cast<int>(op.channels);
  a.pixels = static_cast<int>(op.pixels);
  a.rows = static_cast<int>(op.rows);
  a.image_row = op.by_image() && op.rows > 1;
  a.x = static_cast<const T*>(op.x);
  a.mean = static_cast<const A*>(op.mean);
  a.variance = static_cast<const A*>(op.variance);
  a.group_stride = op.per_instance ? op.channels : 0;
  a.index = op.index;
  a.table = static_cast<const P*>(op.table);
  a.scale = static_cast<const P*>(op.scale);
  a.shift = static_cast<const P*>(op.shift);
  a.noise = static_cast<const T*>(op.noise);
  a.noise_scale = static_cast<const T*>(op.noise_scale);
  a.eps = static_cast<A>(op.eps);
  a.slope = static_cast<A>(op.slope);
  a.silu = op.silu;
  return a;
}

template <Mode M>
using ModeTag = std::integral_constant<Mode, M>;

// body(Type<T>{}) for the op's dtype.
template <typename Body>
cudaError_t dispatch_type(const RegionNorm& op, Body&& body) {
  return dispatch_type(op.dtype, body);
}

// body(CL, VEC) as compile-time booleans.
template <typename Body>
cudaError_t dispatch_layout(bool channels_last, bool vector, Body&& body) {
  if (channels_last) return vector ? body(Bool<true>{}, Bool<true>{}) : body(Bool<true>{}, Bool<false>{});
  return vector ? body(Bool<false>{}, Bool<true>{}) : body(Bool<false>{}, Bool<false>{});
}

// body(Type<P>{}, ModeTag<MODE>{}): type of the parameters and where they come from.
template <typename T, typename Body>
cudaError_t dispatch_params(const RegionNorm& op, Body&& body) {
  using A = acc_t<T>;
  if (op.table == nullptr && op.scale == nullptr) return body(Type<T>{}, ModeTag<Mode::kPlain>{});
  const auto modes = [&](auto param) {
    if (op.by_image()) return body(param, ModeTag<Mode::kRow>{});
    return op.table ? body(param, ModeTag<Mode::kTable>{}) : body(param, ModeTag<Mode::kMaps>{});
  };
  if constexpr (!std::is_same<T, A>::value) {
    if (op.acc_params) return modes(Type<A>{});
  }
  return modes(Type<T>{});
}

}  // namespace mixsyn_fast::kernels

// Reductions in a fixed order: lanes of a block by a tree in shared memory, blocks by a second kernel. No
// atomics.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "launch.cuh"

namespace mixsyn_fast::kernels {

// Sums `values` over the lanes of a block; lane 0 of every group ends with the total. `scratch` holds
// kThreads * V elements. Every thread of the block calls this, also those without work (`active` false,
// values ignored).
template <int V, typename A>
__device__ __forceinline__ void sum_lanes(A (&values)[V], A* scratch, int lane, int group, int lanes, int groups,
                                          bool active) {
  const int slot = lane * groups + group;
  __syncthreads();  // scratch may still be read from an earlier call
  if (active) {
#pragma unroll
    for (int v = 0; v < V; ++v) scratch[v * kThreads + slot] = values[v];
  }
  for (int count = lanes; count > 1;) {
    const int half = (count + 1) / 2;
    __syncthreads();
    if (active && lane + half < count) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        values[v] += scratch[v * kThreads + slot + half * groups];
        scratch[v * kThreads + slot] = values[v];
      }
    }
    count = half;
  }
}

// Chan's update: (n, mean, m2) of one set joined with (m, other_mean, other_m2) of a disjoint one.
template <typename A>
__device__ __forceinline__ void merge_moments(A n, A& mean, A& m2, A m, A other_mean, A other_m2) {
  const A total = n + m;
  if (m > A(0)) {
    const A delta = other_mean - mean;
    const A share = m / total;
    mean += delta * share;
    m2 += other_m2 + delta * delta * (n * share);
  }
}

// Second stage of all sums. One block adds kSumColumns columns of one group.
constexpr int kSumColumns = 32;
constexpr int kSumRows = 32;

// Sum of `value` over the kSumRows threads of column x, given to all of them. scratch (kSumRows,
// kSumColumns).
template <typename A>
__device__ __forceinline__ A sum_rows(A value, A* scratch, int x, int y) {
  __syncthreads();  // scratch may still be read from an earlier call
  scratch[y * kSumColumns + x] = value;
#pragma unroll
  for (int half = kSumRows / 2; half > 0; half /= 2) {
    __syncthreads();
    if (y < half) scratch[y * kSumColumns + x] += scratch[(y + half) * kSumColumns + x];
  }
  __syncthreads();
  return scratch[x];
}

// partial (groups, count, columns); columns [0, split) of the total go to first (groups, split), the others
// to second (groups, columns - split).
template <typename A>
__global__ void __launch_bounds__(kSumColumns* kSumRows)
    sum_partials_kernel(const A* __restrict__ partial, A* __restrict__ first, A* __restrict__ second, int64_t count,
                        int64_t columns, int64_t split, int column_blocks) {
  __shared__ A scratch[kSumColumns * kSumRows];
  const int x = static_cast<int>(threadIdx.x) % kSumColumns;
  const int y = static_cast<int>(threadIdx.x) / kSumColumns;
  const int64_t group = blockIdx.x / column_blocks;
  const int64_t column = static_cast<int64_t>(blockIdx.x % column_blocks) * kSumColumns + x;
  A sum = A(0);
  if (column < columns) {
    const A* p = partial + group * count * columns + column;
#pragma unroll 8
    for (int64_t k = y; k < count; k += kSumRows) sum += p[k * columns];
  }
  const A total = sum_rows(sum, scratch, x, y);
  if (y == 0 && column < columns) {
    if (column < split)
      first[group * split + column] = total;
    else
      second[group * (columns - split) + column - split] = total;
  }
}

template <typename A>
cudaError_t sum_partials(const A* partial, A* first, A* second, int64_t groups, int64_t count, int64_t columns,
                         int64_t split, cudaStream_t stream) {
  const int64_t column_blocks = ceil_div<int64_t>(columns, kSumColumns);
  if (groups * column_blocks == 0) return cudaSuccess;
  return launch(sum_partials_kernel<A>, dim3(static_cast<unsigned>(groups * column_blocks)), kSumColumns * kSumRows,
                stream, partial, first, second, count, columns, split, static_cast<int>(column_blocks));
}

}  // namespace mixsyn_fast::kernels

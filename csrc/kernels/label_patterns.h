// Launchers of label_patterns: numbers the distinct label neighbourhoods of a batch of label maps, exactly.
//
// Two pixels get the same row where the labels (and edge bits) of their (2r+1)^2 windows are equal, decided
// by comparing all of them; hashes only choose where to look. Rows are numbered by first appearance in raster
// order, so the result does not depend on the order in which threads run. Asynchronous on `stream`; no
// allocation; only label_patterns_read_count waits for the device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace mixsyn_fast::kernels {

// Pixels of a batch (B*H*W) at most: the hash table has between 2 and 4 slots a pixel, numbered by int32.
constexpr int64_t kMaxPatternPixels = int64_t{1} << 28;
constexpr int kMaxRegions = 512;

struct LabelPatterns {
  int64_t batch = 0, height = 0, width = 0;
  const int32_t* labels = nullptr;  // (B, H, W) in [-1, num_regions); -1: no region
  const uint8_t* edges = nullptr;   // (B, H, W), non-zero = edge, or null
  int num_regions = 0;              // K
  int radius = 0;                   // 0, 1, 2
  bool per_image = false;           // rows are never shared between images
};

int64_t label_patterns_workspace(const LabelPatterns& op);  // bytes; 256-byte aligned

// Finds the rows; leaves them in `workspace`. total (1,) int32 on the device: the number of distinct rows.
cudaError_t label_patterns_find(const LabelPatterns& op, void* workspace, int32_t* total, cudaStream_t stream);

// Copies the number of rows to the host and waits for it.
cudaError_t label_patterns_read_count(const int32_t* total, int32_t* host, cudaStream_t stream);

// index (B, H, W) int32; patterns (max_rows, (2r+1)^2) int32; row_image (max_rows,) int32. Rows from `total`
// on are filled with K and -1. A device-side assertion fails where total > max_rows.
cudaError_t label_patterns_emit(const LabelPatterns& op, const void* workspace, const int32_t* total, int64_t max_rows,
                                int32_t* index, int32_t* patterns, int32_t* row_image, cudaStream_t stream);

}  // namespace mixsyn_fast::kernels

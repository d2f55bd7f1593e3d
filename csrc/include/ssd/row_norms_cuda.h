// CUDA: the L2 norms of the rows of a matrix, and gradients through the division by them. Shapes: M rows, D columns.
#pragma once

#include <cstdint>

#include "ssd/dtype.h"

namespace ssd::cuda {

struct RowNormsParams {
  cpu::Dtype dtype;  // of x
  const void* x;     // (M, D), columns adjacent, row stride `stride` elements
  long long rows, cols, stride;
  bool inverse;  // 1 / max(norm, 1e-12) instead
  void* norms;   // (M,) out, of the accumulation type
  int device;
  void* stream;  // cudaStream_t
};
// Enqueues the kernel; allocates nothing, never synchronises. nullptr, or what went wrong. So do all launchers.
const char* row_norms(const RowNormsParams& params);

// grad of x, given that of x / max(||x||, eps): (sum - (unit . sum) unit) / norm.
struct ThroughNormParams {
  cpu::Dtype dtype;  // of x and out
  long long rows, cols;
  const void* sum;  // (M, D) contiguous, of the accumulation type
  const void* x;    // (., D)
  long long stride;
  const int64_t* numbers;  // (M,) the rows of x; null: as they are
  const void* inverse;     // 1 / max(norm, eps) of each row of x, of the accumulation type
  void* out;               // (M, D) contiguous
  int device;
  void* stream;  // cudaStream_t
};
const char* through_norm(const ThroughNormParams& params);

}  // namespace ssd::cuda

// What every SIMD level has of sparse_linear, beside the pair kernels of gaba_linear that it shares.
#pragma once

#include "simd/levels.h"
#include "ssd/sparse_linear.h"

namespace ssd::cpu {

#define SSD_SPARSE_LINEAR_LEVEL(level)                                                                              \
  namespace level {                                                                                                 \
  /* Samples [begin, end); for a weight whose rows are contiguous. False when memory runs out. */                   \
  bool sparse_linear_by_rows(const SparseLinearParams& params, void* y, int64_t begin, int64_t end);                \
  void sparse_linear_values(const SparseLinearParams& params, const void* grad_y, void* grad_values, int64_t begin, \
                            int64_t end);                                                                           \
  }
SSD_EACH_LEVEL(SSD_SPARSE_LINEAR_LEVEL)
#undef SSD_SPARSE_LINEAR_LEVEL

}  // namespace ssd::cpu

// What every SIMD level has of sparse_update.
#pragma once

#include "simd/levels.h"
#include "ssd/sparse_update.h"

namespace ssd::cpu {

#define SSD_SPARSE_UPDATE_LEVEL(level)                                                                       \
  namespace level {                                                                                          \
  /* Rows [begin, end) of the touched ones; scratch holds D numbers of the accumulation type. */             \
  void sparse_update_rows(const SparseUpdateParams& params, int64_t begin, int64_t end, void* scratch);      \
  /* The sums of squares of the gradient's rows [begin, end), into squares[begin ... end - 1]. */            \
  void sparse_update_squares(const SparseUpdateParams& params, int64_t begin, int64_t end, double* squares); \
  }
SSD_EACH_LEVEL(SSD_SPARSE_UPDATE_LEVEL)
#undef SSD_SPARSE_UPDATE_LEVEL

}  // namespace ssd::cpu

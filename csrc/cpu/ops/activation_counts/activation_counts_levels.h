// What every SIMD level has of activation_counts.
#pragma once

#include "ssd/activation_counts.h"

namespace ssd::cpu {

#define SSD_ACTIVATION_COUNTS_LEVEL(level)                                                          \
  namespace level {                                                                                 \
  /* Columns [begin, end). */                                                                       \
  void activation_counts_columns(const ActivationCountsParams& params, int64_t begin, int64_t end); \
  }
SSD_ACTIVATION_COUNTS_LEVEL(generic)
#ifdef SSD_X86
SSD_ACTIVATION_COUNTS_LEVEL(avx2)
SSD_ACTIVATION_COUNTS_LEVEL(avx512)
#endif
#undef SSD_ACTIVATION_COUNTS_LEVEL

}  // namespace ssd::cpu

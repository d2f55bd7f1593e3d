// What every SIMD level has of activation_counts.
#pragma once

#include "simd/levels.h"
#include "ssd/activation_counts.h"

namespace ssd::cpu {

#define SSD_ACTIVATION_COUNTS_LEVEL(level)                                                          \
  namespace level {                                                                                 \
  /* Columns [begin, end). */                                                                       \
  void activation_counts_columns(const ActivationCountsParams& params, int64_t begin, int64_t end); \
  }
SSD_EACH_LEVEL(SSD_ACTIVATION_COUNTS_LEVEL)
#undef SSD_ACTIVATION_COUNTS_LEVEL

}  // namespace ssd::cpu

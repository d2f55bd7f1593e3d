// What every SIMD level has of gaba_linear.
#pragma once

#include "simd/levels.h"
#include "ssd/gaba_linear.h"

namespace ssd::cpu {

#define SSD_GABA_LINEAR_LEVEL(level)                                                                        \
  namespace level {                                                                                         \
  /* Samples [begin, end). g (R,) is in the accumulation type. Writes h, or appends to list and counts. */  \
  bool gaba_linear_part(const GabaLinearParams& params, const void* g, int64_t begin, int64_t end, void* h, \
                        ActiveRows::List* list, int64_t* counts);                                           \
  bool pairs_grad_x(const PairsBackwardParams& params, int64_t begin, int64_t end);                         \
  bool pairs_grad_w(const PairsBackwardParams& params, const int32_t* samples, int64_t begin, int64_t end); \
  bool gaba_dense_grad_x(const GabaBackwardParams& params, int64_t begin, int64_t end);                     \
  bool gaba_dense_grad_w(const GabaBackwardParams& params, int64_t begin, int64_t end);                     \
  }
SSD_EACH_LEVEL(SSD_GABA_LINEAR_LEVEL)
#undef SSD_GABA_LINEAR_LEVEL

}  // namespace ssd::cpu

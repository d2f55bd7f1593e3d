// What every SIMD level has of gaba_linear.
#pragma once

#include "ssd/gaba_linear.h"

namespace ssd::cpu {

#define SSD_GABA_LINEAR_FORWARD(level)                                                                      \
  namespace level {                                                                                         \
  /* Samples [begin, end). g (R,) is in the accumulation type. Writes h, or appends to list and counts. */  \
  bool gaba_linear_part(const GabaLinearParams& params, const void* g, int64_t begin, int64_t end, void* h, \
                        GabaRows::List* list, int64_t* counts);                                             \
  }
#define SSD_GABA_LINEAR_LEVEL(level)                                                                        \
  SSD_GABA_LINEAR_FORWARD(level)                                                                            \
  namespace level {                                                                                         \
  bool pairs_grad_x(const PairsBackwardParams& params, int64_t begin, int64_t end);                         \
  bool pairs_grad_w(const PairsBackwardParams& params, const int32_t* samples, int64_t begin, int64_t end); \
  bool gaba_dense_grad_x(const GabaBackwardParams& params, int64_t begin, int64_t end);                     \
  bool gaba_dense_grad_w(const GabaBackwardParams& params, int64_t begin, int64_t end);                     \
  }
SSD_GABA_LINEAR_LEVEL(generic)
#ifdef SSD_X86
SSD_GABA_LINEAR_LEVEL(avx2)
SSD_GABA_LINEAR_LEVEL(avx512)
SSD_GABA_LINEAR_FORWARD(avx512bf16)  // its backward pass is that of avx512
#endif
#undef SSD_GABA_LINEAR_LEVEL
#undef SSD_GABA_LINEAR_FORWARD

}  // namespace ssd::cpu

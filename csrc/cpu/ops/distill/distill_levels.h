// What every SIMD level has of the distillation losses.
#pragma once

#include "simd/levels.h"
#include "ssd/distill.h"

namespace ssd::cpu {

// Marks in the map from neurons to places.
constexpr int32_t kNotSelected = -2, kAbsent = -1;

#define SSD_DISTILL_LEVEL(level)                                                                                     \
  namespace level {                                                                                                  \
  /* Samples [begin, end); ce and kd are (B,), not divided by B; scratch holds 6 (C + 8) doubles. */                 \
  void distill_logits_samples(const DistillLogitsParams& params, int64_t begin, int64_t end, double* ce, double* kd, \
                              double* scratch);                                                                      \
  /* Samples [begin, end); kd is (B,); scratch holds 6 (n + 8) numbers of 8 bytes; map (width,) holds kAbsent for    \
     the selected neurons, else kNotSelected, and is left so. */                                                     \
  void distill_hidden_samples(const DistillHiddenParams& params, int64_t begin, int64_t end, int64_t width,          \
                              double* kd, double* scratch, int32_t* map);                                            \
  }
SSD_EACH_LEVEL(SSD_DISTILL_LEVEL)
#undef SSD_DISTILL_LEVEL

}  // namespace ssd::cpu

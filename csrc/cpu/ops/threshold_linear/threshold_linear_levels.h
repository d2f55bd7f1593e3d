// What every SIMD level has of threshold_linear and batch_topk_linear.
#pragma once

#include "simd/levels.h"
#include "ssd/threshold_linear.h"

namespace ssd::cpu {

// A score above, the inverse of its place in the (B, R) scores below: a larger key is a larger score, and among equal
// scores the one that comes first.
using PlaceKey = unsigned __int128;

#define SSD_THRESHOLD_LINEAR_LEVEL(level)                                                                              \
  namespace level {                                                                                                    \
  /* Samples [begin, end): appends to list, and writes their counts. thresholds (R,) is in the accumulation type. */   \
  bool threshold_linear_part(const ThresholdLinearParams& params, const void* thresholds, int64_t begin, int64_t end,  \
                             ActiveRows::List* list, int64_t* counts);                                                 \
  /* Samples [begin, end): their `need` largest keys, fewer where fewer are positive; the caller frees them. */        \
  bool batch_topk_part(const ThresholdLinearParams& params, int64_t need, int64_t begin, int64_t end, PlaceKey** keys, \
                       int64_t* count);                                                                                \
  /* Appends keys in the order of their places to list, and adds to the counts of their samples. */                    \
  bool batch_topk_write(const ThresholdLinearParams& params, const PlaceKey* keys, int64_t count,                      \
                        ActiveRows::List* list, int64_t* counts);                                                      \
  double batch_topk_score(Dtype dtype, PlaceKey key);                                                                  \
  }
SSD_EACH_LEVEL(SSD_THRESHOLD_LINEAR_LEVEL)
#undef SSD_THRESHOLD_LINEAR_LEVEL

}  // namespace ssd::cpu

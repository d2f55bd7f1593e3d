// The parts of topk_linear that every SIMD level has; topk_linear.cpp splits the work, picks the level and runs them.
#pragma once

#include "simd/levels.h"
#include "ssd/topk_linear.h"

namespace ssd::cpu {

// One thread's share of the forward pass.
struct TopkPart {
  int64_t row_begin, row_end;
  int64_t neuron_begin, neuron_end;
  void* keys;  // (B, need) keys: where the winners go when the part sees only some neurons; else null
};

// In the backward pass arrays of norms are in the accumulation type; null where there is no normalisation:
// inverse_x (B) is 1 / ||x_b||, inverse_w (B K) is 1 / ||w_j|| of each pair that receives a gradient.
#define SSD_TOPK_LINEAR_LEVEL(level)                                                                                 \
  namespace level {                                                                                                  \
  bool topk_linear_part(const TopkLinearParams& params, const TopkPart& part);                                       \
  bool topk_linear_merge(const TopkLinearParams& params, int parts, int64_t begin, int64_t end, const void* keys);   \
  void topk_linear_norms_x(const TopkLinearBackwardParams& params, int64_t begin, int64_t end, void* inverse_x);     \
  void topk_linear_norms_w(const TopkLinearBackwardParams& params, int64_t begin, int64_t end, void* inverse_w);     \
  bool topk_linear_grad_x(const TopkLinearBackwardParams& params, int64_t begin, int64_t end, const void* inverse_x, \
                          const void* inverse_w);                                                                    \
  bool topk_linear_grad_w(const TopkLinearBackwardParams& params, int64_t begin, int64_t end, const void* inverse_x, \
                          const void* inverse_w);                                                                    \
  }
SSD_EACH_LEVEL(SSD_TOPK_LINEAR_LEVEL)
#undef SSD_TOPK_LINEAR_LEVEL

}  // namespace ssd::cpu

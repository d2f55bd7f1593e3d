// The activations a = relu(scale (x W^T + bias)) that are above a threshold: one of each neuron, or the one that leaves
// the M largest of the whole batch. Nothing here holds (B, R) scores.
// Shapes: B batch, D inputs, R neurons. Strides count elements; columns are adjacent.
#pragma once

#include <cstdint>

#include "ssd/active_rows.h"
#include "ssd/dtype.h"
#include "ssd/simd_level.h"

namespace ssd::cpu {

struct ThresholdLinearParams {
  Dtype dtype;  // of x, weight, bias, scale and the values
  int64_t batch, inputs, neurons;
  const void* x;  // (B, D)
  int64_t x_stride;
  const void* weight;  // (R, D)
  int64_t weight_stride;
  bool weight_transposed;    // element (j, d) of the weight lies at d * weight_stride + j
  const void* bias;          // (R,) or null
  const void* scale;         // (R,) > 0 or null
  const double* thresholds;  // (R,), rounded to the accumulation type; null: the M largest of the batch
  int64_t most;              // M, 1 <= M <= B R, where thresholds is null
  int threads;
  // What a scan's operands may have, and these have not.
  const int64_t* rows = nullptr;
  bool normalize_input = false, normalize_weight = false;
};

// The entries with a > threshold, NaN included, whose stored value is not 0. offsets (B + 1,) out. False when memory
// runs out.
bool threshold_linear(const ThresholdLinearParams& params, int64_t* offsets, ActiveRows* rows, SimdLevel level);

// The M largest a of the batch that are positive or NaN, equal ones by the lowest sample, then neuron; `next` out: the
// (M+1)-th largest, 0 where there is none. False when memory runs out.
bool batch_topk_linear(const ThresholdLinearParams& params, int64_t* offsets, double* next, ActiveRows* rows,
                       SimdLevel level);

}  // namespace ssd::cpu

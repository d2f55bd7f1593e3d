// SGD, clamp and renormalisation of the touched rows, in place.
// Shapes: R neurons, D inputs, M touched rows. Strides count elements; columns are adjacent.
#pragma once

#include <cstdint>

#include "ssd/dtype.h"
#include "ssd/simd_level.h"

namespace ssd::cpu {

struct SparseUpdateParams {
  Dtype dtype;  // of weight and grad
  int64_t neurons, inputs, rows;
  void* weight;  // (R, D)
  int64_t weight_stride;
  const int64_t* indices;  // (M,) strictly ascending
  const void* grad;        // (M, D)
  int64_t grad_stride;
  double step;       // lr * scale
  double max_norm;   // step is multiplied by min(1, max_norm / (||grad|| + 1e-6)); infinity: no clipping
  bool clamp;        // at 0 from below
  bool renormalise;  // divide by max(||row||, 1e-12)
  double* movement;  // (M,) out: ||new - old|| of the stored rows
  int threads;
};

enum class SparseUpdateResult : int { kDone = 0, kBadRows = 1, kNoMemory = 2, kNotFinite = 3 };

// kBadRows where indices are not strictly ascending within [0, R), kNotFinite where a gradient or the step times it is
// not finite in the accumulation type; then nothing has changed.
SparseUpdateResult sparse_update(const SparseUpdateParams& params, SimdLevel level);

}  // namespace ssd::cpu

// CUDA: the K + 1 largest of each row of given scores. Shapes: B batch, R neurons, K winners. Strides count elements.
#pragma once

#include <cstdint>

#include "ssd/dtype.h"

namespace ssd::cuda {

// What a score becomes before it is compared: ((s * x_scale_b) * weight_scale_j + bias_j), rectified. Each may be null.
struct ScoreEpilogue {
  const void* x_scale;       // (B,) of the accumulation type
  const void* weight_scale;  // (R,) of the accumulation type
  const void* bias;          // (R,) of the output type
  bool relu;                 // a = max(s, 0), NaN stays
};

struct ThresholdSelectParams {
  cpu::Dtype score_dtype;  // of scores
  cpu::Dtype dtype;        // of bias, values, threshold: fp64 exactly where the scores are
  int64_t batch, neurons, k;
  const void* scores;  // (B, R)
  int64_t row_stride, column_stride;
  ScoreEpilogue epilogue;
  bool inhibition;   // values are relu(a - threshold)
  void* values;      // (B, K) out
  int32_t* indices;  // (B, K) out, lowest first among equal scores
  void* threshold;   // (B,) out: the (K+1)-th largest, 0 where K = R
  int device;
  void* stream;  // cudaStream_t
};

// The most winners that one block's shared memory holds.
constexpr int64_t kMostSelected = 8191;

// Enqueues the kernel; allocates nothing, never synchronises. nullptr, or what went wrong.
const char* threshold_select(const ThresholdSelectParams& params);

}  // namespace ssd::cuda

// Linear layer on sparse activations: y_b = sum over the entries of sample b of value * weight[:, index].
// Shapes: B batch, C outputs, R neurons, P entries. Strides count elements.
#pragma once

#include <cstdint>

#include "ssd/dtype.h"
#include "ssd/simd_level.h"

namespace ssd::cpu {

struct SparseLinearParams {
  Dtype dtype;  // of values, weight, y and every gradient
  int64_t batch, outputs, neurons, entries;
  const void* values;      // (P,)
  const int32_t* indices;  // (P,)
  const int64_t* offsets;  // (B + 1,)
  const void* weight;      // (C, R) with these strides, one of which is 1
  int64_t output_stride, neuron_stride;
  int threads;
};

enum class SparseLinearStatus : int { kDone = 0, kNoMemory = 1, kBadIndex = 2, kBadOffsets = 3 };
struct SparseLinearResult {
  SparseLinearStatus status;
  int32_t bad;  // the index that is outside [0, R)
};

// y (B, C) out, contiguous. Looks at indices and offsets first.
SparseLinearResult sparse_linear(const SparseLinearParams& params, void* y, SimdLevel level);

// grad_y (B, C) contiguous; grad_values (P,) out or null. False when memory runs out.
bool sparse_linear_grad_values(const SparseLinearParams& params, const void* grad_y, void* grad_values,
                               SimdLevel level);
// grad_weight (C, R) out, with the strides of the weight where it is dense.
bool sparse_linear_grad_weight(const SparseLinearParams& params, const void* grad_y, void* grad_weight,
                               SimdLevel level);

}  // namespace ssd::cpu

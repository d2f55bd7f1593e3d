// CUDA: how often each neuron is active, and the most frequent ones. Shapes: B batch, R neurons, E entries, n selected.
#pragma once

#include <cstdint>

#include "ssd/dtype.h"

namespace ssd::cuda {

struct ActivationCountsParams {
  cpu::Dtype dtype;        // of values
  int64_t batch, neurons;  // dense; for entries the batch is E
  const void* values;      // (B, R), or (E,) with indices
  int64_t row_stride, column_stride;
  const int32_t* indices;  // (E,), or null where values are dense; those outside [0, R) are not counted
  int64_t* counts;         // (R,) zeros on entry; out: the number of values > 0 of each neuron
  int device;
  void* stream;  // cudaStream_t
};
const char* activation_counts(const ActivationCountsParams& params);

struct TopNParams {
  int64_t neurons, n;     // n <= R
  const int64_t* counts;  // (R,)
  int64_t stride;
  int64_t* selected;  // (n,) out: largest first, ties to the lowest neuron
  int device;
  void* stream;  // cudaStream_t
};
const char* top_n(const TopNParams& params);

}  // namespace ssd::cuda

// How often each neuron is active, and the most frequent ones. Shapes: B batch, R neurons, E entries, n selected.
#pragma once

#include <cstdint>

#include "ssd/dtype.h"
#include "ssd/simd_level.h"

namespace ssd::cpu {

struct ActivationCountsParams {
  Dtype dtype;  // of values
  int64_t batch, neurons;
  const void* values;  // (B, R) with this row stride, columns adjacent
  int64_t stride;
  int64_t* counts;  // (R,) out: the number of values > 0 of each column
  int threads;
};
void activation_counts_dense(const ActivationCountsParams& params, SimdLevel level);

// Entries: values (E,) and their neurons (E,). False where a neuron is outside [0, R); then *bad holds it.
bool activation_counts_sparse(Dtype dtype, int64_t entries, int64_t neurons, const void* values, const int32_t* indices,
                              int64_t* counts, int32_t* bad);

// The n largest of counts (R,), largest first, ties to the lowest neuron, into selected (n,). False: no memory.
bool top_n(const int64_t* counts, int64_t neurons, int64_t n, int64_t* selected);

}  // namespace ssd::cpu

// CUDA: weighted sums of rows, the one building block of every sparse product and gradient.
// Shapes: N sums, P pairs, M rows, C columns. Strides count elements.
#pragma once

#include <cstdint>

#include "ssd/dtype.h"

namespace ssd::cuda {

// out[place of sum n] = sum over its pairs p, in order, of factor_p * row_scale[row_p] * rows[row_p, :].
struct WeightedSumsParams {
  cpu::Dtype dtype;  // of factors, mask and rows
  bool wide_out;     // out has the accumulation type, else dtype
  int64_t sums, columns;
  const int64_t* starts;  // (N + 1,) where each sum's pairs begin; null: `per_sum` pairs each
  int64_t per_sum;
  const int64_t* order;    // (P,) pair numbers in the order of the sums; null: as they are
  const void* factors;     // (P,)
  const void* mask;        // (P,) pairs whose mask is <= 0 are left out; null: none
  const int32_t* indices;  // (P,) the row of a pair; null: `samples`
  const int64_t* samples;  // (P,) the row of a pair; null: pair / per_row
  int64_t per_row;
  const void* row_scale;  // (M,) of the accumulation type, or null
  const void* rows;       // (M, C); null: ones
  int64_t row_stride, column_stride;
  const int64_t* places;  // (N,) rows of out; null: n
  void* out;              // (., C)
  int64_t out_row_stride, out_column_stride;
  int device;
  void* stream;  // cudaStream_t
};

// Enqueues the kernel; allocates nothing, never synchronises. nullptr, or what went wrong.
const char* weighted_sums(const WeightedSumsParams& params);

}  // namespace ssd::cuda

// CUDA: SGD, clamp and renormalisation of the touched rows, in place, as ssd/sparse_update.h says.
// Shapes: R neurons, D inputs, M touched rows. Strides count elements; columns are adjacent.
#pragma once

#include <cstdint>

#include "ssd/dtype.h"

namespace ssd::cuda {

struct SparseUpdateParams {
  cpu::Dtype dtype;  // of weight and grad
  int64_t inputs, rows;
  void* weight;  // (R, D)
  int64_t weight_stride;
  const int64_t* indices;  // (M,) distinct
  const void* grad;        // (M, D)
  int64_t grad_stride;
  double step;           // lr * scale
  const double* factor;  // a number that multiplies step, on the device, or null
  bool clamp;            // at 0 from below
  bool renormalise;      // divide by max(||row||, 1e-12)
  double* movement;      // (M,) out: ||new - old|| of the stored rows
  int device;
  void* stream;  // cudaStream_t
};

// Enqueues the kernel; allocates nothing, never synchronises. nullptr, or what went wrong.
const char* sparse_update(const SparseUpdateParams& params);

}  // namespace ssd::cuda

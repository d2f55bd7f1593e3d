// CUDA: the L2 norms of the rows of a matrix.
#pragma once

namespace ssd::cuda {

struct RowNormsParams {
  const float* x;  // (rows, cols), row stride `stride` elements
  long long rows, cols, stride;
  float* norms;  // (rows,)
  int device;
  void* stream;  // cudaStream_t
};

// Enqueues the kernel; allocates nothing. nullptr, or the runtime's error message.
const char* row_norms(const RowNormsParams& params);

}  // namespace ssd::cuda

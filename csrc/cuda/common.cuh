// Shared by the CUDA kernels: error reporting and warp reductions.
#pragma once

#include <cuda_runtime.h>

namespace ssd::cuda {

inline const char* message(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

// The sum over a warp, by a fixed tree: every lane gets it.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

}  // namespace ssd::cuda

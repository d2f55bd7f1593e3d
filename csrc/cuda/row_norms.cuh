// norms[r] = sqrt(sum_d x[r, d]^2), the sum in the canonical order. Half a warp per row. Traffic: the matrix once.
#pragma once

#include "numbers.cuh"

namespace ssd::cuda {

constexpr int kRowNormsThreads = 256, kRowNormsRows = kRowNormsThreads / kDotLanes<float>;

SSD_KERNEL void row_norms_kernel(const float* x, long long rows, long long cols, long long stride, float* norms) {
  const int lane = static_cast<int>(threadIdx.x) % kDotLanes<float>;
  const long long row = static_cast<long long>(blockIdx.x) * kRowNormsRows + threadIdx.x / kDotLanes<float>;
  float sum = 0.f;
  if (row < rows)
    for (long long d = lane; d < cols; d += kDotLanes<float>) {
      const float value = x[row * stride + d];
      sum = fused(value, value, sum);
    }
  sum = dot_tree(sum);
  if (row < rows && lane == 0) norms[row] = sqrtf(sum);
}

}  // namespace ssd::cuda

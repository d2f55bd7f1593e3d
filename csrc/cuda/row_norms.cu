// norms[r] = sqrt(sum_d x[r, d]^2). One warp per row, lanes across columns, fixed-order sums (no atomics), so the
// result is deterministic. Traffic: the matrix once.
#include "common.cuh"
#include "ssd/row_norms_cuda.h"

namespace ssd::cuda {
namespace {

constexpr int kWarpsPerBlock = 8;

__global__ void row_norms_kernel(const float* x, long long rows, long long cols, long long stride, float* norms) {
  const long long row = static_cast<long long>(blockIdx.x) * kWarpsPerBlock + threadIdx.y;
  if (row >= rows) return;
  const float* values = x + row * stride;
  float sum = 0.f;
  for (long long d = threadIdx.x; d < cols; d += 32) sum = fmaf(values[d], values[d], sum);
  sum = warp_sum(sum);
  if (threadIdx.x == 0) norms[row] = sqrtf(sum);
}

}  // namespace

const char* row_norms(const RowNormsParams& p) {
  if (p.rows == 0) return nullptr;
  // The static runtime has a current device of its own, apart from the caller's framework.
  if (const char* error = message(cudaSetDevice(p.device))) return error;
  const long long blocks = (p.rows + kWarpsPerBlock - 1) / kWarpsPerBlock;
  if (blocks > 0x7fffffffLL) return "row_norms: more rows than one grid covers";
  row_norms_kernel<<<static_cast<unsigned>(blocks), dim3(32, kWarpsPerBlock), 0, static_cast<cudaStream_t>(p.stream)>>>(
      p.x, p.rows, p.cols, p.stride, p.norms);
  return message(cudaGetLastError());
}

}  // namespace ssd::cuda

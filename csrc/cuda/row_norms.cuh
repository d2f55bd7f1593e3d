// Norms of rows, norms[r] = sqrt(sum_d x[r, d]^2), and the gradient through the division by them.
//
// Half a warp (for fp64 a quarter) per row, sums in the canonical order: bitwise the avx512 level of csrc/cpu.
// Traffic: norms read the matrix once; the gradient reads x and the sum twice, the second time from cache.
#pragma once

#include "numbers.cuh"
#include "ssd/row_norms_cuda.h"

namespace ssd::cuda {

constexpr int kRowThreads = 256;
template <class T>
constexpr int kRowsEach = kRowThreads / kDotLanes<T>;

template <class S>
SSD_KERNEL void SSD_LAUNCH_BOUNDS(kRowThreads, 4) row_norms_kernel(RowNormsParams p) {
  using T = Acc<S>;
  constexpr int kLanes = kDotLanes<T>;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const long long row = static_cast<long long>(blockIdx.x) * kRowsEach<T> + threadIdx.x / kLanes;
  const S* const x = static_cast<const S*>(p.x) + row * p.stride;
  T sum = 0;
  if (row < p.rows)
    for (long long d = lane; d < p.cols; d += kLanes) sum = fused(to_acc(x[d]), to_acc(x[d]), sum);
  sum = dot_tree(sum);
  if (row >= p.rows || lane) return;
  T norm = sqrt(sum);
  if (p.inverse) norm = 1 / (norm < static_cast<T>(1e-12) ? static_cast<T>(1e-12) : norm);
  static_cast<T*>(p.norms)[row] = norm;
}

template <class S>
SSD_KERNEL void SSD_LAUNCH_BOUNDS(kRowThreads, 4) through_norm_kernel(ThroughNormParams p) {
  using T = Acc<S>;
  constexpr int kLanes = kDotLanes<T>;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const long long row = static_cast<long long>(blockIdx.x) * kRowsEach<T> + threadIdx.x / kLanes;
  const bool inside = row < p.rows;
  const long long number = inside ? (p.numbers ? p.numbers[row] : row) : 0;
  const S* const x = static_cast<const S*>(p.x) + number * p.stride;
  const T* const sum = static_cast<const T*>(p.sum) + row * p.cols;
  T dot = 0;
  if (inside)
    for (long long d = lane; d < p.cols; d += kLanes) dot = fused(sum[d], to_acc(x[d]), dot);
  dot = dot_tree(dot);
  if (!inside) return;
  const T inverse = static_cast<const T*>(p.inverse)[number];
  // Below eps the norm is a constant.
  const bool constant = inverse >= 1 / static_cast<T>(1e-12);
  const T along = constant ? T(0) : dot * inverse * inverse;
  for (long long d = lane; d < p.cols; d += kLanes) {
    const T value = constant ? sum[d] : fused(-along, to_acc(x[d]), sum[d]);
    from_acc(value * inverse, static_cast<S*>(p.out) + row * p.cols + d);
  }
}

}  // namespace ssd::cuda

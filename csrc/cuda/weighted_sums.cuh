// out[n] = sum over the pairs of n, in their order, of factor * row: sparse_linear forward and the gradient of its
// weight, dx and dW of topk_linear and gaba_linear.
//
// One thread owns a column of a sum and adds its pairs one after another by fused multiply-adds, as weighted_sum.h
// does on a CPU: bitwise the same, no atomics. Neighbouring threads own neighbouring columns, so a pair is one
// coalesced read of a row.
// Traffic: per pair a row, its number and its factor (these once per 128 columns); each sum is written once.
#pragma once

#include "numbers.cuh"
#include "ssd/weighted_sums_cuda.h"

namespace ssd::cuda {

constexpr int kSumThreads = 128;

template <class S, class O>
SSD_KERNEL void SSD_LAUNCH_BOUNDS(kSumThreads, 8) weighted_sums_kernel(WeightedSumsParams p) {
  using T = Acc<S>;
  const long long n = static_cast<long long>(blockIdx.x) * blockDim.y + threadIdx.y;
  const long long column = static_cast<long long>(blockIdx.y) * blockDim.x + threadIdx.x;
  if (n >= p.sums || column >= p.columns) return;
  const long long first = p.starts ? p.starts[n] : n * p.per_sum;
  const long long last = p.starts ? p.starts[n + 1] : first + p.per_sum;
  const S* const rows = static_cast<const S*>(p.rows);
  T sum = 0;
  for (long long i = first; i < last; ++i) {
    const long long pair = p.order ? p.order[i] : i;
    if (p.mask && to_acc(static_cast<const S*>(p.mask)[pair]) <= 0) continue;  // NaN is added
    const long long row = p.indices ? p.indices[pair] : p.samples ? p.samples[pair] : pair / p.per_row;
    T factor = to_acc(static_cast<const S*>(p.factors)[pair]);
    if (p.row_scale) factor = factor * static_cast<const T*>(p.row_scale)[row];
    sum = fused(factor, rows ? to_acc(rows[row * p.row_stride + column * p.column_stride]) : T(1), sum);
  }
  const long long place = p.places ? p.places[n] : n;
  from_acc(sum, static_cast<O*>(p.out) + place * p.out_row_stride + column * p.out_column_stride);
}

}  // namespace ssd::cuda

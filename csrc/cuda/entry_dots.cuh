// out[p] = dy_b . V[:, j] for each entry p = (b, j): the gradient of the values in sparse_linear.
//
// Half a warp (for fp64 a quarter) per entry, lanes across outputs, in the canonical order.
// Traffic: per entry a row of dy (from cache: entries of a sample are neighbours) and a column of V.
#pragma once

#include "numbers.cuh"
#include "ssd/entry_dots_cuda.h"

namespace ssd::cuda {

constexpr int kDotThreads = 256;

template <class S>
SSD_KERNEL void SSD_LAUNCH_BOUNDS(kDotThreads, 4) entry_dots_kernel(EntryDotsParams p) {
  using T = Acc<S>;
  constexpr int kLanes = kDotLanes<T>;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const long long entry = static_cast<long long>(blockIdx.x) * (kDotThreads / kLanes) + threadIdx.x / kLanes;
  T sum = 0;
  if (entry < p.entries) {
    const long long sample = p.samples ? p.samples[entry] : entry / p.per_sample;
    const S* const grad = static_cast<const S*>(p.grad) + sample * p.grad_stride;
    const S* const column = static_cast<const S*>(p.weight) + p.indices[entry] * p.neuron_stride;
    for (long long c = lane; c < p.outputs; c += kLanes)
      sum = fused(to_acc(grad[c]), to_acc(column[c * p.output_stride]), sum);
  }
  sum = dot_tree(sum);
  if (entry < p.entries && lane == 0) from_acc(sum, static_cast<S*>(p.out) + entry);
}

}  // namespace ssd::cuda

// How often each neuron is active, and the n most frequent ones.
//
// Dense: one thread per column and slab of rows, one integer atomic per slab. Entries: one atomic per active entry.
// Traffic: the values once. Integers: the order of atomics changes nothing.
// top_n: the rank of a neuron is the number of neurons that precede it, counted against all R, a tile of counts in
// shared memory at a time: R^2 comparisons, once per task (10^8 at R = 10 000).
#pragma once

#include "numbers.cuh"
#include "ssd/activation_counts_cuda.h"

namespace ssd::cuda {

constexpr int kCountThreads = 256, kCountSlab = 64;

template <class S>
SSD_KERNEL void SSD_LAUNCH_BOUNDS(kCountThreads, 4) count_columns_kernel(ActivationCountsParams p) {
  const long long column = static_cast<long long>(blockIdx.x) * kCountThreads + threadIdx.x;
  if (column >= p.neurons) return;
  const S* const values = static_cast<const S*>(p.values) + column * p.column_stride;
  for (long long first = static_cast<long long>(blockIdx.y) * kCountSlab; first < p.batch;
       first += static_cast<long long>(gridDim.y) * kCountSlab) {
    const long long last = first + kCountSlab < p.batch ? first + kCountSlab : p.batch;
    unsigned long long count = 0;
    for (long long b = first; b < last; ++b) count += to_acc(values[b * p.row_stride]) > 0;
    if (count) atomic_add(reinterpret_cast<unsigned long long*>(p.counts + column), count);
  }
}

template <class S>
SSD_KERNEL void SSD_LAUNCH_BOUNDS(kCountThreads, 4) count_entries_kernel(ActivationCountsParams p) {
  const long long entry = static_cast<long long>(blockIdx.x) * kCountThreads + threadIdx.x;
  if (entry >= p.batch || !(to_acc(static_cast<const S*>(p.values)[entry]) > 0)) return;
  const long long neuron = p.indices[entry];
  if (neuron >= 0 && neuron < p.neurons) atomic_add(reinterpret_cast<unsigned long long*>(p.counts + neuron), 1ull);
}

struct TopNShared {
  Array<long long, kCountThreads> counts;
};

SSD_KERNEL void SSD_LAUNCH_BOUNDS(kCountThreads, 4) top_n_kernel(TopNParams p) {
  TopNShared& s = shared_memory<TopNShared>();
  const int t = static_cast<int>(threadIdx.x);
  const long long neuron = static_cast<long long>(blockIdx.x) * kCountThreads + t;
  const long long own = neuron < p.neurons ? p.counts[neuron * p.stride] : 0;
  long long rank = 0;
  for (long long base = 0; base < p.neurons; base += kCountThreads) {
    const int size = p.neurons - base < kCountThreads ? static_cast<int>(p.neurons - base) : kCountThreads;
    if (t < size) s.counts[t] = p.counts[(base + t) * p.stride];
    block_sync();
    for (int i = 0; i < size; ++i) rank += s.counts[i] > own || (s.counts[i] == own && base + i < neuron);
    block_sync();
  }
  if (neuron < p.neurons && rank < p.n) p.selected[rank] = neuron;
}

}  // namespace ssd::cuda

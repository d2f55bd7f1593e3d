// What the 256 threads of a block compute together: places in order, sums in a fixed tree, the largest.
#pragma once

#include "device.h"

namespace ssd::cuda {

constexpr int kBlockThreads = 256, kBlockWarps = kBlockThreads / 32;

struct BlockShared {
  Array<int, kBlockWarps> counts;
  Array<double, kBlockWarps> numbers;
};

// How much the threads before this one have together; *total is what all have. All threads take part.
SSD_DEVICE int block_before(BlockShared& s, int own, int* total) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  int upto = own;
  SSD_UNROLL
  for (int step = 1; step < 32; step *= 2) {
    const int other = shuffle_up(upto, step);
    if (lane >= step) upto += other;
  }
  if (lane == 31) s.counts[warp] = upto;
  block_sync();
  int before = upto - own, all = 0;
  SSD_UNROLL
  for (int w = 0; w < kBlockWarps; ++w) {
    if (w == warp) before += all;
    all += s.counts[w];
  }
  *total = all;
  block_sync();  // they have been read
  return before;
}

// Folds a number of each thread, always in the same tree; every thread gets the result.
template <class Fold>
SSD_DEVICE double block_fold(BlockShared& s, double own, Fold fold) {
  SSD_UNROLL
  for (int step = 16; step > 0; step /= 2) own = fold(own, shuffle_xor(own, step));
  if (threadIdx.x % 32 == 0) s.numbers[static_cast<int>(threadIdx.x) / 32] = own;
  block_sync();
  double all = s.numbers[0];
  SSD_UNROLL
  for (int w = 1; w < kBlockWarps; ++w) all = fold(all, s.numbers[w]);
  block_sync();  // they have been read
  return all;
}

SSD_DEVICE double block_sum(BlockShared& s, double own) {
  return block_fold(s, own, [](double a, double b) { return a + b; });
}

// NaN is the largest.
SSD_DEVICE double block_max(BlockShared& s, double own) {
  return block_fold(s, own, [](double a, double b) { return a != a || a > b ? a : b; });
}

}  // namespace ssd::cuda

// Kernels with a mistake each, which test_planted_bugs.cpp wants found; with kBug = kNone they are right.
#pragma once

#include "device.h"

namespace ssd::cuda::planted {

enum Bug {
  kNone,
  kBarrierMissingBefore,
  kBarrierMissingAfter,
  kEarlyReadOfCopy,
  kShuffleByReturnedLane,
  kIndexPastArray,
  kWritePastSharedMemory,
  kMissingGridBarrier,
  kBarrierNotReached,
  kDifferentBarriers,
  kShuffleOrdersNothing,
  kFlagWithoutRelease,
};

constexpr int kThreads = 64, kWidth = 256, kWarps = kThreads / 32;

struct RowShared {
  alignas(16) Array<float, kWidth> x;
  Array<float, kWarps> part;
};

// sum[row] of rows x kWidth numbers, and how many of them exceed their row's mean: copies, shuffles, barriers.
template <int kBug>
SSD_KERNEL void row_sums(const float* x, int rows, float* sum, int* above) {
  RowShared& s = shared_memory<RowShared>();
  const int t = static_cast<int>(threadIdx.x), lane = t % 32, warp = t / 32;
  for (int row = 0; row < rows; ++row) {
    copy_async16(&s.x[4 * t], x + row * kWidth + 4 * t);
    copy_commit();
    if (kBug != kEarlyReadOfCopy) copy_wait<0>();
    if (kBug != kBarrierMissingBefore) block_sync();
    float v = 0.f;
    for (int i = 0; i < kWidth / kThreads; ++i) v += s.x[t + i * kThreads];
    if (kBug == kEarlyReadOfCopy) copy_wait<0>();
    if (kBug == kShuffleByReturnedLane && lane >= 16) return;
    for (int d = 16; d > 0; d /= 2) v += shuffle_xor(v, d);
    if (lane == 0) s.part[kBug == kIndexPastArray && warp == 1 ? kWarps : warp] = v;
    if (kBug == kWritePastSharedMemory && t == 0) *(reinterpret_cast<float*>(&s + 1)) = v;
    if (kBug == kBarrierNotReached && t == 33) return;
    if (kBug == kDifferentBarriers && t == 0) {
      block_sync();
    } else {
      block_sync();
    }
    float total = 0.f;
    for (int w = 0; w < kWarps; ++w) total += s.part[w];
    if (t == 0) sum[row] = total;
    for (int i = 0; i < kWidth / kThreads; ++i)
      if (s.x[t + i * kThreads] > total / kWidth) atomic_add(above + row, 1);
    if (kBug != kBarrierMissingAfter) block_sync();
  }
}

// `steps` times, every block adds one to its neighbour's cell of the step before: cells[2][blocks].
template <int kBug>
SSD_KERNEL void ring(int* cells, int steps) {
  const int n = static_cast<int>(gridDim.x), me = static_cast<int>(blockIdx.x);
  for (int s = 0; s < steps; ++s) {
    if (threadIdx.x == 0) cells[(s + 1) % 2 * n + me] = cells[s % 2 * n + (me + 1) % n] + 1;
    if (kBug != kMissingGridBarrier || s != 2) grid_sync();
  }
}

struct WarpShared {
  Array<int, 32> x;
};

// out[lane] = in[lane + 1] through shared memory, behind a warp barrier or, wrongly, behind a shuffle.
template <int kBug>
SSD_KERNEL void neighbours(const int* in, int* out) {
  WarpShared& s = shared_memory<WarpShared>();
  const int lane = static_cast<int>(threadIdx.x);
  s.x[lane] = in[lane];
  if (kBug == kShuffleOrdersNothing) {
    shuffle_xor(lane, 1);
  } else {
    warp_sync();
  }
  out[lane] = s.x[(lane + 1) % 32];
}

// Block 0 gives a number to block 1 behind a flag.
template <int kBug>
SSD_KERNEL void handover(unsigned* flag, int* number, int* got) {
  if (blockIdx.x == 0) {
    *number = 42;
    if (kBug == kFlagWithoutRelease) {
      atomic_add(flag, 1u);
    } else {
      store_release(flag, 1u);
    }
  } else {
    while (load_acquire(flag) == 0) {
    }
    *got = *number;
  }
}

}  // namespace ssd::cuda::planted

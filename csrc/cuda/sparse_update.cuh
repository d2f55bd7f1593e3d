// w - step * grad, clamped at 0, divided by its norm, for the touched rows; and how far each row moved.
//
// One warp per row. Sums of squares run in the order of the avx512 level of csrc/cpu, bitwise: four accumulators of
// kDotLanes lanes, at most 8 squares a lane before fp64 takes over; a sum near the ends of the range of fp32 is taken
// again in fp64, one by one. New numbers are computed three times (norm, movement, store) rather than kept.
// Traffic: a touched row of W and its gradient read once (then from L1), the row written once.
#pragma once

#include "numbers.cuh"
#include "ssd/sparse_update_cuda.h"

namespace ssd::cuda {

constexpr int kUpdateThreads = 256, kUpdateRows = kUpdateThreads / 32;

SSD_DEVICE bool is_extreme(double sum) { return !(sum > 1e-30 && sum < 1e30); }

// The sum of take(d)^2 over d < size; every lane gets it. Four accumulators lie side by side over the warp: for fp64
// 4 x 8 lanes are one number per thread; for fp32 4 x 16 are two, of which a thread holds 0 or 1 and 2 or 3.
template <class T, class Take>
SSD_DEVICE double sum_of_squares(long long size, Take take) {
  constexpr int kWidth = kDotLanes<T>, kParts = kWidth == 16 ? 2 : 1;
  constexpr long long kBlock = 8 * 4 * kWidth;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  double sum = 0;
  for (long long begin = 0; begin < size; begin += kBlock) {
    const long long end = size - begin < kBlock ? size : begin + kBlock;
    T parts[kParts] = {};
    SSD_UNROLL
    for (int part = 0; part < kParts; ++part)
      for (long long d = begin + 32 * part + lane; d < end; d += 4 * kWidth) {
        const T number = take(d);
        parts[part] = fused(number, number, parts[part]);
      }
    // (s0 + s1) + (s2 + s3), then the lanes of one.
    T all;
    if (kParts == 2) {
      all = (parts[0] + shuffle_xor(parts[0], 16)) + (parts[kParts - 1] + shuffle_xor(parts[kParts - 1], 16));
    } else {
      all = parts[0] + shuffle_xor(parts[0], kWidth);
      all = all + shuffle_xor(all, 2 * kWidth);
    }
    sum += static_cast<double>(dot_tree(all));
  }
  return sum;
}

// The same one by one in fp64, by every lane alike.
template <class Take>
SSD_DEVICE double sum_of_squares_fp64(long long size, Take take) {
  double sum = 0;
  for (long long d = 0; d < size; ++d) {
    const double number = take(d);
    sum = sum + number * number;
  }
  return sum;
}

template <class S, bool kClamp>
SSD_KERNEL void SSD_LAUNCH_BOUNDS(kUpdateThreads, 4) sparse_update_kernel(SparseUpdateParams p) {
  using T = Acc<S>;
  const long long m = static_cast<long long>(blockIdx.x) * kUpdateRows + threadIdx.x / 32;
  if (m >= p.rows) return;  // whole warps
  const int lane = static_cast<int>(threadIdx.x) % 32;
  S* const weight = static_cast<S*>(p.weight) + p.indices[m] * p.weight_stride;
  const S* const grad = static_cast<const S*>(p.grad) + m * p.grad_stride;
  const double exact = p.factor ? p.step * *p.factor : p.step;
  const T step = static_cast<T>(-exact);
  const auto fresh = [&](long long d) {
    const T value = fused(step, to_acc(grad[d]), to_acc(weight[d]));
    return kClamp && value < 0 ? T(0) : value;  // NaN stays
  };
  T inverse = 1;
  if (p.renormalise) {
    double squares = sum_of_squares<T>(p.inputs, fresh);
    if (is_extreme(squares))
      squares = sum_of_squares_fp64(p.inputs, [&](long long d) {
        const double value = static_cast<double>(to_acc(weight[d])) -
                             static_cast<double>(static_cast<T>(exact)) * static_cast<double>(to_acc(grad[d]));
        return kClamp && value < 0 ? 0.0 : value;
      });
    const double norm = sqrt(squares);
    inverse = static_cast<T>(1 / (norm < 1e-12 ? 1e-12 : norm));
  }
  const auto stored = [&](long long d) {
    S number;
    from_acc(fresh(d) * inverse, &number);
    return number;
  };
  double moved = sum_of_squares<T>(p.inputs, [&](long long d) { return to_acc(stored(d)) - to_acc(weight[d]); });
  if (is_extreme(moved))
    moved = sum_of_squares_fp64(p.inputs, [&](long long d) {
      return static_cast<double>(to_acc(stored(d))) - static_cast<double>(to_acc(weight[d]));
    });
  warp_sync();  // every lane has read the old row, in the fp64 sums all of it
  for (long long d = lane; d < p.inputs; d += 32) weight[d] = stored(d);
  if (lane == 0) p.movement[m] = sqrt(moved);
}

}  // namespace ssd::cuda

// Storage types and the orders of summation that all CUDA kernels share.
//
// The canonical dot product is that of the avx512 level of csrc/cpu: lane l of W sums x[d] w[d] for d = l, l + W, ...
// by fused multiply-adds, W = 16 for fp32 and 8 for fp64, and the lanes are added as a tree: l with l + W/2, then
// l + W/4, ... Here W lanes of a warp are those lanes, so a warp has 2 (4 for fp64) products under way.
#pragma once

#include "device.h"

namespace ssd::cuda {

// 16-bit storage; arithmetic is fp32. Values are those of ssd::cpu::Dtype.
struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <class S>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <class S>
using Acc = typename AccOf<S>::type;

SSD_DEVICE float to_acc(float x) { return x; }
SSD_DEVICE double to_acc(double x) { return x; }
SSD_DEVICE float to_acc(Bf16 x) { return bits_float(static_cast<uint32_t>(x.bits) << 16); }
SSD_DEVICE float to_acc(Half x) { return half_value(x.bits); }

// Rounds to nearest even.
SSD_DEVICE void from_acc(float x, float* y) { *y = x; }
SSD_DEVICE void from_acc(double x, double* y) { *y = x; }
SSD_DEVICE void from_acc(float x, Bf16* y) {
  const uint32_t bits = float_bits(x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  y->bits = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
SSD_DEVICE void from_acc(float x, Half* y) { y->bits = half_bits(x); }

SSD_DEVICE float fused(float a, float b, float c) { return fmaf(a, b, c); }
SSD_DEVICE double fused(double a, double b, double c) { return fma(a, b, c); }

template <class T>
constexpr int kDotLanes = sizeof(T) == 8 ? 8 : 16;

// The tree over the kDotLanes lanes of a product; every one of them gets the sum. All lanes of the warp take part.
template <class T>
SSD_DEVICE T dot_tree(T lane_sum) {
  SSD_UNROLL
  for (int step = kDotLanes<T> / 2; step > 0; step /= 2) lane_sum = lane_sum + shuffle_xor(lane_sum, step);
  return lane_sum;
}

// Calls run(S()) with the storage type of a dtype code (ssd::cpu::Dtype).
template <class Run>
const char* with_dtype(int dtype, Run run) {
  switch (dtype) {
    case 0:
      return run(float());
    case 1:
      return run(double());
    case 2:
      return run(Bf16());
    case 3:
      return run(Half());
    default:
      return "no such dtype";
  }
}

}  // namespace ssd::cuda

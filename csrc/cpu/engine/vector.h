// What the trainer's inner loops share: the vector, and a fused product that rounds as its lanes do.
#pragma once

#include "simd/simd.h"

namespace ssd::cpu::SSD_LEVEL {
namespace {

using V = Vec<float>;
constexpr int kW = V::kWidth;
constexpr int kRowSums = 2;                // of a row's update (rows/row_update.h)
constexpr double kSmallestNorm = 1.2e-38;  // the smallest normal float: any row but one of zeros gets norm 1

SSD_INLINE float fma_scalar(float a, float b, float c) {
#if defined(__FMA__) || defined(__FP_FAST_FMAF)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

#if defined(__AVX512F__)
constexpr int kSlice = 4;  // vectors of a row worked on at once: 4 rows x 4 vectors stay in registers
#else
constexpr int kSlice = 2;
#endif

}  // namespace
}  // namespace ssd::cpu::SSD_LEVEL

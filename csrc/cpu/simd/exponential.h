// exp and expm1 of arrays in fp64, by vectors: expm1 as such, exp as a loop that a compiler vectorises.
#pragma once

#include "simd/simd.h"

namespace ssd::cpu::SSD_LEVEL {

SSD_INLINE double bits_as_double(int64_t bits) {
  double value;
  std::memcpy(&value, &bits, 8);
  return value;
}
SSD_INLINE int64_t double_as_bits(double value) {
  int64_t bits;
  std::memcpy(&bits, &value, 8);
  return bits;
}

// (e^r - 1) / r for |r| <= 0.5: Taylor, whose rest is below 2^-56.
constexpr double kExpm1[] = {1.0 / 1307674368000.0,
                             1.0 / 87178291200.0,
                             1.0 / 6227020800.0,
                             1.0 / 479001600.0,
                             1.0 / 39916800.0,
                             1.0 / 3628800.0,
                             1.0 / 362880.0,
                             1.0 / 40320.0,
                             1.0 / 5040.0,
                             1.0 / 720.0,
                             1.0 / 120.0,
                             1.0 / 24.0,
                             1.0 / 6.0,
                             0.5,
                             1.0};
constexpr int kTerms = sizeof(kExpm1) / sizeof(double);

SSD_INLINE double expm1_over(double r) {
  double p = kExpm1[0];
  for (int i = 1; i < kTerms; ++i) p = p * r + kExpm1[i];
  return p;
}
SSD_INLINE Vec<double> expm1_over(Vec<double> r) {
  Vec<double> p = Vec<double>::set1(kExpm1[0]);
  for (int i = 1; i < kTerms; ++i) p = fma(p, r, Vec<double>::set1(kExpm1[i]));
  return p;
}

// Arrays are worked on in whole vectors: they have room up to this multiple, filled with what does no harm.
constexpr int64_t kWhole = 8;
SSD_INLINE int64_t whole(int64_t count) { return (count + kWhole - 1) / kWhole * kWhole; }

// out = expm1(x), count a multiple of kWhole. Entries beyond 0.5 in size go through the C library; NaN stays NaN.
inline void expm1_array(const double* x, int64_t count, double* out) {
  using V = Vec<double>;
  uint32_t beyond = 0;
  for (int64_t i = 0; i < count; i += V::kWidth) {
    const V value = V::load(x + i);
    beyond |= gt_mask(value, V::set1(0.5)) | gt_mask(V::set1(-0.5), value);
    (value * expm1_over(value)).store(out + i);
  }
  if (!beyond) return;
  for (int64_t i = 0; i < count; ++i)
    if (x[i] > 0.5 || x[i] < -0.5) out[i] = __builtin_expm1(x[i]);
}

// out = exp(x) for x <= 0; from -708 down to -746 it is 3e-308, below it 0, so that 0 x -inf is NaN as elsewhere.
inline void exp_array(const double* __restrict__ x, int64_t count, double* __restrict__ out) {
  constexpr double kRound = 0x1.8p52;
  for (int64_t i = 0; i < count; ++i) {
    const double value = x[i] < -708.0 ? -708.0 : x[i];
    const double shifted = value * 0x1.71547652b82fep0 + kRound;  // round(x / ln 2) in the low bits
    const double power = shifted - kRound;
    const double r = (value - power * 0x1.62e42fefa3800p-1) - power * 0x1.ef35793c76730p-45;
    const double mantissa = 1.0 + r * expm1_over(r);
    const double result = bits_as_double(double_as_bits(mantissa) + (double_as_bits(shifted) << 52));
    out[i] = x[i] < -746.0 ? 0.0 : result;
  }
}

}  // namespace ssd::cpu::SSD_LEVEL

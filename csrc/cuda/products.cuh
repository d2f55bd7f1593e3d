// Operands of mma.sync for the storage types: 16-bit numbers as they are, fp32 as two bf16 and three products.
//
// A product of rows x and w of D inputs so made, A, is near the canonical one, C (numbers.cuh):
//   |A - C| <= preselection_slack(D) |x||w|.
// Splitting fp32 drops 3 x 2^-18 |x||w|; a sum of n terms in fp32, in any order, rounded or truncated, errs by
// n 2^-23 |x||w| at most, n = 3 D; adding it to or comparing it with numbers of its size errs by what 2^-20 covers.
#pragma once

#include "numbers.cuh"

namespace ssd::cuda {

// `terms` products for each input: 3 for fp32 operands, else 1.
inline float preselection_slack(long long inputs, int terms) {
  const float dropped = terms == 3 ? 0x1p-16f : 0.f;
  return 1.02f * (static_cast<float>(terms) * static_cast<float>(inputs + 16) * 0x1p-23f + dropped + 0x1p-20f);
}

// A pair of neighbours as an operand: 16-bit storage as it is, fp32 as the bf16 of it and the bf16 of the rest.
struct Operand {
  uint32_t high, low;
};
SSD_DEVICE Operand operand(const float* pair) {
  const float a = pair[0], b = pair[1];
  const uint32_t high = pack_bf16(a, b);
  return {high, pack_bf16(a - bits_float(high << 16), b - bits_float(high & 0xffff0000u))};
}
SSD_DEVICE Operand operand(const Bf16* pair) { return {*reinterpret_cast<const uint32_t*>(pair), 0}; }
SSD_DEVICE Operand operand(const Half* pair) { return {*reinterpret_cast<const uint32_t*>(pair), 0}; }

SSD_DEVICE void multiply(float (&d)[4], const Operand (&a)[4], const Operand (&b)[2], float) {
  const uint32_t a_high[4] = {a[0].high, a[1].high, a[2].high, a[3].high}, b_high[2] = {b[0].high, b[1].high};
  const uint32_t a_low[4] = {a[0].low, a[1].low, a[2].low, a[3].low}, b_low[2] = {b[0].low, b[1].low};
  mma_bf16_k16(d, a_low, b_high);
  mma_bf16_k16(d, a_high, b_low);
  mma_bf16_k16(d, a_high, b_high);
}
SSD_DEVICE void multiply(float (&d)[4], const Operand (&a)[4], const Operand (&b)[2], Bf16) {
  const uint32_t left[4] = {a[0].high, a[1].high, a[2].high, a[3].high}, right[2] = {b[0].high, b[1].high};
  mma_bf16_k16(d, left, right);
}
SSD_DEVICE void multiply(float (&d)[4], const Operand (&a)[4], const Operand (&b)[2], Half) {
  const uint32_t left[4] = {a[0].high, a[1].high, a[2].high, a[3].high}, right[2] = {b[0].high, b[1].high};
  mma_half_k16(d, left, right);
}

}  // namespace ssd::cuda

// Weighted sums of rows, the one building block of every sparse gradient.
#pragma once

#include "rows/rows.h"

namespace ssd::cpu::SSD_LEVEL {

// to = sum of factors[i] rows[i], in this order; several vectors at a time stay in registers while the rows pass by.
template <class S, class T, class Out>
void weighted_sum(const S* const* rows, const T* factors, int64_t count, ptrdiff_t size, Out* to) {
  using V = Vec<T>;
  constexpr int kVectors = 8, kStep = kVectors * V::kWidth;
  ptrdiff_t d = 0;
  for (; d + kStep <= size; d += kStep) {
    V sum[kVectors];
    for (int v = 0; v < kVectors; ++v) sum[v] = V::zero();
    for (int64_t i = 0; i < count; ++i) {
      const V factor = V::set1(factors[i]);
      for (int v = 0; v < kVectors; ++v) sum[v] = fma(factor, V::load(rows[i] + d + v * V::kWidth), sum[v]);
    }
    for (int v = 0; v < kVectors; ++v) narrow(sum[v], to + d + v * V::kWidth, V::kWidth);
  }
  for (; d < size; d += V::kWidth) {
    const int lanes = size - d < V::kWidth ? static_cast<int>(size - d) : V::kWidth;
    V sum = V::zero();
    for (int64_t i = 0; i < count; ++i) sum = fma(V::set1(factors[i]), V::load_partial(rows[i] + d, lanes), sum);
    narrow(sum, to + d, lanes);
  }
}

}  // namespace ssd::cpu::SSD_LEVEL

// value where h > 0, else 0 (NaN is not > 0).
#pragma once

#include "simd/simd.h"

namespace ssd::cpu::SSD_LEVEL {

template <class T>
SSD_INLINE Vec<T> keep_active(Vec<T> h, Vec<T> value) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(h.v, _mm512_setzero_ps(), _CMP_GT_OQ), value.v)};
  } else {
    return {_mm512_maskz_mov_pd(_mm512_cmp_pd_mask(h.v, _mm512_setzero_pd(), _CMP_GT_OQ), value.v)};
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    return {_mm256_and_ps(_mm256_cmp_ps(h.v, _mm256_setzero_ps(), _CMP_GT_OQ), value.v)};
  } else {
    return {_mm256_and_pd(_mm256_cmp_pd(h.v, _mm256_setzero_pd(), _CMP_GT_OQ), value.v)};
  }
#else
  for (int i = 0; i < Vec<T>::kWidth; ++i) value.v[i] = h.v[i] > 0 ? value.v[i] : 0;
  return value;
#endif
}

}  // namespace ssd::cpu::SSD_LEVEL

// Inner loops of the phase with every neuron active (forms/all_active.cpp).
#pragma once

#include "engine/vector.h"
#include "rows/row_update.h"

namespace ssd::cpu::SSD_LEVEL {
namespace {

// fresh (N, D) = clamp(w - step V^T M): the gradient is never stored. norm2[r] = ||fresh_r||^2.
template <int N, int NV>
SSD_INLINE void dense_slice(const float* v, const float* m, const float* w, V minus, int C, int Cp, int64_t D,
                            float* fresh, V* norm) {
  V sum[N][NV];
  for (int r = 0; r < N; ++r)
    for (int i = 0; i < NV; ++i) sum[r][i] = V::zero();
  for (int c = 0; c < C; ++c) {
    V row[NV];
    for (int i = 0; i < NV; ++i) row[i] = V::load(m + c * D + i * kW);
    for (int r = 0; r < N; ++r) {
      const V factor = V::set1(v[r * Cp + c]);
      for (int i = 0; i < NV; ++i) sum[r][i] = fma(factor, row[i], sum[r][i]);
    }
  }
  for (int r = 0; r < N; ++r) {
    for (int i = 0; i < NV; ++i) {
      const V value = vmax(fma(minus, sum[r][i], V::load(w + r * D + i * kW)), V::zero());
      value.store(fresh + r * D + i * kW);
      norm[r] = fma(value, value, norm[r]);
    }
  }
}

template <int N>
SSD_INLINE void dense_rows(const float* v, const float* m, float* w, float step, int C, int Cp, int64_t D, float* fresh,
                           double* movement) {
  const V minus = V::set1(-step);
  V norm[N];
  for (int r = 0; r < N; ++r) norm[r] = V::zero();
  int64_t d = 0;
  for (; d + kSlice * kW <= D; d += kSlice * kW)
    dense_slice<N, kSlice>(v, m + d, w + d, minus, C, Cp, D, fresh + d, norm);
  for (; d + kW <= D; d += kW) dense_slice<N, 1>(v, m + d, w + d, minus, C, Cp, D, fresh + d, norm);
  double norm2[N];
  for (int r = 0; r < N; ++r) norm2[r] = reduce_add(norm[r]);
  for (; d < D; ++d) {
    for (int r = 0; r < N; ++r) {
      float sum = 0.f;
      for (int c = 0; c < C; ++c) sum = fma_scalar(v[r * Cp + c], m[c * D + d], sum);
      const float value = fma_scalar(-step, sum, w[r * D + d]);
      fresh[r * D + d] = value > 0.f ? value : 0.f;
      norm2[r] += static_cast<double>(fresh[r * D + d]) * fresh[r * D + d];
    }
  }
  for (int r = 0; r < N; ++r) {
    float* const value = fresh + r * D;
    if (is_extreme(norm2[r]))
      norm2[r] = sum_of_squares_fp64(D, [&](int64_t at) { return static_cast<double>(value[at]); });
    const float inverse = static_cast<float>(inverse_norm(norm2[r], kSmallestNorm));
    movement[r] = replace_row<kRowSums, false>(w + r * D, w + r * D, value, D, inverse,
                                               [&](int64_t at, int lanes) { return load_lanes<V>(value + at, lanes); });
  }
}

void dense_update_rows(const float* v, const float* m, float* w, int n, float step, int C, int Cp, int64_t D,
                       float* fresh, double* movement) {
  if (n == 4) {
    dense_rows<4>(v, m, w, step, C, Cp, D, fresh, movement);
  } else {
    for (int r = 0; r < n; ++r) dense_rows<1>(v + r * Cp, m, w + r * D, step, C, Cp, D, fresh, movement + r);
  }
}

template <int N, int NV>
SSD_INLINE void accumulate_product_slice(const float* v, const float* w, int C, int Cp, int64_t D, float* a) {
  V rows[N][NV];
  for (int r = 0; r < N; ++r)
    for (int i = 0; i < NV; ++i) rows[r][i] = V::load(w + r * D + i * kW);
  for (int c = 0; c < C; ++c) {
    float* at = a + c * D;
    V sum[NV];
    for (int i = 0; i < NV; ++i) sum[i] = V::load(at + i * kW);
    for (int r = 0; r < N; ++r) {
      const V factor = V::set1(v[r * Cp + c]);
      for (int i = 0; i < NV; ++i) sum[i] = fma(factor, rows[r][i], sum[i]);
    }
    for (int i = 0; i < NV; ++i) sum[i].store(at + i * kW);
  }
}

template <int N>
SSD_INLINE void accumulate_product_rows(const float* v, const float* w, int C, int Cp, int64_t D, float* a) {
  int64_t d = 0;
  for (; d + kSlice * kW <= D; d += kSlice * kW) accumulate_product_slice<N, kSlice>(v, w + d, C, Cp, D, a + d);
  for (; d + kW <= D; d += kW) accumulate_product_slice<N, 1>(v, w + d, C, Cp, D, a + d);
  for (; d < D; ++d)
    for (int c = 0; c < C; ++c)
      for (int r = 0; r < N; ++r) a[c * D + d] = fma_scalar(v[r * Cp + c], w[r * D + d], a[c * D + d]);
}

void accumulate_product(const float* v, const float* w, int n, int C, int Cp, int64_t D, float* a) {
  if (n == 4) {
    accumulate_product_rows<4>(v, w, C, Cp, D, a);
  } else {
    for (int r = 0; r < n; ++r) accumulate_product_rows<1>(v + r * Cp, w + r * D, C, Cp, D, a);
  }
}

}  // namespace
}  // namespace ssd::cpu::SSD_LEVEL

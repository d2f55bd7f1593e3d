// Products of small tiles that stay in registers: out (kTileRows, 32) (+)= A (kTileRows, k) B (k, 32), k ascending.
//
// A is a tile of at most kTileDepth columns with a constant row stride, read number by number; B is a panel of 32
// columns, read vector by vector. A sum of k products has one accumulator and one order, whatever the tile around it.
// Bound: with kTileRows x kTileVectors accumulators, a step loads kTileVectors vectors and kTileRows numbers for
// kTileRows kTileVectors multiply-adds: at AVX-512, 16 loads for 28, and two of each can start per cycle.
#pragma once

#include "simd/simd.h"

namespace ssd::cpu::SSD_LEVEL {

#if defined(__AVX512F__)
constexpr int kTileRows = 14, kTileVectors = 2;
#elif defined(__AVX2__)
constexpr int kTileRows = 6, kTileVectors = 2;
#else
constexpr int kTileRows = 4, kTileVectors = 1;
#endif
constexpr int kTileDepth = 128;               // products summed in registers; longer sums are added up in memory
constexpr int kTileStride = kTileDepth + 16;  // not a power of 2: rows at the same column lie in different cache sets
constexpr int kPanelLanes = 32;               // columns of a panel of B
constexpr int kTileSize = kTileRows * kTileStride;

template <int NV, class T>
SSD_INLINE void multiply_columns(const T* a, const T* b, int64_t depth, bool add, T* out, int64_t stride) {
  using V = Vec<T>;
  V sum[kTileRows][NV];
  for (int r = 0; r < kTileRows; ++r)
    for (int v = 0; v < NV; ++v) sum[r][v] = V::zero();
  for (int64_t k = 0; k < depth; ++k) {
    V row[NV];
    for (int v = 0; v < NV; ++v) row[v] = V::load(b + k * kPanelLanes + v * V::kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
      const V factor = V::set1(a[r * kTileStride + k]);
      for (int v = 0; v < NV; ++v) sum[r][v] = fma(factor, row[v], sum[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
    for (int v = 0; v < NV; ++v) {
      T* const to = out + r * stride + v * V::kWidth;
      (add ? V::load(to) + sum[r][v] : sum[r][v]).store(to);
    }
  }
}

// All rows, and `lanes` columns rounded up to whole vectors.
template <class T>
void multiply_tile(const T* a, const T* b, int64_t depth, int64_t lanes, bool add, T* out, int64_t stride) {
  constexpr int kWidth = Vec<T>::kWidth;
  for (int64_t l = 0; l < lanes;) {
    if (lanes - l > kWidth && kTileVectors > 1) {
      multiply_columns<kTileVectors>(a, b + l, depth, add, out + l, stride);
      l += kTileVectors * kWidth;
    } else {
      multiply_columns<1>(a, b + l, depth, add, out + l, stride);
      l += kWidth;
    }
  }
}

// out += A B on `rows` rows and `lanes` columns, and nowhere else.
template <class T>
void add_product(const T* a, const T* b, int64_t depth, int64_t rows, int64_t lanes, T* out, int64_t stride) {
  if (rows == kTileRows && lanes == kPanelLanes) return multiply_tile(a, b, depth, lanes, true, out, stride);
  alignas(64) T tile[kTileRows * kPanelLanes];
  multiply_tile(a, b, depth, lanes, false, tile, kPanelLanes);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t l = 0; l < lanes; ++l) out[r * stride + l] += tile[r * kPanelLanes + l];
}

}  // namespace ssd::cpu::SSD_LEVEL

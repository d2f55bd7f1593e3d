// Inner loops of the step form for many active neurons (forms/tiles.cpp): scores (neurons, columns) with the rows of
// the batch side by side, so that masks and products run over whole vectors. Every sum has the order of the form with
// lists of active neurons, and a silent neuron adds an exact zero: the two forms give the same bits.
#pragma once

#include "engine/kernels.h"
#include "engine/vector.h"
#include "simd/keep_active.h"

namespace ssd::cpu::SSD_LEVEL {
namespace {

constexpr int kTileSlice = kSlice, kTileGroup = 4;  // 4 neurons x kSlice vectors of sums stay in registers
constexpr int kColumnVectors = kTileColumns / kW;   // vectors of one group of batch rows

int tile_exceed(const float* scores, int64_t count, int columns, const float* floors, int32_t* hits) {
  constexpr uint32_t kAll = static_cast<uint32_t>((uint64_t{1} << kW) - 1);
  int found = 0;
  for (int64_t j = 0; j < count; ++j) {
    const float* row = scores + j * columns;
    for (int b = 0; b < columns; b += kW) {
      uint32_t mask = ~gt_mask(V::load(floors + b), V::load(row + b)) & kAll;
      for (; mask; mask &= mask - 1) hits[found++] = static_cast<int32_t>(j * columns + b + __builtin_ctz(mask));
    }
  }
  return found;
}

// y[c] (16) += sum_j h[j] (16) * output[j][c] for NC classes, j ascending.
template <int NC>
SSD_INLINE void tile_output_group(const float* h, int64_t n, const float* output, int Cp, float* y, int64_t ldy) {
  V sum[NC][kColumnVectors];
  for (int c = 0; c < NC; ++c)
    for (int v = 0; v < kColumnVectors; ++v) sum[c][v] = V::load(y + c * ldy + v * kW);
  for (int64_t j = 0; j < n; ++j) {
    V column[kColumnVectors];
    for (int v = 0; v < kColumnVectors; ++v) column[v] = V::load(h + j * kTileColumns + v * kW);
    for (int c = 0; c < NC; ++c) {
      const V factor = V::set1(output[j * Cp + c]);
      for (int v = 0; v < kColumnVectors; ++v) sum[c][v] = fma(column[v], factor, sum[c][v]);
    }
  }
  for (int c = 0; c < NC; ++c)
    for (int v = 0; v < kColumnVectors; ++v) sum[c][v].store(y + c * ldy + v * kW);
}

void tile_outputs(float* scores, int64_t n, int64_t ld, const float* gaba, const float* thresholds, const float* output,
                  int C, int Cp, float* y, int64_t ldy, float* active) {
  constexpr int kBlock = 64, kAhead = 16;
  alignas(64) float h[kBlock * kTileColumns];
  V threshold[kColumnVectors], count[kColumnVectors];
  for (int v = 0; v < kColumnVectors; ++v) {
    threshold[v] = V::load(thresholds + v * kW);
    count[v] = V::zero();
  }
  for (int64_t j = 0; j < n; j += kBlock) {
    const int64_t size = n - j < kBlock ? n - j : kBlock;
    for (int64_t i = 0; i < size; ++i) {
      const V g = V::set1(gaba[j + i]);
      float* at = scores + (j + i) * ld;
      __builtin_prefetch(at + kAhead * ld, 1);  // rows are far apart: no stream for the hardware
      for (int v = 0; v < kColumnVectors; ++v) {
        const V a = vmax(V::load(at + v * kW), V::zero());
        const V value = vmax(a - g * threshold[v], V::zero());
        value.store(at + v * kW);
        value.store(h + i * kTileColumns + v * kW);
        count[v] = count[v] + keep_active(value, V::set1(1.f));
      }
    }
    const float* from = output + j * Cp;
    int c = 0;
#if defined(__AVX512F__)
    for (; c + 10 <= C; c += 10) tile_output_group<10>(h, size, from + c, Cp, y + c * ldy, ldy);
#endif
    for (; c + 5 <= C; c += 5) tile_output_group<5>(h, size, from + c, Cp, y + c * ldy, ldy);
    for (; c < C; ++c) tile_output_group<1>(h, size, from + c, Cp, y + c * ldy, ldy);
  }
  for (int v = 0; v < kColumnVectors; ++v) count[v].store(active + v * kW);
}

template <int NV>
SSD_INLINE int tile_gradient_columns(const float* h, const float* v, const float* dy, int64_t columns, int C,
                                     float* dh) {
  V sum[NV];
  for (int i = 0; i < NV; ++i) sum[i] = V::zero();
  for (int c = 0; c < C; ++c) {
    const V factor = V::set1(v[c]);
    for (int i = 0; i < NV; ++i) sum[i] = fma(V::load(dy + c * columns + i * kW), factor, sum[i]);
  }
  int active = 0;
  for (int i = 0; i < NV; ++i) {
    const V value = V::load(h + i * kW);
    keep_active(value, sum[i]).store(dh + i * kW);
    active += __builtin_popcount(gt_mask(value, V::zero()));
  }
  return active;
}

void tile_gradients(const float* h, int64_t n, int columns, const float* output, int C, int Cp, const float* dy,
                    float* dh, int32_t* active) {
  for (int64_t j = 0; j < n; ++j) {
    const float *row = h + j * columns, *v = output + j * Cp;
    float* to = dh + j * columns;
    int count = 0, b = 0;
    for (; b + 8 * kW <= columns; b += 8 * kW)
      count += tile_gradient_columns<8>(row + b, v, dy + b, columns, C, to + b);
    for (; b < columns; b += kW) count += tile_gradient_columns<1>(row + b, v, dy + b, columns, C, to + b);
    active[j] = count;
  }
}

// sum[r] (NV vectors) = sum_b coef[r][b] * x[b], b ascending, for N neurons.
template <int N, int NV>
SSD_INLINE void tile_sum(const float* const* coef, const float* x, int64_t stride, int rows, V (&sum)[N][NV]) {
  for (int r = 0; r < N; ++r)
    for (int i = 0; i < NV; ++i) sum[r][i] = V::zero();
  const float* from[N];
  for (int r = 0; r < N; ++r) from[r] = coef[r];
  for (int b = 0; b < rows; ++b) {
    V row[NV];
    for (int i = 0; i < NV; ++i) row[i] = V::load(x + b * stride + i * kW);
    for (int r = 0; r < N; ++r) {
      const V factor = V::set1(from[r][b]);
      for (int i = 0; i < NV; ++i) sum[r][i] = fma(factor, row[i], sum[r][i]);
    }
  }
}

template <int N>
SSD_INLINE void tile_weight_group(const float* const* coef, const float* slice, int rows, int lanes,
                                  float* const* sum) {
  V total[N][kTileSlice];
  tile_sum<N, kTileSlice>(coef, slice, kTileSlice * kW, rows, total);
  for (int r = 0; r < N; ++r) {
    if (lanes == kTileSlice * kW) {
      for (int i = 0; i < kTileSlice; ++i) total[r][i].store(sum[r] + i * kW);
    } else {
      for (int i = 0; i * kW < lanes; ++i)
        total[r][i].store_partial(sum[r] + i * kW, lanes - i * kW < kW ? lanes - i * kW : kW);
    }
  }
}

void tile_weight_gradient(const float* const* coef, int n, const float* sliced, int rows, int64_t D,
                          float* const* sum) {
  constexpr int kLanes = kTileSlice * kW;
  for (int64_t d = 0; d < D; d += kLanes) {
    const float* slice = sliced + d * rows;
    const int lanes = D - d < kLanes ? static_cast<int>(D - d) : kLanes;
    float* to[kTileGroup];
    int i = 0;
    for (; i + kTileGroup <= n; i += kTileGroup) {
      for (int r = 0; r < kTileGroup; ++r) to[r] = sum[i + r] + d;
      tile_weight_group<kTileGroup>(coef + i, slice, rows, lanes, to);
    }
    for (; i < n; ++i) {
      to[0] = sum[i] + d;
      tile_weight_group<1>(coef + i, slice, rows, lanes, to);
    }
  }
}

void tile_slice(const float* x, int rows, int64_t D, float* sliced) {
  constexpr int kLanes = kTileSlice * kW;
  for (int64_t d = 0; d < D; d += kLanes) {
    float* slice = sliced + d * rows;
    for (int b = 0; b < rows; ++b)
      for (int i = 0; i < kLanes; ++i) slice[b * kLanes + i] = d + i < D ? x[b * D + d + i] : 0.f;
  }
}

void tile_output_gradient(const float* const* h, int n, const float* dy, int rows, int Cp, float* const* sum) {
  constexpr int kNeurons = 8;
  for (int c = 0; c < Cp; c += kW) {
    int i = 0;
    for (; i + kNeurons <= n; i += kNeurons) {
      V total[kNeurons][1];
      tile_sum<kNeurons, 1>(h + i, dy + c, Cp, rows, total);
      for (int r = 0; r < kNeurons; ++r) total[r][0].store(sum[i + r] + c);
    }
    for (; i < n; ++i) {
      V total[1][1];
      tile_sum<1, 1>(h + i, dy + c, Cp, rows, total);
      total[0][0].store(sum[i] + c);
    }
  }
}

}  // namespace
}  // namespace ssd::cpu::SSD_LEVEL

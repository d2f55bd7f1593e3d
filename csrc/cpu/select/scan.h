// The fused scan: every canonical score of a block of x against a panel of w, each compared with a limit per row of x
// and forgotten unless it passes. No score is written to memory but those of the tile at hand.
//
// Work: kX x kW dot products at a time, lanes across D (dot_tile); their scores fill whole vectors, so one comparison
// rejects a tile. The block should fit in L1 and the panel in L2: each row of w is read from L2 once per block, and
// from memory once per panel. Neurons come in ascending order for every row of x.
#pragma once

#include "simd/simd.h"

namespace ssd::cpu::SSD_LEVEL {

// The tile that keeps the multipliers busiest with the registers of the instruction set.
#if defined(__AVX512F__)
constexpr int kTileX = 4, kTileW = 4;
#elif defined(__AVX2__)
constexpr int kTileX = 2, kTileW = 4;
#else
constexpr int kTileX = 2, kTileW = 4;
#endif

template <class T>
struct ScanBlock {
  const T* x;  // (rows, size), row stride x_stride
  ptrdiff_t x_stride;
  int rows;
  ptrdiff_t size;  // D
  const T* w;      // the panel: row j is neuron first + j
  ptrdiff_t w_stride;
  int64_t first;
  int neurons;
  const T* scale;          // (neurons,) or null, with shift: the score is fma(dot, scale, shift)
  const T* shift;          // (neurons,) or null
  bool magnitude = false;  // |score| is compared; what is emitted keeps its sign
  T* limits;               // (rows rounded up to kTileX, kTileW): a row's limit, kTileW times; NaN lets everything pass
};

template <class T, int NX, class Emit>
SSD_INLINE void scan_tile(const ScanBlock<T>& block, int row, int rows, const T* const (&w)[kTileW], int neuron,
                          int neurons, const T* scale, const T* shift, Emit& emit) {
  using V = Vec<T>;
  constexpr int kScores = NX * kTileW, kStep = V::kWidth < kScores ? V::kWidth : kScores;
  const T* x[NX];
  for (int i = 0; i < NX; ++i) x[i] = block.x + (row + (i < rows ? i : rows - 1)) * block.x_stride;
  alignas(64) T scores[kScores];
  dot_tile<NX, kTileW>(x, w, block.size, scores);
  uint32_t passed = 0;
  const T* limits = block.limits + static_cast<ptrdiff_t>(row) * kTileW;
  for (int s = 0; s < kScores; s += kStep) {
    if constexpr (kScores >= V::kWidth) {
      V score = V::load(scores + s);
      if (scale) {
        score = fma(score, V::load(scale + s), V::load(shift + s));
        score.store(scores + s);
      }
      if (block.magnitude) score = vmax(score, V::zero() - score);
      passed |= not_le_mask(score, V::load(limits + s)) << s;
    } else {
      V score = V::load_partial(scores, kScores);
      if (scale) {
        score = fma(score, V::load_partial(scale, kScores), V::load_partial(shift, kScores));
        score.store_partial(scores, kScores);
      }
      if (block.magnitude) score = vmax(score, V::zero() - score);
      passed = not_le_mask(score, V::load_partial(limits, kScores)) & ((1u << kScores) - 1u);
    }
  }
  if (__builtin_expect(passed == 0, 1)) return;
  for (; passed; passed &= passed - 1) {
    const int lane = __builtin_ctz(passed), i = lane / kTileW, j = lane % kTileW;
    if (i < rows && j < neurons) emit(row + i, block.first + neuron + j, scores[lane]);
  }
}

// Calls emit(row, neuron, score) for every score that is not <= the row's limit at that moment's tile. emit may raise
// limits; scores of the tile at hand were compared before.
template <class T, class Emit>
SSD_INLINE void scan_block(const ScanBlock<T>& block, Emit& emit) {
  alignas(64) T scale[kTileX * kTileW], shift[kTileX * kTileW];
  for (int neuron = 0; neuron < block.neurons; neuron += kTileW) {
    const int neurons = block.neurons - neuron < kTileW ? block.neurons - neuron : kTileW;
    const T* w[kTileW];
    for (int j = 0; j < kTileW; ++j) {
      const int at = neuron + (j < neurons ? j : neurons - 1);
      w[j] = block.w + at * block.w_stride;
      if (block.scale || block.shift) {
        for (int i = 0; i < kTileX; ++i) {
          scale[i * kTileW + j] = block.scale ? block.scale[at] : 1;
          shift[i * kTileW + j] = block.shift ? block.shift[at] : 0;
        }
      }
    }
    const T *scales = block.scale || block.shift ? scale : nullptr, *shifts = scales ? shift : nullptr;
    int row = 0;
    for (; row + kTileX <= block.rows; row += kTileX)
      scan_tile<T, kTileX>(block, row, kTileX, w, neuron, neurons, scales, shifts, emit);
    if (row + 1 == block.rows)
      scan_tile<T, 1>(block, row, 1, w, neuron, neurons, scales, shifts, emit);
    else if (row < block.rows)
      scan_tile<T, kTileX>(block, row, block.rows - row, w, neuron, neurons, scales, shifts, emit);
  }
}

}  // namespace ssd::cpu::SSD_LEVEL

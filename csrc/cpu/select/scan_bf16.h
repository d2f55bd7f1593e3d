// Certified preselection: scores in bf16 (AVX-512 BF16), each with a proven bound on its distance from the canonical
// one. A neuron whose score could pass a row's limit is a candidate, to be scored canonically; no other neuron can.
//
// Work: a block of 64 neurons is rounded to bf16 and transposed so that lanes run across neurons: no horizontal sums,
// and a tile of 4 rows x 64 neurons keeps 16 accumulators busy. The block (32 KB at D = 256) stays in L1 while all rows
// of x pass by; a rounding of x is made once per block of rows.
//
// The bound. With x', w' the rounded vectors, A the bf16 score and C the canonical one (D terms each):
//   |A - C| <= |x'-x| |w| + |x'| |w'-w| + (D + 2) 2^-22 |x'| |w'|      norms L2, by Cauchy and Schwarz
// The first two terms bound the rounding of the vectors, from the rounding errors themselves rather than from the unit
// roundoff; the last bounds both summations, whatever their order. Norms are raised by what underflows in their squares
// (floor) and the sum by 2^-8 of itself, far more than the rounding of the norms. Where a norm overflows, every neuron
// is a candidate.
#pragma once

#include "rows/rows.h"

#ifdef __AVX512BF16__

namespace ssd::cpu::SSD_LEVEL {

constexpr int kBlockNeurons = 64, kBlockVectors = kBlockNeurons / 16, kBlockRows = 4;

// 32 entries of a row, as 16 pairs of bf16; and the sums of squares of the entries and of their rounding errors.
struct RoundedChunk {
  __m512i pairs;
  Vec<float> square, error;
};
SSD_INLINE void add_squares(Vec<float> value, __m256i rounded, RoundedChunk* chunk) {
  const Vec<float> error = value - Vec<float>::widen_bf16(rounded);
  chunk->square = fma(value, value, chunk->square);
  chunk->error = fma(error, error, chunk->error);
}
template <class S>
SSD_INLINE void round_chunk(const S* row, ptrdiff_t left, RoundedChunk* chunk) {
  using V = Vec<float>;
  V low, high = V::zero();
  if (left >= 32) {
    low = V::load(row);
    high = V::load(row + 16);
  } else {
    low = V::load_partial(row, static_cast<int>(left < 16 ? left : 16));
    if (left > 16) high = V::load_partial(row + 16, static_cast<int>(left - 16));
  }
  chunk->pairs = (__m512i)_mm512_cvtne2ps_pbh(high.v, low.v);
  add_squares(low, _mm512_castsi512_si256(chunk->pairs), chunk);
  add_squares(high, _mm512_extracti64x4_epi64(chunk->pairs, 1), chunk);
}

// rows[i] lane j <-> rows[j] lane i, for 16 vectors of 16.
SSD_INLINE void transpose_16(__m512i* rows) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    rows[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    rows[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    rows[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    rows[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {  // rows[4g + i] holds column i of each 128-bit lane, of rows 4g .. 4g + 3
    const __m512i a = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0x88),
                  b = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0x88);
    const __m512i d = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0xdd);
    t[i] = _mm512_shuffle_i32x4(a, c, 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
    t[i + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
    t[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
  for (int i = 0; i < 16; ++i) rows[i] = t[i];
}

// What underflows in a sum of squares, or is flushed as a denormal, is below this in the norm.
SSD_INLINE float norm_floor(ptrdiff_t size) { return square_root(static_cast<float>(size)) * 0x1p-60f; }

// Pairs of a row that are stored: D rounded up to whole chunks; zeros add nothing.
SSD_INLINE ptrdiff_t stored_pairs(ptrdiff_t size) { return (size + 31) / 32 * 16; }

// A block of rows of x: rounded, and by row the norms that the bound needs.
struct RoundedRows {
  const uint32_t* pairs;  // (rows, stored_pairs)
  int rows;
  ptrdiff_t size;                     // D
  float* errors;                      // |x' - x|
  float* roundeds;                    // at least |x'| and |x|
  float* certain;                     // scratch of scan_rounded
  const float* thresholds = nullptr;  // null, or by row I >= 0: a score is dot - inhibition I
};
SSD_INLINE void round_row(const float* x, ptrdiff_t size, uint32_t* pairs, float* error, float* rounded) {
  RoundedChunk chunk;
  chunk.square = chunk.error = Vec<float>::zero();
  for (ptrdiff_t d = 0; d < size; d += 32) {
    round_chunk(x + d, size - d, &chunk);
    _mm512_storeu_si512(pairs + d / 2, chunk.pairs);
  }
  *error = square_root(reduce_add(chunk.error)) + norm_floor(size);
  *rounded = square_root(reduce_add(chunk.square)) + norm_floor(size) + *error;
}

struct RoundedBlock {
  uint32_t* pairs;  // (stored_pairs, 64)
  int neurons;
  const float* scale;  // (64,) or null, with shift: the score is fma(dot, scale, shift)
  const float* shift;
  float norm, error;                  // the largest |w| and |w' - w|, times the scale where there is one
  float peak;                         // the largest |w|
  const float* inhibition = nullptr;  // (64,), within [-1, 1], with RoundedRows::thresholds; no scale or shift then
};
SSD_INLINE float larger(float a, float b) { return b <= a ? a : b == b ? b : __builtin_inff(); }

// Rounds and transposes `block->neurons` rows of w into block->pairs, and finds the block's norms. Rows are read one
// after another, as the hardware's prefetcher likes it; rounded: (16, stored_pairs) scratch.
template <class S>
void round_block(const S* w, ptrdiff_t w_stride, ptrdiff_t size, uint32_t* rounded, RoundedBlock* block) {
  const float floor = norm_floor(size);
  const ptrdiff_t stored = stored_pairs(size);
  block->norm = block->error = block->peak = 0;
  for (int v = 0; v < kBlockVectors; ++v) {
    for (int i = 0; i < 16; ++i) {
      const int at = v * 16 + i;
      const S* row = w + (at < block->neurons ? at : block->neurons - 1) * w_stride;
      RoundedChunk chunk;
      chunk.square = chunk.error = Vec<float>::zero();
      for (ptrdiff_t d = 0; d < size; d += 32) {
        round_chunk(row + d, size - d, &chunk);
        _mm512_store_si512(rounded + i * stored + d / 2, chunk.pairs);
      }
      const float norm = square_root(reduce_add(chunk.square)) + floor;
      const float error = square_root(reduce_add(chunk.error)) + floor;
      const float scale = block->scale ? block->scale[at] : 1;
      block->norm = larger(block->norm, norm * scale);
      block->error = larger(block->error, error * scale);
      block->peak = larger(block->peak, norm);
    }
    for (ptrdiff_t p = 0; p < stored; p += 16) {
      __m512i pairs[16];
      for (int i = 0; i < 16; ++i) pairs[i] = _mm512_load_si512(rounded + i * stored + p);
      transpose_16(pairs);
      for (int i = 0; i < 16; ++i) _mm512_store_si512(block->pairs + (p + i) * kBlockNeurons + v * 16, pairs[i]);
    }
  }
}

// By row: a bf16 score above this may belong to a canonical score above the row's limit; NaN where nothing is certain.
SSD_INLINE void certain_limits(const RoundedRows& x, const RoundedBlock& w, const float* limits,
                               ptrdiff_t limit_stride) {
  const float sums = static_cast<float>(x.size + 2) * 0x1p-22f * (w.norm + w.error);
  const float tiny = static_cast<float>(x.size) * 0x1p-120f, peak = w.peak + w.norm + w.error;
  for (int r = 0; r < x.rows; ++r) {
    const float limit = limits[r * limit_stride];
    const float vectors = x.errors[r] * w.norm + x.roundeds[r] * w.error;
    const float bound = (vectors + sums * x.roundeds[r]) * (1 + 0x1p-8f) + tiny;
    // Both scores subtract the same rounded inhibition, and a difference near the limit is rounded by 2^-24 of the
    // limit at most: the last term covers it.
    const float certain = limit - bound - (__builtin_fabsf(limit) + bound) * 0x1p-21f;
    x.certain[r] = x.roundeds[r] * peak < 1e37f ? certain : __builtin_nanf("");
  }
}

// Calls candidate(row, neuron of the block) for every pair that may pass, neurons ascending for each row.
// limits: canonical limits by row, `limit_stride` apart, NaN to let everything pass; candidate may raise them.
// next: memory that is wanted after this block, next_bytes of it, fetched into L2 meanwhile.
template <class Candidate>
SSD_INLINE void scan_rounded(const RoundedRows& x, const RoundedBlock& block, const float* limits,
                             ptrdiff_t limit_stride, const char* next, ptrdiff_t next_bytes, Candidate& candidate) {
  using V = Vec<float>;
  const uint64_t valid = block.neurons == 64 ? ~uint64_t{0} : (uint64_t{1} << block.neurons) - 1;
  const ptrdiff_t pairs = (x.size + 1) / 2, stored = stored_pairs(x.size);  // stored ones are a multiple of kUnroll
  const int tiles = (x.rows + kBlockRows - 1) / kBlockRows;
  constexpr ptrdiff_t kUnroll = 4, kLine = 64;
  const ptrdiff_t steps = tiles * ((pairs + kUnroll - 1) / kUnroll),
                  ahead = (next_bytes + steps * kLine - 1) / (steps * kLine);
  const char* const next_end = next + next_bytes;
  certain_limits(x, block, limits, limit_stride);
  for (int tile = 0; tile < tiles; ++tile) {
    const int row = tile * kBlockRows;
    const uint32_t* from[kBlockRows];
    for (int i = 0; i < kBlockRows; ++i) from[i] = x.pairs + (row + i < x.rows ? row + i : x.rows - 1) * stored;
    V sum[kBlockRows][kBlockVectors];
    for (auto& of_row : sum)
      for (V& s : of_row) s = V::zero();
    for (ptrdiff_t first = 0; first < pairs; first += kUnroll) {
      for (ptrdiff_t line = 0; line < ahead && next < next_end; ++line, next += kLine) _mm_prefetch(next, _MM_HINT_T1);
#pragma GCC unroll 4
      for (ptrdiff_t p = first; p < first + kUnroll; ++p) {
        __m512bh w[kBlockVectors];
        for (int v = 0; v < kBlockVectors; ++v)
          w[v] = (__m512bh)_mm512_load_si512(block.pairs + p * kBlockNeurons + v * 16);
        for (int i = 0; i < kBlockRows; ++i) {
          const __m512bh value = (__m512bh)_mm512_set1_epi32(static_cast<int>(from[i][p]));
          for (int v = 0; v < kBlockVectors; ++v) sum[i][v].v = _mm512_dpbf16_ps(sum[i][v].v, w[v], value);
        }
      }
    }
    for (int i = 0; i < kBlockRows && row + i < x.rows; ++i) {
      const V limit = V::set1(x.certain[row + i]);
      uint64_t passed = 0;
      for (int v = 0; v < kBlockVectors; ++v) {
        V score = sum[i][v];
        if (block.inhibition) score = score - V::load(block.inhibition + v * 16) * V::set1(x.thresholds[row + i]);
        if (block.scale) score = fma(score, V::load(block.scale + v * 16), V::load(block.shift + v * 16));
        passed |= static_cast<uint64_t>(not_le_mask(score, limit)) << (v * 16);
      }
      for (passed &= valid; passed; passed &= passed - 1) candidate(row + i, __builtin_ctzll(passed));
    }
  }
}

}  // namespace ssd::cpu::SSD_LEVEL

#endif

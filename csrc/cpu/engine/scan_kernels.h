// Inner loops that pick out survivors: of candidate lists by their bounds (certificates/proof.cpp), and of blocks of
// neurons in bf16 (scan.cpp).
#pragma once

#include "engine/vector.h"
#include "select/preselect.h"

namespace ssd::cpu::SSD_LEVEL {
namespace {

int filter(const float* scores, const float* gaba, int n, float floor, float gap, int32_t base, int32_t* index,
           float* score) {
  const V low = V::set1(floor), below = V::set1(gap), zero = V::zero();
  int count = 0;
  for (int j = 0; j < n; j += kW) {
    const int rest = n - j;
    uint32_t mask;
    if (rest >= kW) {
      const V g = V::load(gaba + j);
      mask = not_le_mask(V::load(scores + j), g * low - below) | gt_mask(zero, g);
    } else {
      const V g = V::load_partial(gaba + j, rest);
      mask = not_le_mask(V::load_partial(scores + j, rest), g * low - below) | gt_mask(zero, g);
      mask &= (1u << rest) - 1u;
    }
    for (; mask; mask &= mask - 1) {
      const int lane = j + __builtin_ctz(mask);
      index[count] = base + lane;
      score[count++] = scores[lane];
    }
  }
  return count;
}

int prune(const int32_t* index, const float* bound, int n, const float* path_gaba, float floor, float slack,
          int32_t* kept) {
  int count = 0;
#if defined(__AVX512F__)
  const __m512 low = _mm512_set1_ps(floor), extra = _mm512_set1_ps(slack);
  for (int i = 0; i < n; i += 16) {
    const __mmask16 lanes = n - i >= 16 ? 0xffffu : static_cast<__mmask16>((1u << (n - i)) - 1u);
    const __m512i at = _mm512_slli_epi32(_mm512_maskz_loadu_epi32(lanes, index + i), 1);
    const __m512 zero = _mm512_setzero_ps();
    const __m512 path = _mm512_mask_i32gather_ps(zero, lanes, at, path_gaba, 4);
    const __m512 gaba = _mm512_mask_i32gather_ps(zero, lanes, at, path_gaba + 1, 4);
    const __m512 upper = _mm512_add_ps(_mm512_add_ps(_mm512_maskz_loadu_ps(lanes, bound + i), path), extra);
    __mmask16 keep = _mm512_cmp_ps_mask(upper, _mm512_mul_ps(gaba, low), _CMP_NLE_UQ);
    keep = (keep | _mm512_cmp_ps_mask(zero, gaba, _CMP_GT_OQ)) & lanes;
    _mm512_storeu_si512(kept + count,
                        _mm512_maskz_compress_epi32(
                            keep, _mm512_add_epi32(_mm512_set1_epi32(i), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9,
                                                                                           10, 11, 12, 13, 14, 15))));
    count += __builtin_popcount(keep);
  }
#else
  for (int i = 0; i < n; ++i) {
    const float* at = path_gaba + 2 * static_cast<ptrdiff_t>(index[i]);
    kept[count] = i;
    count += !(bound[i] + at[0] + slack <= at[1] * floor) || at[1] < 0;
  }
#endif
  return count;
}

#ifdef __AVX512BF16__
static_assert(kPreselectBlock == kBlockNeurons);
constexpr int64_t kStateBytes = (sizeof(RoundedInputs) + 63) / 64 * 64;  // the memory of its rows begins behind it

int64_t preselect_bytes(int rows, int64_t D) { return kStateBytes + RoundedInputs::bytes(rows, D); }

void preselect_load(void* state, const float* x, int rows, int64_t D) {
  auto* inputs = static_cast<RoundedInputs*>(state);
  inputs->place(static_cast<char*>(state) + kStateBytes, rows, D);
  inputs->load(x, rows);
}

int preselect(void* state, const float* w, int neurons, int64_t next_bytes, const float* gaba, const float* floors,
              float gap, int32_t base, int32_t* row, int32_t* index, float* score, int64_t* candidates) {
  auto* inputs = static_cast<RoundedInputs*>(state);
  const int64_t D = inputs->rows.size;
  alignas(64) float inhibition[kBlockNeurons];
  for (int j = 0; j < kBlockNeurons; ++j) inhibition[j] = gaba[j < neurons ? j : neurons - 1];
  RoundedBlock block;
  block.neurons = neurons;
  block.scale = block.shift = nullptr;
  block.inhibition = inhibition;
  inputs->rows.thresholds = floors;
  const float limit = -gap;  // one for all rows: they are 0 apart
  int count = 0;
  *candidates += inputs->scan(w, D, block, &limit, 0, reinterpret_cast<const char*>(w + neurons * D), next_bytes,
                              [&](int r, int neuron, float exact) {
                                const float inhibited = gaba[neuron] * floors[r];
                                if (exact <= inhibited - gap) return;
                                row[count] = r;
                                index[count] = base + neuron;
                                score[count++] = exact;
                              });
  return count;
}
#endif

int prune_movers(const float* bound, const float* path, const float* gaba, int n, float floor, float slack,
                 int32_t* kept) {
  const V low = V::set1(floor), extra = V::set1(slack), zero = V::zero();
  int count = 0;
  for (int i = 0; i < n; i += kW) {
    const int rest = n - i;
    uint32_t mask;
    if (rest >= kW) {
      const V g = V::load(gaba + i);
      mask = not_le_mask(V::load(bound + i) + V::load(path + i) + extra, g * low) | gt_mask(zero, g);
    } else {
      const V g = V::load_partial(gaba + i, rest);
      const V upper = V::load_partial(bound + i, rest) + V::load_partial(path + i, rest) + extra;
      mask = (not_le_mask(upper, g * low) | gt_mask(zero, g)) & ((1u << rest) - 1u);
    }
    for (; mask; mask &= mask - 1) kept[count++] = i + __builtin_ctz(mask);
  }
  return count;
}

}  // namespace
}  // namespace ssd::cpu::SSD_LEVEL

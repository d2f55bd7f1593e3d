// The K + 1 largest activations per row, fused: scores on tensor cores (mma.sync), selection in the epilogue.
//
// A block owns kRows samples and one part of the neurons, 128 at a time; 8 warps; x and W come through cp.async, the
// next step of 32 inputs under way while one is multiplied. fp32 operands are split into two bf16 each, three products.
// A score so made, A, is near the canonical one, C (numbers.cuh), by a proven bound e = slack |x| max |w|
// (products.cuh; scaling and adding the bias err by what 2^-21 of the sizes covers). With M the (K+1)-th largest A of a
// row so far, no neuron with A < M - 2 e can be among its K + 1 largest by C: the epilogue rejects it by one compare,
// and appends the others to the row's list. A warp cuts a list before the next tile could overflow it: to those above M
// - 2 e, or, where ties leave too many, by canonical scores to the K + 1 largest. At the end every entry left is scored
// canonically, so winners, values and ties are those of the canonical scores bitwise, whatever the tensor cores' order
// of summation. Rows whose norms are not finite are scored canonically.
//
// Traffic: W once per block of samples (from L2 beyond the first), x once per part; lists of a few hundred keys stay in
// shared memory. Determinism: exact selection by unique keys. The neurons of a part are visited in ascending order:
// with relu, a neuron that is surely not positive loses every tie against the K + 1 before it.
#pragma once

#include "products.cuh"
#include "select.cuh"
#include "ssd/topk_linear_cuda.h"
#include "threshold_select.cuh"

namespace ssd::cuda {

constexpr int kScanThreads = 256, kScanWarps = kScanThreads / 32, kScanNeurons = 128, kScanDepth = 32, kScanStages = 2;
constexpr int kMergeThreads = 128;
constexpr float kNormFloor = 0x1p-50f;  // covers what underflows in squares and in low halves

template <class S>
constexpr int kScanPitch = sizeof(S) == 4 ? 36 : 40;  // multiples of 16 bytes that spread the banks

template <class S>
struct ScanTask {
  long long batch, inputs, neurons, x_stride, weight_stride, part_neurons;
  int keep, capacity, parts;
  const S *x, *weight, *bias;
  const float *x_scale, *weight_scale, *x_norms, *weight_norm_most;
  float slack;
  bool relu;
  uint64_t* lists;
};

template <class S, int kRows>
struct alignas(16) ScanShared {
  // Rows of x, then rows of W.
  Array<Array<S, (kRows + kScanNeurons) * kScanPitch<S>>, kScanStages> tile;
  Array<float, kRows> limit, spread;
  Array<unsigned, kRows> count;
  Array<CutState, kScanWarps> cut;
};

// 32 inputs of the block's samples and of 128 neurons. kWide: rows begin at multiples of 16 bytes, and so do their
// ends.
template <class S, int kRows, bool kWide>
SSD_DEVICE void fetch(const ScanTask<S>& p, Array<S, (kRows + kScanNeurons) * kScanPitch<S>>& tile, long long row,
                      long long neuron, long long end, long long input) {
  constexpr int kEach = kWide ? 16 / static_cast<int>(sizeof(S)) : 1, kChunks = kScanDepth / kEach;
  for (int i = static_cast<int>(threadIdx.x); i < (kRows + kScanNeurons) * kChunks; i += kScanThreads) {
    const int r = i / kChunks, d = i % kChunks * kEach;
    const bool of_x = r < kRows;
    const long long at = of_x ? row + r : neuron + r - kRows;
    const bool valid = at < (of_x ? p.batch : end) && input + d < p.inputs;
    const S* const from = of_x ? p.x + at * p.x_stride : p.weight + at * p.weight_stride;
    S* const to = &tile[r * kScanPitch<S> + d];
    if constexpr (kWide) {
      copy_async16(to, valid ? from + input + d : p.x, valid);
    } else {
      S value;
      from_acc(0.f, &value);
      *to = valid ? from[input + d] : value;
    }
  }
}

// The score before the activation.
template <class S>
SSD_DEVICE float scaled_score(const ScanTask<S>& p, float score, long long row, long long neuron) {
  if (p.x_scale) score = score * p.x_scale[row];
  if (p.weight_scale) score = score * p.weight_scale[neuron];
  return p.bias ? score + to_acc(p.bias[neuron]) : score;
}

// Replaces the scores of a row's list by canonical ones: one warp, an entry per half.
template <class S>
SSD_DEVICE void rescore(const ScanTask<S>& p, uint64_t* keys, int count, long long row) {
  const int lane = static_cast<int>(threadIdx.x) % 32, l = lane % 16;
  const S* const x = p.x + row * p.x_stride;
  for (int i = 0; i < count; i += 2) {
    const int entry = i + lane / 16;
    uint32_t neuron = 0;
    if (l == 0 && entry < count) neuron = key_neuron(keys[entry]);
    neuron = shuffle(neuron, lane & 16);
    const S* const w = p.weight + static_cast<long long>(neuron) * p.weight_stride;
    float sum = 0;
    for (long long d = l; d < p.inputs; d += 16) sum = fused(to_acc(x[d]), to_acc(w[d]), sum);
    sum = dot_tree(sum);
    if (l || entry >= count) continue;
    const float score = scaled_score(p, sum, row, neuron);
    keys[entry] = KeyOf<float>::make(p.relu && score <= 0 ? 0.f : score, neuron);
  }
  warp_sync();
}

// The score below which none can reach, given that K + 1 reach `reached`.
SSD_DEVICE float score_limit(float reached, float spread) {
  if (!(spread < INFINITY)) return -INFINITY;
  if (reached != reached) return INFINITY;  // K + 1 are NaN; infinities are kept beside them
  if (reached == INFINITY) return 3.402823466e38f;
  return reached - (2 * spread + 0x1p-21f * fabsf(reached));
}

SSD_DEVICE float score_of_bits(uint32_t top) { return KeyOf<float>::score(static_cast<uint64_t>(top) << 32); }

// Cuts a row's list so that another tile fits: one warp. The list is longer than p.keep. Returns its new length.
template <class S>
SSD_DEVICE int cut_row(const ScanTask<S>& p, CutState& s, uint64_t* keys, int count, long long row, float spread,
                       float* limit) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  uint64_t bound = find_bound<WarpGroup, 64, uint64_t>(s, keys, count, p.keep);
  uint32_t top = 0xffffffffu;
  for (int i = lane; i < count; i += 32)
    if (keys[i] >= bound && static_cast<uint32_t>(keys[i] >> 32) < top) top = static_cast<uint32_t>(keys[i] >> 32);
  float reach = score_limit(score_of_bits(reduce_min(top)), spread);
  bound = KeyOf<float>::make(reach, 0xffffffffu);
  unsigned kept = 0;
  for (int i = lane; i < count; i += 32) kept += keys[i] >= bound;
  kept = reduce_add(kept);
  warp_sync();
  if (static_cast<int>(kept) + kScanNeurons > p.capacity) {
    rescore(p, keys, count, row);
    bound = find_bound<WarpGroup, 64, uint64_t>(s, keys, count, p.keep);
    kept = static_cast<unsigned>(compact<WarpGroup, 64>(s, keys, count, bound, &top));
    reach = score_limit(score_of_bits(top), spread);
  } else {
    compact<WarpGroup, 64>(s, keys, count, bound, &top);
  }
  // Below -spread a score is surely 0 after relu, and its neuron comes after K + 1 that are no less.
  *limit = p.relu && reach < -spread ? -spread : reach;
  return static_cast<int>(kept);
}

// Long because the tile's sums stay in registers from the products to the survivors.
template <class S, int kRows, bool kWide>
SSD_KERNEL void SSD_LAUNCH_BOUNDS(kScanThreads, 1) topk_scan_kernel(ScanTask<S> p) {
  constexpr int kWarpsAcross = kRows == 64 ? 4 : 8, kWide8 = kScanNeurons / kWarpsAcross / 8;
  constexpr int kPitch = kScanPitch<S>;
  ScanShared<S, kRows>& s = shared_memory<ScanShared<S, kRows>>();
  uint64_t* const lists = reinterpret_cast<uint64_t*>(&s + 1);
  const int t = static_cast<int>(threadIdx.x), warp = t / 32, lane = t % 32, g = lane / 4, pair = lane % 4 * 2;
  const int top_row = warp / kWarpsAcross * 32, left = warp % kWarpsAcross * kWide8 * 8;
  const long long row = static_cast<long long>(blockIdx.x) * kRows, begin = blockIdx.y * p.part_neurons;
  const long long end = begin + p.part_neurons < p.neurons ? begin + p.part_neurons : p.neurons;
  if (t < kRows) {
    const float scale = row + t < p.batch && p.x_scale ? fabsf(p.x_scale[row + t]) : 1.f;
    s.spread[t] = row + t < p.batch ? p.slack * (p.x_norms[row + t] + kNormFloor) * scale * *p.weight_norm_most : 0.f;
    s.limit[t] = -INFINITY;
    s.count[t] = 0;
  }
  const long long steps = p.inputs > kScanDepth ? (p.inputs + kScanDepth - 1) / kScanDepth : 1;
  const long long all = (end - begin + kScanNeurons - 1) / kScanNeurons * steps;
  const auto fetch_step = [&](long long i) {
    if (i < all)
      fetch<S, kRows, kWide>(p, s.tile[static_cast<int>(i % kScanStages)], row, begin + i / steps * kScanNeurons, end,
                             i % steps * kScanDepth);
    copy_commit();
  };
  float sums[2][kWide8][4] = {};
  fetch_step(0);
  for (long long i = 0; i < all; ++i) {
    fetch_step(i + 1);
    copy_wait<1>();
    block_sync();
    const Array<S, (kRows + kScanNeurons) * kPitch>& tile = s.tile[static_cast<int>(i % kScanStages)];
    SSD_UNROLL
    for (int k = 0; k < kScanDepth; k += 16) {
      Operand a[2][4];
      SSD_UNROLL
      for (int m = 0; m < 2; ++m) SSD_UNROLL
      for (int e = 0; e < 4; ++e)
        a[m][e] = operand(&tile[(top_row + 16 * m + g + 8 * (e % 2)) * kPitch + k + pair + 8 * (e / 2)]);
      SSD_UNROLL
      for (int n = 0; n < kWide8; ++n) {
        Operand b[2];
        SSD_UNROLL
        for (int e = 0; e < 2; ++e) b[e] = operand(&tile[(kRows + left + 8 * n + g) * kPitch + k + pair + 8 * e]);
        SSD_UNROLL
        for (int m = 0; m < 2; ++m) multiply(sums[m][n], a[m], b, S());
      }
    }
    if ((i + 1) % steps) {
      block_sync();  // before the tile is fetched over
      continue;
    }
    const long long first = begin + i / steps * kScanNeurons;
    SSD_UNROLL
    for (int m = 0; m < 2; ++m) SSD_UNROLL
    for (int n = 0; n < kWide8; ++n) SSD_UNROLL
    for (int e = 0; e < 4; ++e) {
      const int r = top_row + 16 * m + g + 8 * (e / 2);
      const long long neuron = first + left + 8 * n + pair + e % 2;
      const float sum = sums[m][n][e];
      sums[m][n][e] = 0;
      if (row + r >= p.batch || neuron >= end) continue;
      const float score = scaled_score(p, sum, row + r, neuron);
      if (score < s.limit[r]) continue;  // NaN stays
      const unsigned place = atomic_add(&s.count[r], 1u);
      lists[r * p.capacity + static_cast<int>(place)] =
          KeyOf<float>::make(p.relu && score <= 0 ? 0.f : score, static_cast<uint32_t>(neuron));
    }
    block_sync();
    if (i + 1 < all) {
      for (int r = warp; r < kRows; r += kScanWarps) {
        const int count = static_cast<int>(s.count[r]);
        if (count + kScanNeurons <= p.capacity) continue;
        float limit;
        const int kept = cut_row(p, s.cut[warp], lists + r * p.capacity, count, row + r, s.spread[r], &limit);
        if (lane == 0) {
          s.count[r] = static_cast<unsigned>(kept);
          s.limit[r] = limit;
        }
      }
      block_sync();
    }
  }
  copy_wait<0>();
  for (int r = warp; r < kRows && row + r < p.batch; r += kScanWarps) {
    uint64_t* const keys = lists + r * p.capacity;
    int count = static_cast<int>(s.count[r]);
    if (count > p.keep) {  // most of them are no candidates: the preselection leaves few to be scored
      uint32_t top;
      uint64_t bound = find_bound<WarpGroup, 64, uint64_t>(s.cut[warp], keys, count, p.keep);
      top = 0xffffffffu;
      for (int i = lane; i < count; i += 32)
        if (keys[i] >= bound && static_cast<uint32_t>(keys[i] >> 32) < top) top = static_cast<uint32_t>(keys[i] >> 32);
      bound = KeyOf<float>::make(score_limit(score_of_bits(reduce_min(top)), s.spread[r]), 0xffffffffu);
      warp_sync();
      count = compact<WarpGroup, 64>(s.cut[warp], keys, count, bound, &top);
    }
    rescore(p, keys, count, row + r);
    if (count > p.keep) {
      cut_keys<WarpGroup, 64>(s.cut[warp], keys, count, p.keep);
      count = p.keep;
    }
    uint64_t* const to = p.lists + ((row + r) * p.parts + blockIdx.y) * p.keep;
    for (int i = lane; i < p.keep; i += 32) to[i] = i < count ? keys[i] : 0;  // no key is 0
  }
}

template <class S>
struct MergeTask {
  int parts, keep, k;
  bool inhibition;
  const uint64_t* lists;
  S* values;
  int32_t* indices;
  S* threshold;
};

// The lists of a row's parts to its winners: one block per row.
template <class S>
SSD_KERNEL void SSD_LAUNCH_BOUNDS(kMergeThreads, 8) topk_merge_kernel(MergeTask<S> p) {
  using Group = BlockGroup<kMergeThreads>;
  SelectShared<uint64_t>& s = shared_memory<SelectShared<uint64_t>>();
  uint64_t* const keys = reinterpret_cast<uint64_t*>(&s + 1);
  const long long row = blockIdx.x;
  const int count = p.parts * p.keep;
  for (int i = Group::rank(); i < count; i += kMergeThreads) keys[i] = p.lists[row * count + i];
  block_sync();
  if (count > p.keep) cut_keys<Group, 64>(s.cut, keys, count, p.keep);
  write_winners<Group, float>(keys, p.keep, p.k, p.inhibition, &s.threshold, p.values + row * p.k,
                              p.indices + row * p.k, p.threshold + row);
}

}  // namespace ssd::cuda

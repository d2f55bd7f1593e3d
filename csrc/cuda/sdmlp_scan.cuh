// The first kernel of a training step: which neurons may be active, for each sample of the batch a bit per neuron.
//
// A neuron is inactive for sure where its canonical score C <= g I, and I >= floor, the least canonical score now of
// the K + 1 neurons that won at the sample's last visit. So with A the score by tensor cores and e its bound
// (products.cuh; x and the rows of W have norm 1 within 1e-3), a neuron is left out where g >= 0 and A + e < g floor.
// The K + 1 largest are never left out: they have C >= I >= g floor.
//
// A block owns kRows samples and one part of the neurons, 128 at a time; 8 warps; x and W come through cp.async, the
// next step of 32 inputs under way while one is multiplied. Floors are nobody's: each block takes some while there are
// any, and all blocks wait for theirs at the end of their first tile; who took one is running, so nobody waits forever.
// Traffic: W once per kRows samples from L2, K + 1 rows of W per sample, W / 8 bytes of bits. Determinism: bits by
// comparisons with fixed numbers; candidates may differ with the order of a tensor core's sums, what comes of them not.
#pragma once

#include "products.cuh"
#include "ssd/sdmlp_engine_cuda.h"

namespace ssd::cuda {

constexpr int kBitsThreads = 256, kBitsWarps = kBitsThreads / 32, kBitsNeurons = 128, kBitsDepth = 32, kBitsStages = 2;
constexpr int kBitsPitch = 36;  // multiples of 16 bytes that spread the banks

template <int kRows>
struct alignas(16) BitsShared {
  Array<Array<float, (kRows + kBitsNeurons) * kBitsPitch>, kBitsStages> tile;  // rows of x, then rows of W
  Array<const float*, kRows> x;                                                // null: no sample
  Array<float, kRows> floor;
  Array<unsigned, kRows * kBitsNeurons / 32> bits;
  unsigned claim;
};

// Samples of the batch at the present position: none after a failure.
SSD_DEVICE long long samples_left(const SdmlpStep& p, const SdmlpSeed& seed) {
  const long long left = seed.numbers[kCount] - seed.numbers[kPosition];
  return seed.numbers[kFailure] ? 0 : left < p.batch ? left : p.batch;
}

SSD_DEVICE long long sample_of(const SdmlpSeed& seed, long long b) { return seed.order[seed.numbers[kPosition] + b]; }

// The canonical products of x with rows of W, one for each half of the warp; every lane gets its half's.
SSD_DEVICE float canonical_score(const SdmlpStep& p, const SdmlpSeed& seed, const float* x, long long neuron) {
  const float* const w = seed.weight + neuron * p.inputs;
  float sum = 0;
  for (long long d = threadIdx.x % 16; d < p.inputs; d += 16) sum = fused(x[d], w[d], sum);
  return dot_tree(sum);
}

// A lower bound of the sample's threshold: one warp.
SSD_DEVICE float floor_of(const SdmlpStep& p, const SdmlpSeed& seed, long long sample) {
  const int32_t* const likely = seed.likely + sample * (p.k + 1);
  if (likely[0] < 0) return -1.f;
  const int half = static_cast<int>(threadIdx.x) / 16 % 2;
  float least = INFINITY;
  for (long long i = 0; i <= p.k; i += 2) {
    const float score = canonical_score(p, seed, seed.x + sample * p.inputs, likely[i + half <= p.k ? i + half : p.k]);
    least = score >= least ? least : score;  // NaN stays
  }
  const float other = shuffle_xor(least, 16);
  least = other >= least ? least : other;
  return least >= 0 ? least : -1.f;
}

// Takes floors, 8 at a time, while any are left, and says when they are there.
template <int kRows>
SSD_DEVICE void take_floors(const SdmlpStep& p, const SdmlpSeed& seed, BitsShared<kRows>& s, long long samples) {
  const unsigned tick = seed.flags[kTick];
  for (;;) {
    if (threadIdx.x == 0) s.claim = atomic_add(&seed.flags[kClaims], static_cast<unsigned>(kBitsWarps));
    block_sync();
    const long long first = s.claim, b = first + threadIdx.x / 32;
    block_sync();  // it has been read
    if (first >= samples) return;
    if (b >= samples) continue;
    const float floor = floor_of(p, seed, sample_of(seed, b));
    if (threadIdx.x % 32 == 0) {
      seed.floors[b] = floor;
      store_release(&seed.ready[b], tick);
    }
  }
}

// 32 inputs of the block's samples and of 128 neurons. kWide: rows begin at multiples of 16 bytes, and D is one of 4.
template <int kRows, bool kWide>
SSD_DEVICE void fetch_bits(const SdmlpStep& p, const SdmlpSeed& seed, BitsShared<kRows>& s, int stage, long long neuron,
                           long long end, long long input) {
  constexpr int kEach = kWide ? 4 : 1, kChunks = kBitsDepth / kEach;
  for (int i = static_cast<int>(threadIdx.x); i < (kRows + kBitsNeurons) * kChunks; i += kBitsThreads) {
    const int r = i / kChunks, d = i % kChunks * kEach;
    const long long at = neuron + r - kRows;
    const float* const from = r < kRows ? s.x[r] : at < end ? seed.weight + at * p.inputs : nullptr;
    const bool valid = from && input + d < p.inputs;
    float* const to = &s.tile[stage][r * kBitsPitch + d];
    if constexpr (kWide) {
      copy_async16(to, valid ? from + input + d : seed.x, valid);
    } else {
      *to = valid ? from[input + d] : 0.f;
    }
  }
}

// Long because the tile's sums stay in registers from the products to the survivors.
template <int kRows, bool kWide>
SSD_KERNEL void SSD_LAUNCH_BOUNDS(kBitsThreads, 2)
    sdmlp_scan_kernel(SdmlpStep p, long long part_neurons, long long words, float spread) {
  constexpr int kWarpsAcross = kRows == 64 ? 4 : 8, kWide8 = kBitsNeurons / kWarpsAcross / 8,
                kWords = kBitsNeurons / 32;
  BitsShared<kRows>& s = shared_memory<BitsShared<kRows>>();
  const SdmlpSeed& seed = p.seeds[blockIdx.z];
  const int t = static_cast<int>(threadIdx.x), warp = t / 32, lane = t % 32, g = lane / 4, pair = lane % 4 * 2;
  const int top_row = warp / kWarpsAcross * 32, left = warp % kWarpsAcross * kWide8 * 8;
  const long long samples = samples_left(p, seed), row = static_cast<long long>(blockIdx.x) * kRows;
  const long long begin = blockIdx.y * part_neurons;
  const long long end = begin + part_neurons < p.neurons ? begin + part_neurons : p.neurons;
  if (row >= samples) return;
  if (t < kRows) s.x[t] = row + t < samples ? seed.x + sample_of(seed, row + t) * p.inputs : nullptr;
  for (int i = t; i < kRows * kWords; i += kBitsThreads) s.bits[i] = 0;
  block_sync();
  const long long steps = (p.inputs + kBitsDepth - 1) / kBitsDepth;
  const long long all = (end - begin + kBitsNeurons - 1) / kBitsNeurons * steps;
  const auto fetch_step = [&](long long i) {
    if (i < all)
      fetch_bits<kRows, kWide>(p, seed, s, static_cast<int>(i % kBitsStages), begin + i / steps * kBitsNeurons, end,
                               i % steps * kBitsDepth);
    copy_commit();
  };
  float sums[2][kWide8][4] = {};
  fetch_step(0);
  take_floors(p, seed, s, samples);
  for (long long i = 0; i < all; ++i) {
    fetch_step(i + 1);
    copy_wait<1>();
    block_sync();
    const Array<float, (kRows + kBitsNeurons) * kBitsPitch>& tile = s.tile[static_cast<int>(i % kBitsStages)];
    SSD_UNROLL
    for (int k = 0; k < kBitsDepth; k += 16) {
      Operand a[2][4];
      SSD_UNROLL
      for (int m = 0; m < 2; ++m) SSD_UNROLL
      for (int e = 0; e < 4; ++e)
        a[m][e] = operand(&tile[(top_row + 16 * m + g + 8 * (e % 2)) * kBitsPitch + k + pair + 8 * (e / 2)]);
      SSD_UNROLL
      for (int n = 0; n < kWide8; ++n) {
        Operand b[2];
        SSD_UNROLL
        for (int e = 0; e < 2; ++e) b[e] = operand(&tile[(kRows + left + 8 * n + g) * kBitsPitch + k + pair + 8 * e]);
        SSD_UNROLL
        for (int m = 0; m < 2; ++m) multiply(sums[m][n], a[m], b, float());
      }
    }
    if ((i + 1) % steps) {
      block_sync();  // before the tile is fetched over
      continue;
    }
    if (i + 1 == steps) {
      if (t < kRows && row + t < samples) {
        while (load_acquire(&seed.ready[row + t]) != seed.flags[kTick]) {
        }
        s.floor[t] = seed.floors[row + t];
      }
      block_sync();
    }
    const long long first = begin + i / steps * kBitsNeurons;
    SSD_UNROLL
    for (int m = 0; m < 2; ++m) SSD_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int r = top_row + 16 * m + g + 8 * half;
      unsigned found = 0;
      SSD_UNROLL
      for (int n = 0; n < kWide8; ++n) SSD_UNROLL
      for (int e = 0; e < 2; ++e) {
        const int column = left + 8 * n + pair + e;
        const float score = sums[m][n][2 * half + e];
        sums[m][n][2 * half + e] = 0;
        if (row + r >= samples || first + column >= end) continue;
        const float gaba = seed.gaba[first + column];
        // NaN stays.
        if (!(gaba >= 0 && score + spread < gaba * s.floor[r])) found |= 1u << column % 32;
      }
      found |= shuffle_xor(found, 1);
      found |= shuffle_xor(found, 2);
      if (pair == 0 && found) atomic_or(&s.bits[r * kWords + left / 32], found);
    }
    block_sync();
    for (int i2 = t; i2 < kRows * kWords; i2 += kBitsThreads) {
      const long long b = row + i2 / kWords, word = first / 32 + i2 % kWords;
      if (b < samples && word < words) seed.candidates[b * words + word] = s.bits[i2];
      s.bits[i2] = 0;
    }
    block_sync();
  }
  copy_wait<0>();
}

}  // namespace ssd::cuda

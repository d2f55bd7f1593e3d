// The last two kernels of a training step: gradients of the touched neurons with their squares; then clip, SGD, the
// projection and the counters. One warp a neuron, a block some words of 32 neurons.
//
// Gradients: dW_j = sum dh x, dV_j = sum h dy over the samples in which j is active, ascending, one multiply-add each;
// the samples are found by bits, h and dh by their place in the sample's list. With a penalty, its pull is added, and
// rows that it pulls though no sample touched them count too. The block that ends last adds up the squares, decides
// whether the step can be taken, and moves on to the next batch.
// Orders: sums over samples, squares of a row, and the row's update are those of the avx512 level of csrc/cpu, bitwise;
// rows are added in fp64 in a fixed tree. Traffic: per touched neuron its samples' rows of x, its gradient written and
// read, its row read and written; the bits of the batch once. No float atomics.
#pragma once

#include "block.cuh"
#include "sdmlp_scan.cuh"

namespace ssd::cuda {

constexpr int kMostBlockWords = 8, kStrip = 8;  // words of a block; columns of a lane at once

struct GradientShared {
  BlockShared block;
  Array<uint32_t, kMostBlockWords> touched;
  Array<double, 32 * kMostBlockWords> squares;
  unsigned last;
};

// The sum of take(d)^2 over d < size in the engine's order: four vectors of 16 lanes take turns, what is left of them
// goes to the first, the rest is added in fp64. One warp; every lane gets it.
template <class Take>
SSD_DEVICE double engine_squares(long long size, Take take) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const long long turns = size / 64 * 64, whole = size / 16 * 16;
  float low = 0, high = 0;  // vectors 0 and 1, 2 and 3
  for (long long d = lane; d < turns; d += 64) {
    const float first = take(d), second = take(d + 32);
    low = fused(first, first, low);
    high = fused(second, second, high);
  }
  for (long long d = turns + lane; d < whole && lane < 16; d += 16) {
    const float number = take(d);
    low = fused(number, number, low);
  }
  const float all = (low + shuffle_xor(low, 16)) + (high + shuffle_xor(high, 16));
  double total = dot_tree(all);
  for (long long d = whole; d < size; ++d) {
    const double number = take(d);
    total += number * number;
  }
  if (total < 1e30) return total;
  total = 0;  // squares have left fp32, or a number is not finite itself
  for (long long d = 0; d < size; ++d) {
    const double number = take(d);
    total += number * number;
  }
  return total;
}

// to[c] = sum of factor * rows[row of the sample][c] over the samples with `bit` in their word, plus pull(c). The words
// of a neuron stand `pitch` apart. One warp.
template <class Row, class Pull>
SSD_DEVICE void sum_rows(const SdmlpSeed& seed, const SdmlpStep& p, const uint32_t* bits, int pitch, int bit,
                         long long word, long long words, long long samples, const float* factors, const float* rows,
                         Row row_of, long long columns, float* to, Pull pull) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (long long first = 0; first < columns; first += 32 * kStrip) {
    float sums[kStrip] = {};
    for (long long begin = 0; begin < samples; begin += 32) {
      const long long b = begin + lane;
      const uint32_t own = b < samples ? bits[b * pitch] : 0;
      uint32_t found = ballot(own >> bit & 1);
      if (!found) continue;
      float factor = 0;
      long long row = 0;
      if (own >> bit & 1) {
        const int place = seed.before[b * words + word] + count_ones(own & ((1u << bit) - 1u));
        factor = factors[b * p.neurons + place];
        row = row_of(b);
      }
      for (; found; found &= found - 1) {
        const int from = 31 - leading_zeros(found & (0u - found));
        const float f = shuffle(factor, from);
        const float* const values = rows + shuffle(row, from) * columns;
        SSD_UNROLL
        for (int i = 0; i < kStrip; ++i) {
          const long long c = first + 32 * i + lane;
          if (c < columns) sums[i] = fused(f, values[c], sums[i]);
        }
      }
    }
    SSD_UNROLL
    for (int i = 0; i < kStrip; ++i) {
      const long long c = first + 32 * i + lane;
      if (c < columns) to[c] = pull(c, sums[i]);
    }
  }
}

// A gradient with that of coef importance (theta - anchor)^2.
SSD_DEVICE float pulled_gradient(float gradient, float value, float importance, float anchor, float coef) {
  return gradient + 2 * coef * importance * (value - anchor);
}

// Squares of both layers' gradients of a neuron that is touched, or pulled; writes the gradients. One warp.
SSD_DEVICE double neuron_gradient(const SdmlpStep& p, const SdmlpSeed& seed, const uint32_t* bits, int pitch, int bit,
                                  long long word, long long words, long long samples, bool touched) {
  const long long j = 32 * word + bit, padded = (p.classes + 15) / 16 * 16;
  float* const dw = seed.weight_grad + j * p.inputs;
  float* const dv = seed.output_grad + j * p.classes;
  const bool pulls = seed.pulled && seed.pulled[j];
  const auto weight_pull = [&](long long d, float sum) {
    const long long at = j * p.inputs + d;
    return pulls ? pulled_gradient(sum, seed.weight[at], seed.weight_importance[at], seed.weight_anchor[at], seed.coef)
                 : sum;
  };
  const auto output_pull = [&](long long c, float sum) {
    const long long at = j * p.classes + c;
    return pulls ? pulled_gradient(sum, seed.output[at], seed.output_importance[at], seed.output_anchor[at], seed.coef)
                 : sum;
  };
  const long long some = touched ? samples : 0;
  sum_rows(
      seed, p, bits, pitch, bit, word, words, some, seed.list_dh, seed.x,
      [&](long long b) { return sample_of(seed, b); }, p.inputs, dw, weight_pull);
  sum_rows(
      seed, p, bits, pitch, bit, word, words, some, seed.list_h, seed.logits_grad, [](long long b) { return b; },
      p.classes, dv, output_pull);
  warp_sync();  // rows are read by other lanes than wrote them
  const auto of_output = [&](long long c) { return c < p.classes ? dv[c] : 0.f; };
  if (!touched)
    return engine_squares(p.inputs + padded,
                          [&](long long d) { return d < p.inputs ? dw[d] : of_output(d - p.inputs); });
  return engine_squares(p.inputs, [&](long long d) { return dw[d]; }) + engine_squares(padded, of_output);
}

// Why the step cannot be taken, the first of the reasons that the CPU engine names.
SSD_DEVICE int failure_of(const SdmlpStep& p, const SdmlpSeed& seed, double loss, double norm, double speed,
                          long long samples, long long* sample) {
  *sample = -1;
  if (seed.flags[kBadSample] != 0xffffffffu) {
    *sample = seed.flags[kBadSample];
    return kScoreFailure;
  }
  for (long long b = 0; loss - loss != 0 && b < samples; ++b)
    for (int part = 0; part < (seed.targets ? 3 : 1); ++part) {
      const double own = seed.losses[part * p.batch + b];
      if (own - own == 0) continue;
      *sample = sample_of(seed, b);
      return kCrossEntropyFailure + part;
    }
  if (norm - norm != 0) return kNormFailure;
  return p.lr * speed <= 1e38 ? kNoFailure : kStepFailure;  // beyond, a weight may leave fp32
}

// The step's norm, its statistics, and whether it is taken: the block that came last.
SSD_DEVICE void finish_step(const SdmlpStep& p, const SdmlpSeed& seed, BlockShared& s, long long samples) {
  const int t = static_cast<int>(threadIdx.x);
  double sums[3] = {}, losses[3] = {}, active = 0;
  for (long long i = t; i < gridDim.x; i += kBlockThreads)
    for (int part = 0; part < 3; ++part) sums[part] += seed.partial[part * gridDim.x + i];
  for (long long b = t; b < samples; b += kBlockThreads) {
    for (int part = 0; part < (seed.targets ? 3 : 1); ++part) losses[part] += seed.losses[part * p.batch + b];
    active += seed.list_count[b];
  }
  for (int part = 0; part < 3; ++part) sums[part] = block_sum(s, sums[part]);
  for (int part = 0; part < 3; ++part) losses[part] = block_sum(s, losses[part]);
  active = block_sum(s, active);
  if (t) return;
  const double norm = sqrt(sums[0]), clipped = p.max_grad_norm / (norm + 1e-6), scale = clipped < 1 ? clipped : 1;
  const double speed = p.momentum * seed.totals[kSpeed] + scale * norm;
  long long sample;
  const int failure = failure_of(p, seed, losses[0] + losses[1] + losses[2], norm, speed, samples, &sample);
  seed.numbers[kFailure] = failure;
  seed.numbers[kFailedSample] = sample;
  seed.numbers[kGo] = failure == kNoFailure;
  seed.flags[kFinished] = 0;
  seed.flags[kBadSample] = 0xffffffffu;
  seed.flags[kTick] = seed.flags[kTick] + 1;
  if (failure != kNoFailure) return;
  seed.numbers[kPosition] += samples;
  seed.numbers[kSteps] += 1;
  double* const totals = seed.totals;
  for (int part = 0; part < 3; ++part) totals[kCe + part] += losses[part];
  totals[kActiveSum] += active;
  totals[kNormSum] += norm;
  totals[kTouchedSum] += sums[1];
  totals[kScale] = scale;
  if (seed.weight_velocity) totals[kSpeed] = speed;
}

// block_words: how many words of 32 neurons a block has, up to kMostBlockWords.
SSD_KERNEL void SSD_LAUNCH_BOUNDS(kBlockThreads, 2)
    sdmlp_gradient_kernel(SdmlpStep p, long long words, int block_words) {
  GradientShared& s = shared_memory<GradientShared>();
  uint32_t* const bits = reinterpret_cast<uint32_t*>(&s + 1);  // (batch, block_words)
  const SdmlpSeed& seed = p.seeds[blockIdx.z];
  const int t = static_cast<int>(threadIdx.x), warp = t / 32;
  const long long samples = samples_left(p, seed), first = static_cast<long long>(blockIdx.x) * block_words;
  if (samples <= 0) {
    if (blockIdx.x == 0 && t == 0) seed.numbers[kGo] = 0;
    return;
  }
  const int here = static_cast<int>(words - first < block_words ? words - first : block_words);
  if (t < kMostBlockWords) s.touched[t] = 0;
  for (int i = t; i < 32 * kMostBlockWords; i += kBlockThreads) s.squares[i] = 0;
  block_sync();
  for (int i = t; i < samples * here; i += kBlockThreads) {
    const uint32_t word = seed.active_words[i / here * words + first + i % here];
    bits[i] = word;
    if (word) atomic_or(&s.touched[i % here], word);
  }
  block_sync();
  int turn = 0;
  for (int i = 0; i < 32 * here; ++i) {
    const long long j = 32 * first + i;
    if (j >= p.neurons) break;
    const bool touched = s.touched[i / 32] >> i % 32 & 1;
    if (!touched && !(seed.pulled && seed.pulled[j])) continue;
    if (turn++ % kBlockWarps != warp) continue;
    const double squares =
        neuron_gradient(p, seed, bits + i / 32, here, i % 32, first + i / 32, words, samples, touched);
    if (t % 32 == 0) s.squares[i] = squares;
  }
  int pairs = 0, neurons = 0, ignored;
  if (t < 32 * here && 32 * first + t < p.neurons) {
    for (long long b = 0; b < samples; ++b) pairs += bits[b * here + t / 32] >> t % 32 & 1;
    seed.active[32 * first + t] = pairs;
  }
  block_before(s.block, pairs > 0, &neurons);
  block_before(s.block, pairs, &ignored);
  if (t == 0) {
    double total = 0;
    for (int i = 0; i < 32 * here; ++i) total += s.squares[i];
    seed.partial[blockIdx.x] = total;
    seed.partial[gridDim.x + blockIdx.x] = neurons;
    seed.partial[2 * gridDim.x + blockIdx.x] = ignored;
    s.last = add_acq_rel(&seed.flags[kFinished], 1u) == gridDim.x - 1;
  }
  block_sync();
  if (s.last) finish_step(p, seed, s.block, samples);
}

// velocity = momentum velocity + scale gradient, where there is a gradient; whether any of it is not 0. One warp.
SSD_DEVICE bool accelerate(float* velocity, const float* gradient, float momentum, float scale, long long size) {
  bool moving = false;
  for (long long d = threadIdx.x % 32; d < size; d += 32) {
    float fresh = momentum * velocity[d];
    if (gradient) fresh = fresh + scale * gradient[d];
    velocity[d] = fresh;
    moving = moving || fresh != 0;
  }
  warp_sync();
  return ballot(moving) != 0;
}

// w - step * gradient, clamped at 0, divided by its norm: the engine's order of squares. One warp.
SSD_DEVICE void step_row(float* row, const float* gradient, float step, long long inputs) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto fresh = [&](long long d) {
    const float value = fused(-step, gradient[d], row[d]);
    return value < 0 ? 0.f : value;  // NaN stays
  };
  float sum = 0;
  for (long long d = lane; d < inputs; d += 32) {
    const float value = fresh(d);
    sum = fused(value, value, sum);
  }
  double squares = dot_tree(sum + shuffle_xor(sum, 16));
  if (!(squares > 1e-30 && squares < 1e30)) {  // they may have left fp32
    squares = 0;
    for (long long d = 0; d < inputs; ++d) {
      const double value = static_cast<double>(row[d]) - static_cast<double>(step) * static_cast<double>(gradient[d]);
      const double kept = value < 0 ? 0.0 : value;
      squares = squares + kept * kept;
    }
  }
  const double norm = sqrt(squares);
  const float inverse = static_cast<float>(1 / (norm < 1.2e-38 ? 1.2e-38 : norm));
  warp_sync();  // every lane has read the old row, in the fp64 sum all of it
  for (long long d = lane; d < inputs; d += 32) row[d] = fresh(d) * inverse;
}

// The step of the neurons that a sample touched, the penalty pulls or momentum moves on.
SSD_KERNEL void SSD_LAUNCH_BOUNDS(kBlockThreads, 4) sdmlp_update_kernel(SdmlpStep p) {
  const SdmlpSeed& seed = p.seeds[blockIdx.z];
  const long long j = static_cast<long long>(blockIdx.x) * kBlockWarps + threadIdx.x / 32;
  if (j >= p.neurons || !seed.numbers[kGo]) return;  // whole warps
  const int lane = static_cast<int>(threadIdx.x) % 32, active = seed.active[j];
  const bool fresh = active > 0 || (seed.pulled && seed.pulled[j]);
  if (!fresh && !(seed.weight_velocity && seed.in_motion[j])) return;
  const float scale = static_cast<float>(seed.totals[kScale]);
  float step = p.lr * scale;
  const float* dw = seed.weight_grad + j * p.inputs;
  const float* dv = seed.output_grad + j * p.classes;
  if (seed.weight_velocity) {
    float* const weight_velocity = seed.weight_velocity + j * p.inputs;
    float* const output_velocity = seed.output_velocity + j * p.classes;
    bool moving = accelerate(weight_velocity, fresh ? dw : nullptr, p.momentum, scale, p.inputs);
    moving = accelerate(output_velocity, fresh ? dv : nullptr, p.momentum, scale, p.classes) || moving;
    if (lane == 0) seed.in_motion[j] = moving;
    dw = weight_velocity;
    dv = output_velocity;
    step = p.lr;
  }
  step_row(seed.weight + j * p.inputs, dw, step, p.inputs);
  for (long long c = lane; c < p.classes; c += 32) {
    float* const v = seed.output + j * p.classes + c;
    const float value = fused(-step, dv[c], *v);
    *v = value < 0 ? 0.f : value;
  }
  if (lane || active == 0) return;
  const int64_t count = seed.counts[j] + active;
  seed.counts[j] = count;
  if (!(p.gaba_switch > 0)) return;
  const double g = -1.0 + 2.0 * static_cast<double>(count) / p.gaba_switch;
  seed.gaba[j] = static_cast<float>(g > 1.0 ? 1.0 : g < -1.0 ? -1.0 : g);
}

// How often each neuron is active in the batch, for infer; the batch is done then.
SSD_KERNEL void SSD_LAUNCH_BOUNDS(kBlockThreads, 4) sdmlp_frequency_kernel(SdmlpStep p, long long words) {
  const SdmlpSeed& seed = p.seeds[blockIdx.z];
  const long long samples = samples_left(p, seed), j = static_cast<long long>(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (samples > 0 && j < p.neurons && seed.frequencies) {
    int active = 0;
    for (long long b = 0; b < samples; ++b) active += seed.active_words[b * words + j / 32] >> j % 32 & 1;
    seed.frequencies[j] += active;
  }
}

// Moves on after an inference: alone, when every block of the others has read the position.
SSD_KERNEL void SSD_LAUNCH_BOUNDS(32, 1) sdmlp_advance_kernel(SdmlpStep p) {
  const SdmlpSeed& seed = p.seeds[blockIdx.z];
  if (threadIdx.x) return;
  const long long samples = samples_left(p, seed);
  if (seed.flags[kBadSample] != 0xffffffffu) {
    seed.numbers[kFailure] = kScoreFailure;
    seed.numbers[kFailedSample] = seed.flags[kBadSample];
    seed.flags[kBadSample] = 0xffffffffu;
  }
  seed.flags[kTick] = seed.flags[kTick] + 1;
  seed.numbers[kPosition] += samples > 0 ? samples : 0;
}

}  // namespace ssd::cuda

// The second kernel of a training step: one sample's winners, outputs, losses and their gradients. One block a sample.
//
// Its candidates, in ascending order, are scored canonically; I is the (K+1)-th largest score; h = a - g I > 0 are the
// active neurons. Then y = V h, cross-entropy, logit and hidden distillation (arXiv 2512.15267, Eq. 4 to 6), dy and dh.
// Lists stay in shared memory up to kShortList neurons, else in the caller's scratch: the same code over pointers.
// Scores, h, I, y and V dy are in the order of the avx512 level of csrc/cpu, bitwise; sums of exponentials are fp64
// trees. Traffic: a row of W per candidate, of V per active neuron, from L2; the sample's bits.
// Chains: 2 barriers a pass over the list, D / 16 multiply-adds a candidate and 16 candidates at a time, one
// multiply-add per active neuron for y, C of them for dh.
#pragma once

#include "block.cuh"
#include "sdmlp_scan.cuh"
#include "select.cuh"

namespace ssd::cuda {

constexpr int kShortList = 1024, kOutputStage = 4096, kOutputClasses = 64;

struct SampleShared {
  CutState cut;
  BlockShared block;
  unsigned least, bad, kept;
  Array<int32_t, kShortList> index;
  Array<float, kShortList> h, dh;
  Array<float, kOutputStage> stage;  // rows of V, then dy
};

// A sample's neurons, ascending; h are scores at first.
struct SampleList {
  int32_t* index;
  float *h, *dh;
  int count;
  SSD_DEVICE uint64_t operator[](int i) const { return KeyOf<float>::make(h[i], static_cast<uint32_t>(index[i])); }
};

// exp(x) = 2^k exp(r), |r| <= ln 2 / 2, the polynomial of the CPU engine: plain arithmetic, so the same bits.
SSD_DEVICE double polynomial_exp(double x) {
  constexpr double kLog2E = 1.4426950408889634, kLn2Hi = 0.693147180369123816490, kLn2Lo = 1.90821492927058770002e-10;
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
  if (x != x) return x;
  const double v = x < -708.0 ? -708.0 : x > 709.0 ? 709.0 : x;
  const double shifted = v * kLog2E + kRound, k = shifted - kRound, r = (v - k * kLn2Hi) - k * kLn2Lo;
  double p = 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  return p * bits_double((double_bits(shifted) + 1023) << 52);  // the low bits of `shifted` hold k
}

// The place of a neuron in an ascending list, -1 where it is not there.
SSD_DEVICE long long place_of(const int32_t* list, long long begin, long long end, int32_t neuron) {
  const long long last = end;
  while (begin < end) {
    const long long middle = (begin + end) / 2;
    if (list[middle] < neuron) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin < last && list[begin] == neuron ? begin : -1;
}

// The neurons of the sample's bits, ascending, in shared memory where they fit.
SSD_DEVICE SampleList read_candidates(const SdmlpStep& p, const SdmlpSeed& seed, SampleShared& s, long long b,
                                      long long words) {
  const uint32_t* const bits = seed.candidates + b * words;
  int own = 0, total, base = 0;
  for (long long w = threadIdx.x; w < words; w += kBlockThreads) own += count_ones(bits[w]);
  block_before(s.block, own, &total);
  SampleList list = {&s.index[0], &s.h[0], &s.dh[0], total};
  if (total > kShortList)
    list = {seed.list_index + b * p.neurons, seed.list_h + b * p.neurons, seed.list_dh + b * p.neurons, total};
  for (long long first = 0; first < words; first += kBlockThreads) {
    const long long w = first + threadIdx.x;
    uint32_t rest = w < words ? bits[w] : 0;
    int inside, at = base + block_before(s.block, count_ones(rest), &inside);
    for (; rest; rest &= rest - 1)
      list.index[at++] = static_cast<int32_t>(32 * w + 31 - leading_zeros(rest & (0u - rest)));
    base += inside;
  }
  block_sync();
  return list;
}

// Canonical activations of the list; the threshold; what will be likely at the next visit. NaN gives an empty list.
SSD_DEVICE float select_sample(const SdmlpStep& p, const SdmlpSeed& seed, SampleShared& s, SampleList& list,
                               long long sample) {
  const int t = static_cast<int>(threadIdx.x), half = t / 16;
  if (t == 0) {
    s.least = 0xffffffffu;
    s.bad = s.kept = 0;
  }
  block_sync();
  for (int i = half / 2 * 2; i < list.count; i += 2 * kBlockWarps) {  // whole warps
    const int own = i + half % 2 < list.count ? i + half % 2 : i;
    const float score = canonical_score(p, seed, seed.x + sample * p.inputs, list.index[own]);
    if (t % 16 || i + half % 2 != own) continue;
    list.h[own] = score > 0 ? score : 0.f;
    if (!(score >= 0)) atomic_or(&s.bad, 1u);  // inputs and weights are not negative: this is NaN
  }
  block_sync();
  if (s.bad) {
    if (t == 0) atomic_min(&seed.flags[kBadSample], static_cast<uint32_t>(sample));
    list.count = 0;
    return 0.f;
  }
  const int keep = static_cast<int>(p.k) + 1;
  const uint64_t bound = find_bound<BlockGroup<kBlockThreads>, 64, uint64_t>(s.cut, list, list.count, keep);
  unsigned least = 0xffffffffu;
  for (int i = t; i < list.count; i += kBlockThreads) {
    const uint64_t key = list[i];
    if (key < bound) continue;
    const unsigned top = static_cast<unsigned>(key >> 32);
    least = top < least ? top : least;
    const unsigned place = atomic_add(&s.kept, 1u);
    // Another block may write the same set: a sample may stand in a batch twice.
    atomic_exchange(seed.likely + sample * keep + place, list.index[i]);
  }
  atomic_min(&s.least, least);
  block_sync();
  return KeyOf<float>::score(static_cast<uint64_t>(s.least) << 32);
}

// Keeps the active neurons of the list, in order, with h = a - g I.
SSD_DEVICE void activate(const SdmlpSeed& seed, SampleShared& s, SampleList& list, float threshold) {
  int kept = 0;
  for (int first = 0; first < list.count; first += kBlockThreads) {
    const int i = first + static_cast<int>(threadIdx.x);
    int32_t neuron = 0;
    float h = 0;
    if (i < list.count) {
      neuron = list.index[i];
      const float inhibition = seed.gaba[neuron] * threshold;
      h = list.h[i] - inhibition;
    }
    int inside;
    const int place = kept + block_before(s.block, h > 0, &inside);  // its barriers part reading from writing
    if (h > 0) {
      list.index[place] = neuron;
      list.h[place] = h;
    }
    kept += inside;
  }
  list.count = kept;
  block_sync();
}

// The active neurons as bits, and how many stand before each word: where a neuron's h is in the list.
SSD_DEVICE void write_bits(const SdmlpSeed& seed, SampleShared& s, const SampleList& list, long long b,
                           long long words) {
  uint32_t* const bits = seed.active_words + b * words;
  for (long long w = threadIdx.x; w < words; w += kBlockThreads) bits[w] = 0;
  block_sync();
  for (int i = static_cast<int>(threadIdx.x); i < list.count; i += kBlockThreads)
    atomic_or(bits + list.index[i] / 32, 1u << list.index[i] % 32);
  block_sync();
  int base = 0;
  for (long long first = 0; first < words; first += kBlockThreads) {
    const long long w = first + threadIdx.x;
    int inside;
    const int before = base + block_before(s.block, w < words ? count_ones(bits[w]) : 0, &inside);
    if (w < words) seed.before[b * words + w] = before;
    base += inside;
  }
}

// y = V h: a thread a class, neurons ascending; rows of V come through shared memory.
SSD_DEVICE void outputs(const SdmlpStep& p, const SdmlpSeed& seed, SampleShared& s, const SampleList& list,
                        float* logits) {
  const int t = static_cast<int>(threadIdx.x);
  for (long long first = 0; first < p.classes; first += kOutputClasses) {
    const int width = static_cast<int>(p.classes - first < kOutputClasses ? p.classes - first : kOutputClasses);
    const int rows = kOutputStage / width;
    float sum = 0;
    for (int begin = 0; begin < list.count; begin += rows) {
      const int n = list.count - begin < rows ? list.count - begin : rows;
      for (int i = t; i < n * width; i += kBlockThreads)
        s.stage[i] = seed.output[list.index[begin + i / width] * p.classes + first + i % width];
      block_sync();
      if (t < width)
        for (int r = 0; r < n; ++r) sum = fused(list.h[begin + r], s.stage[r * width + t], sum);
      block_sync();
    }
    if (t < width) logits[first + t] = sum;
  }
  block_sync();
}

// Cross-entropy and logit distillation from the logits; their gradient goes to `gradient`.
SSD_DEVICE void logit_losses(const SdmlpStep& p, const SdmlpSeed& seed, SampleShared& s, const float* logits,
                             float* gradient, long long b, long long sample, long long samples) {
  const int t = static_cast<int>(threadIdx.x);
  const bool teacher = seed.targets != nullptr;
  const double inverse_t = 1.0 / p.temperature;
  const double* const q = teacher ? seed.targets + sample * p.classes : nullptr;  // log q where the KL is reversed
  double own = -INFINITY;
  for (long long c = t; c < p.classes; c += kBlockThreads) {
    const double logit = logits[c];
    own = logit != logit || logit > own ? logit : own;
  }
  const double highest = block_max(s.block, own);
  double total = 0, soft_total = 0, cross = 0;
  for (long long c = t; c < p.classes; c += kBlockThreads) {
    const double z = logits[c] - highest;
    total += polynomial_exp(z);
    if (!teacher) continue;
    soft_total += polynomial_exp(z * inverse_t);
    if (!p.reverse_kl) cross += q[c] * (z * inverse_t);
  }
  total = block_sum(s.block, total);
  const long long label = seed.y[sample];
  const double scale = (teacher ? p.alpha : 1.0) / static_cast<double>(samples), inverse = 1.0 / total;
  double kd = 0, soft_inverse = 0, log_soft = 0, kl = 0;
  if (teacher) {
    soft_total = block_sum(s.block, soft_total);
    log_soft = log(soft_total);
    soft_inverse = 1.0 / soft_total;
    kd = (1 - p.alpha) * (1 - p.lam) * p.temperature / static_cast<double>(samples);
    if (p.reverse_kl)
      for (long long c = t; c < p.classes; c += kBlockThreads) {
        const double z = (logits[c] - highest) * inverse_t;
        cross += polynomial_exp(z) * soft_inverse * (z - log_soft - q[c]);
      }
    cross = block_sum(s.block, cross);
    kl = p.reverse_kl ? cross : seed.neg_entropy[sample] - (cross - log_soft);
  }
  for (long long c = t; c < p.classes; c += kBlockThreads) {
    const double z = logits[c] - highest;
    double slope = scale * (polynomial_exp(z) * inverse - (c == label));
    if (teacher) {
      const double soft = polynomial_exp(z * inverse_t) * soft_inverse;
      slope += p.reverse_kl ? kd * soft * (z * inverse_t - log_soft - q[c] - kl) : kd * (soft - q[c]);
    }
    gradient[c] = static_cast<float>(slope);
  }
  if (t == 0) {
    seed.losses[b] = log(total) - (logits[label] - highest);
    if (teacher) seed.losses[2 * p.batch + b] = p.temperature * p.temperature * kl;
  }
  block_sync();
}

// Hidden distillation over the union of the student's and the teacher's active units, and its gradient, added to dh.
// All other units hold exp(0) in both: log Z = log n + log1p(sum expm1(h / T) / n); where exp would overflow, the
// largest h / T is taken out of the sum.
SSD_DEVICE void hidden_loss(const SdmlpStep& p, const SdmlpSeed& seed, SampleShared& s, const SampleList& list,
                            long long b, long long sample, long long samples) {
  const int t = static_cast<int>(threadIdx.x);
  const double inverse_t = 1.0 / p.temperature, units = static_cast<double>(seed.units);
  double sum = 0, own = 0;
  for (int i = t; i < list.count; i += kBlockThreads) {
    if (!seed.in_units[list.index[i]]) continue;
    const double z = list.h[i] * inverse_t;
    sum += expm1(z);
    own = z > own ? z : own;
  }
  const double largest = block_max(s.block, own);
  const bool large = largest > 600;
  if (large) {
    sum = 0;
    for (int i = t; i < list.count; i += kBlockThreads)
      if (seed.in_units[list.index[i]]) sum += exp(list.h[i] * inverse_t - largest) - exp(-largest);
  }
  sum = block_sum(s.block, sum);
  const double log_student = large ? largest + log(units * exp(-largest) + sum) : log(units) + log1p(sum / units);
  const double z_student = large ? exp(log_student) : units + sum;
  const double log_teacher = seed.hidden_log_z[sample], silent = exp(-log_teacher);
  const long long begin = seed.offsets[sample], end = seed.offsets[sample + 1];
  const double scale = (1 - p.alpha) * p.lam / static_cast<double>(samples) * p.temperature;
  double cross = 0, kl = 0;  // forward: sum q (w - z); reverse: sum p (z - w)
  for (int pass = 0; pass < (p.reverse_kl ? 2 : 1); ++pass) {
    for (int i = t; i < list.count; i += kBlockThreads) {
      const int32_t neuron = list.index[i];
      if (!seed.in_units[neuron]) continue;
      const double z = list.h[i] * inverse_t, share = large ? exp(z - log_student) : exp(z) / z_student;
      const long long place = place_of(seed.indices, begin, end, neuron);
      const double w = place < 0 ? 0 : seed.values[place] * inverse_t, q = place < 0 ? silent : exp(w - log_teacher);
      if (!p.reverse_kl) {
        cross += q * (w - z);
        list.dh[i] += static_cast<float>(scale * (share - q));
      } else if (pass == 0) {
        cross += share * (z - w);
      } else {
        list.dh[i] += static_cast<float>(scale * share * ((z - log_student) - (w - log_teacher) - kl));
      }
    }
    if (pass) break;
    for (long long i = begin + t; i < end; i += kBlockThreads) {
      if (place_of(list.index, 0, list.count, seed.indices[i]) >= 0) continue;
      const double w = seed.values[i] * inverse_t;  // the student is silent here: z = 0
      cross += p.reverse_kl ? -w / z_student : exp(w - log_teacher) * w;
    }
    cross = block_sum(s.block, cross);
    kl = p.reverse_kl ? cross + log_teacher - log_student : cross + log_student - log_teacher;
  }
  if (t == 0) seed.losses[p.batch + b] = p.temperature * p.temperature * kl;
}

// kTrain: losses and gradients, h and dh for the next kernel. Else the lists themselves.
template <bool kTrain>
SSD_KERNEL void SSD_LAUNCH_BOUNDS(kBlockThreads, 2) sdmlp_sample_kernel(SdmlpStep p, long long words) {
  SampleShared& s = shared_memory<SampleShared>();
  const SdmlpSeed& seed = p.seeds[blockIdx.z];
  const int t = static_cast<int>(threadIdx.x);
  const long long samples = samples_left(p, seed), b = blockIdx.x;
  if (b >= samples) return;
  if (b == 0 && t == 0) seed.flags[kClaims] = 0;
  const long long sample = sample_of(seed, b);
  SampleList list = read_candidates(p, seed, s, b, words);
  const float threshold = select_sample(p, seed, s, list, sample);
  activate(seed, s, list, threshold);
  write_bits(seed, s, list, b, words);
  float* const logits = seed.logits + b * p.classes;
  outputs(p, seed, s, list, logits);
  if (t == 0) seed.list_count[b] = list.count;
  if (kTrain) {
    float* const kept = seed.logits_grad + b * p.classes;
    float* const gradient = p.classes <= kOutputStage ? &s.stage[0] : kept;
    logit_losses(p, seed, s, logits, gradient, b, sample, samples);
    for (int i = t; i < list.count; i += kBlockThreads) {
      const float* const v = seed.output + list.index[i] * p.classes;
      float sum = 0;
      for (long long c = 0; c < p.classes; ++c) sum = fused(gradient[c], v[c], sum);
      list.dh[i] = sum;
    }
    if (seed.targets) hidden_loss(p, seed, s, list, b, sample, samples);
    for (long long c = t; c < p.classes && gradient != kept; c += kBlockThreads) kept[c] = gradient[c];
  }
  if (list.h != &s.h[0]) return;
  for (int i = t; i < list.count; i += kBlockThreads) {
    seed.list_h[b * p.neurons + i] = list.h[i];
    if (kTrain) seed.list_dh[b * p.neurons + i] = list.dh[i];
    if (!kTrain) seed.list_index[b * p.neurons + i] = list.index[i];
  }
}

}  // namespace ssd::cuda

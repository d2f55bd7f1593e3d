// A layer whose rows a test moves by hand, its certificates, and the truth: all neurons scored. Every certificate that
// is given is compared with the truth.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "check.h"
#include "engine/certificates/certificates.h"

namespace ssd::test {

// The kernels of a level, whose scores a test may falsify: real data never err by as much as the bound allows.
struct Rounding {
  static inline cpu::SdmlpKernels real;
  static inline std::function<double(int64_t neuron)> error;  // added to a neuron's score; empty: none

  static void score_rows(const float* x, const float* w, const int32_t* index, int n, int64_t inputs, float* scores) {
    real.score_rows(x, w, index, n, inputs, scores);
    if (error)
      for (int i = 0; i < n; ++i) scores[i] = static_cast<float>(scores[i] + error(index[i]));
  }
  static const cpu::SdmlpKernels& kernels(cpu::SimdLevel level) {
    static cpu::SdmlpKernels falsified;
    real = falsified = cpu::sdmlp_kernels(level);
    falsified.score_rows = score_rows;
    return falsified;
  }
};

struct Layer {
  const int64_t R, D, N;
  const int K;
  const cpu::SdmlpKernels& kernel;
  cpu::Certificates certificates;
  std::vector<float> x, weight, era, gaba;
  std::vector<int32_t> likely;
  cpu::ScratchRow scratch;
  int64_t certified = 0, refused = 0;

  Layer(cpu::SimdLevel level, int64_t neurons, int64_t inputs, int64_t samples, int k)
      : R(neurons),
        D(inputs),
        N(samples),
        K(k),
        kernel(Rounding::kernels(level)),
        x(N * D),
        weight(R * D),
        gaba(R, 1.f),
        likely(N * (K + 1)) {
    Rounding::error = nullptr;
    certificates.configure(R, D, K, 1 << 30, kernel);
  }

  // Inputs, weights and coefficients are set: time begins.
  void begin() {
    certificates.set_gaba(gaba);
    certificates.bind(x.data(), N, likely.data());
    begin_epoch();
  }
  void begin_epoch() {
    if (certificates.begin_epoch(K) || era.empty()) era = weight;
  }
  void next_era() {
    certificates.step_done(N);
    begin_epoch();
  }
  void snapshot() { certificates.take_snapshot(); }

  // The row is where the test has put it.
  void moved(int64_t j, cpu::Certificates::Delta* delta) {
    double square = 0;
    for (int64_t d = 0; d < D; ++d) {
      const double change = static_cast<double>(weight[j * D + d]) - era[j * D + d];
      square += change * change;
    }
    certificates.moved(j, std::sqrt(square) * (1 + 1e-15), gaba[j], delta);
  }
  void moved(const std::vector<int64_t>& neurons) {
    cpu::Certificates::Delta delta;
    for (const int64_t j : neurons) moved(j, &delta);
    certificates.merge(delta);
    certificates.step_done(0);
  }
  // Row j becomes length * x of a sample: then its score is the length, and a change of it is the row's movement.
  void place(int64_t j, int64_t sample, double length) {
    for (int64_t d = 0; d < D; ++d) weight[j * D + d] = static_cast<float>(length * x[sample * D + d]);
  }

  std::vector<float> scores(int64_t sample) const {
    std::vector<int32_t> all(R);
    for (int64_t j = 0; j < R; ++j) all[j] = static_cast<int32_t>(j);
    std::vector<float> values(R);
    kernel.score_rows(&x[sample * D], weight.data(), all.data(), static_cast<int>(R), D, values.data());
    return values;
  }
  float threshold_of(std::vector<float> values) const {
    std::nth_element(values.begin(), values.begin() + K, values.end(), std::greater<float>());
    return values[K];
  }
  bool active(int64_t j, float score, float threshold) const { return score - gaba[j] * threshold > 0; }

  // What a scan does: the survivors against g I - gap, and the likely winners.
  void scan(int64_t sample) {
    const std::vector<float> values = scores(sample);
    const float threshold = threshold_of(values), gap = certificates.gap();
    std::vector<int32_t> index;
    std::vector<float> score;
    for (int64_t j = 0; j < R; ++j) {
      if (values[j] <= gaba[j] * threshold - gap && gaba[j] >= 0) continue;
      index.push_back(static_cast<int32_t>(j));
      score.push_back(values[j]);
    }
    int32_t* hints = &likely[sample * (K + 1)];
    int found = 0;
    for (int64_t j = 0; j < R; ++j)
      if (values[j] > threshold) hints[found++] = static_cast<int32_t>(j);
    for (int64_t j = 0; j < R && found <= K; ++j)
      if (values[j] == threshold) hints[found++] = static_cast<int32_t>(j);
    certificates.record(sample, {index.data(), score.data(), static_cast<int>(index.size()), threshold}, scratch);
  }

  // True when there is a certificate, which must say what is true.
  bool certify(int64_t sample) {
    int count = 0;
    float threshold = 0;
    if (!certificates.certify(sample, &x[sample * D], weight.data(), scratch, &count, &threshold)) {
      ++refused;
      return false;
    }
    ++certified;
    const std::vector<float> values = scores(sample);
    const float expected = threshold_of(values);
    CHECK(threshold == expected, "sample %d: threshold %a, should be %a", static_cast<int>(sample),
          static_cast<double>(threshold), static_cast<double>(expected));
    std::vector<char> listed(R);
    for (int i = 0; i < count; ++i) {
      const int32_t j = scratch.index[i];
      CHECK(!listed[j], "neuron %d is listed twice", j);
      CHECK(scratch.score[i] == values[j]);
      listed[j] = 1;
    }
    for (int64_t j = 0; j < R; ++j)
      CHECK(listed[j] || !active(j, values[j], expected), "sample %d: neuron %d is active and was dismissed: %a, %a",
            static_cast<int>(sample), static_cast<int>(j), static_cast<double>(values[j]),
            static_cast<double>(expected));
    return true;
  }
};

}  // namespace ssd::test

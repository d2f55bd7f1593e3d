// sdmlp_trainer.h: the same bits for any number of threads and with or without certificates, through the all-active
// phase, the switch and the sparse phase. Under TSan this is the test of the engine's threads.
#include "ssd/sdmlp_trainer.h"

#include <cmath>
#include <vector>

#include "check.h"

using namespace ssd::cpu;

namespace {

constexpr int64_t kSamples = 160, kInputs = 40, kNeurons = 640, kClasses = 3, kWinners = 5;

struct Model {
  std::vector<float> weight, output;
  std::vector<int64_t> counts;
};

void normalize(float* row) {
  float norm = 0;
  for (int64_t d = 0; d < kInputs; ++d) norm += row[d] * row[d];
  for (int64_t d = 0; d < kInputs; ++d) row[d] /= std::sqrt(norm);
}

Model train(SimdLevel simd, int threads, bool exhaustive, float momentum) {
  ssd::test::Random random(7);
  Model model{std::vector<float>(kNeurons * kInputs), std::vector<float>(kClasses * kNeurons),
              std::vector<int64_t>(kNeurons)};
  for (float& w : model.weight) w = static_cast<float>(std::fabs(random.uniform()));
  for (float& v : model.output) v = static_cast<float>(std::fabs(random.uniform())) * 0.05f;
  for (int64_t j = 0; j < kNeurons; ++j) normalize(&model.weight[j * kInputs]);
  std::vector<float> x(kSamples * kInputs);
  std::vector<int64_t> y(kSamples), order(kSamples);
  for (float& value : x) value = static_cast<float>(std::fabs(random.uniform()));
  for (int64_t i = 0; i < kSamples; ++i) {
    normalize(&x[i * kInputs]);
    y[i] = random.below(kClasses);
    order[i] = (i * 37) % kSamples;
  }
  SdmlpConfig config;
  config.neurons = kNeurons;
  config.inputs = kInputs;
  config.classes = kClasses;
  config.k = kWinners;
  config.gaba_switch = 500;
  config.momentum = momentum;
  config.exhaustive = exhaustive;
  config.simd = simd;
  SdmlpTrainer trainer(config, model.weight.data(), model.output.data(), model.counts.data());
  SdmlpEpoch epoch;
  epoch.x = x.data();
  epoch.y = y.data();
  epoch.samples = epoch.count = kSamples;
  epoch.order = order.data();
  epoch.batch = 32;
  for (int e = 0; e < 10; ++e) {
    const SdmlpStats stats = trainer.train(epoch, threads);
    CHECK(stats.steps == kSamples / 32 && !stats.non_finite && std::isfinite(stats.loss));
  }
  std::vector<float> logits(kSamples * kClasses);
  std::vector<int64_t> frequencies(kNeurons);
  CHECK(trainer.infer(x.data(), kSamples, threads, logits.data(), frequencies.data(), nullptr, nullptr));
  model.output.insert(model.output.end(), logits.begin(), logits.end());
  return model;
}

}  // namespace

int main() {
  for (int level = 0; level <= static_cast<int>(best_simd_level()); ++level) {
    const SimdLevel simd = static_cast<SimdLevel>(level);
    for (const float momentum : {0.f, 0.9f}) {
      const Model one = train(simd, 1, true, momentum);
      for (const int threads : {1, 3}) {
        for (const bool exhaustive : {true, false}) {
          const Model other = train(simd, threads, exhaustive, momentum);
          CHECK(one.weight == other.weight && one.output == other.output && one.counts == other.counts,
                "level %s, %d threads, exhaustive %d, momentum %g", simd_level_name(simd), threads, exhaustive,
                static_cast<double>(momentum));
        }
      }
    }
  }
  return 0;
}

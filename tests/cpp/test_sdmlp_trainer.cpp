// sdmlp_trainer.h: the same bits for any number of threads, with or without certificates and lists of active neurons,
// through the all-active phase, the switch and the sparse phase. Under TSan this is the test of the engine's threads.
#include "ssd/sdmlp_trainer.h"

#include <cmath>
#include <vector>

#include "check.h"

using namespace ssd::cpu;

namespace {

constexpr int64_t kSamples = 160, kInputs = 40, kNeurons = 640, kClasses = 3, kWinners = 5;

void normalize(float* row) {
  float norm = 0;
  for (int64_t d = 0; d < kInputs; ++d) norm += row[d] * row[d];
  for (int64_t d = 0; d < kInputs; ++d) row[d] /= std::sqrt(norm);
}

struct Options {
  SimdLevel simd = SimdLevel::kGeneric;
  int threads = 1;
  bool exhaustive = true;
  float momentum = 0;
  bool penalty = false, teacher = false, reverse_kl = false;
  double tile_active = 64;
  int epochs = 10;
  double gaba_switch = 500;
  float lr = 0.05f;
};

struct Result {
  std::vector<float> weight, output;
  std::vector<int64_t> counts;
  std::vector<double> stats;
  int64_t certified = 0;
  bool operator==(const Result& other) const {
    return weight == other.weight && output == other.output && counts == other.counts && stats == other.stats;
  }
};

// A teacher of every third neuron with some activations, and a penalty towards the first weights.
struct Attached {
  std::vector<double> probabilities, neg_entropy, hidden_log_z;
  std::vector<uint8_t> in_units;
  std::vector<int64_t> offsets{0};
  std::vector<int32_t> indices;
  std::vector<float> values, weight, output, weight_importance, output_importance;
  SdmlpTeacher teacher;
  SdmlpPenalty penalty;

  Attached(const Result& model, ssd::test::Random& random) : in_units(kNeurons), weight(model.weight) {
    const double temperature = SdmlpConfig().temperature;
    output = model.output;
    for (int64_t j = 0; j < kNeurons; j += 3) in_units[j] = 1;
    teacher.units = (kNeurons + 2) / 3;
    for (int64_t i = 0; i < kSamples; ++i) {
      double p[kClasses], total = 0, sum = 0;
      for (double& value : p) total += value = std::exp(random.uniform());
      double entropy = 0;
      for (double& value : p) {
        value /= total;
        probabilities.push_back(value);
        entropy += value * std::log(value);
      }
      neg_entropy.push_back(entropy);
      for (int64_t j = 0; j < kNeurons; j += 3) {
        if (random.below(20) > 0) continue;
        indices.push_back(static_cast<int32_t>(j));
        values.push_back(static_cast<float>(std::fabs(random.uniform())));
        sum += std::expm1(values.back() / temperature);
      }
      offsets.push_back(static_cast<int64_t>(indices.size()));
      hidden_log_z.push_back(std::log(static_cast<double>(teacher.units) + sum));
    }
    for (size_t i = 0; i < weight.size(); ++i)  // some rows are not pulled at all
      weight_importance.push_back(i / kInputs % 4 ? static_cast<float>(std::fabs(random.uniform())) : 0.f);
    for (size_t i = 0; i < output.size(); ++i)
      output_importance.push_back(i % kNeurons % 4 ? static_cast<float>(std::fabs(random.uniform())) : 0.f);
    teacher.targets = probabilities.data();
    teacher.neg_entropy = neg_entropy.data();
    teacher.in_units = in_units.data();
    teacher.offsets = offsets.data();
    teacher.indices = indices.data();
    teacher.values = values.data();
    teacher.hidden_log_z = hidden_log_z.data();
    penalty.weight_importance = weight_importance.data();
    penalty.weight_anchor = weight.data();
    penalty.output_importance = output_importance.data();
    penalty.output_anchor = output.data();
    penalty.coef = 0.5f;
  }
};

Result train(const Options& options) {
  ssd::test::Random random(7);
  Result model{std::vector<float>(kNeurons * kInputs),
               std::vector<float>(kClasses * kNeurons),
               std::vector<int64_t>(kNeurons),
               {}};
  for (float& w : model.weight) w = static_cast<float>(std::fabs(random.uniform()));
  for (float& v : model.output) v = static_cast<float>(std::fabs(random.uniform())) * 0.05f;
  for (int64_t j = 0; j < kNeurons; ++j) normalize(&model.weight[j * kInputs]);
  std::vector<float> x(kSamples * kInputs);
  std::vector<int64_t> y(kSamples), order(kSamples);
  for (float& value : x) value = static_cast<float>(std::fabs(random.uniform()));
  for (int64_t i = 0; i < kSamples; ++i) {
    normalize(&x[i * kInputs]);
    y[i] = random.below(kClasses);
    order[i] = i % 50 == 0 ? 3 : (i * 37) % kSamples;  // one sample stands several times, sometimes twice in a batch
  }
  const Attached attached(model, random);
  SdmlpConfig config;
  config.neurons = kNeurons;
  config.inputs = kInputs;
  config.classes = kClasses;
  config.k = kWinners;
  config.gaba_switch = options.gaba_switch;
  config.lr = options.lr;
  config.momentum = options.momentum;
  config.exhaustive = options.exhaustive;
  config.reverse_kl = options.reverse_kl;
  config.tile_active = options.tile_active;
  config.simd = options.simd;
  SdmlpTrainer trainer(config, model.weight.data(), model.output.data(), model.counts.data());
  SdmlpEpoch epoch;
  epoch.x = x.data();
  epoch.y = y.data();
  epoch.samples = epoch.count = kSamples;
  epoch.order = order.data();
  epoch.batch = 36;  // the last batch is smaller
  epoch.teacher = options.teacher ? &attached.teacher : nullptr;
  epoch.penalty = options.penalty ? &attached.penalty : nullptr;
  for (int e = 0; e < options.epochs; ++e) {
    const SdmlpStats stats = trainer.train(epoch, options.threads);
    model.certified += stats.certified;
    CHECK(stats.steps == (kSamples + 35) / 36 && !stats.failure.what && std::isfinite(stats.loss));
    for (const double value :
         {stats.loss, stats.ce, stats.kd_hidden, stats.kd_logits, stats.grad_norm, stats.active_per_row, stats.touched})
      model.stats.push_back(value);
  }
  std::vector<float> logits(kSamples * kClasses);
  std::vector<int64_t> frequencies(kNeurons);
  CHECK(trainer.infer(x.data(), kSamples, options.threads, logits.data(), frequencies.data(), nullptr, nullptr));
  model.output.insert(model.output.end(), logits.begin(), logits.end());
  return model;
}

void check_threads_and_certificates(SimdLevel simd) {
  for (const float momentum : {0.f, 0.9f}) {
    Options options;
    options.simd = simd;
    options.momentum = momentum;
    const Result one = train(options);
    for (const int threads : {1, 3}) {
      for (const bool exhaustive : {true, false}) {
        options.threads = threads;
        options.exhaustive = exhaustive;
        CHECK(one == train(options), "level %s, %d threads, exhaustive %d, momentum %g", simd_level_name(simd), threads,
              exhaustive, static_cast<double>(momentum));
      }
    }
  }
}

// Long after the switch: records of many ages, rows that move to and fro, and movers that come and go.
void check_long_run(SimdLevel simd) {
  for (const float lr : {0.01f, 0.1f}) {
    Options options;
    options.simd = simd;
    options.lr = lr;
    options.epochs = 100;
    options.gaba_switch = 2000;
    const Result exhaustive = train(options);
    options.exhaustive = false;
    options.threads = 2;
    const Result certified = train(options);
    CHECK(exhaustive == certified, "level %s, lr %g", simd_level_name(simd), static_cast<double>(lr));
    CHECK(certified.certified > 20 * kSamples, "certificates should have been at work: %lld rows",
          static_cast<long long>(certified.certified));
  }
}

// A step without lists of active neurons gives what a step with them gives, for every kind of loss.
void check_forms(SimdLevel simd) {
  for (int kind = 0; kind < 5; ++kind) {
    Options options;
    options.simd = simd;
    options.threads = 2;
    options.teacher = kind >= 1;
    options.reverse_kl = kind == 2;
    options.penalty = kind >= 3;
    options.momentum = kind == 4 ? 0.9f : 0.f;
    options.tile_active = 1e40;
    const Result lists = train(options);
    for (const double tile_active : {0.0, 64.0}) {
      options.tile_active = tile_active;
      CHECK(lists == train(options), "level %s, kind %d, tile_active %g", simd_level_name(simd), kind, tile_active);
    }
    CHECK(lists.stats[5] > 64 && lists.stats[lists.stats.size() - 2] < 64, "both forms should have been at work");
  }
}

}  // namespace

int main() {
  for (int level = 0; level <= static_cast<int>(best_simd_level()); ++level) {
    const SimdLevel simd = static_cast<SimdLevel>(level);
    check_threads_and_certificates(simd);
    check_forms(simd);
    check_long_run(simd);
  }
  return 0;
}

// The trainer's state, inference, and the choice of the instruction set. The step loop is in run.cpp.
#include "ssd/sdmlp_trainer.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "engine/state.h"
#include "simd/levels.h"
#include "ssd/float_mode.h"

namespace ssd::cpu {

#define SSD_TABLE(level)             \
  namespace level {                  \
  const SdmlpKernels& sdmlp_table(); \
  }
SSD_EACH_LEVEL(SSD_TABLE)
#undef SSD_TABLE
#define SSD_TABLE_OF(level) level::sdmlp_table()

const SdmlpKernels& sdmlp_kernels(SimdLevel level) { return SSD_AT_LEVEL(level, SSD_TABLE_OF); }

SdmlpTrainer::Impl::Impl(const SdmlpConfig& config, float* weight_, float* output_weight_, int64_t* counts_)
    : cfg(config),
      kernel(sdmlp_kernels(config.simd)),
      R(config.neurons),
      D(config.inputs),
      C(config.classes),
      K(config.k),
      Cp(static_cast<int>((config.classes + 15) / 16 * 16)),
      weight(weight_),
      output_weight(output_weight_),
      counts(counts_) {
  ask_huge_pages(weight, static_cast<size_t>(R * D) * sizeof(float));
  output.resize(R * Cp);
  gaba.resize(R);
  stale_output.assign((R + 63) / 64, 0);
  chunks.resize(kUpdateChunks);
  for (int c = 0; c < kUpdateChunks; ++c) {
    // Ranges end at multiples of 64: no two share a word of stale_output. Those of other processes are empty here.
    const int64_t words = (all_neurons() + 63) / 64, first = by_neurons() ? cfg.share.first : 0;
    chunks[c].begin = std::clamp<int64_t>(words * c / kUpdateChunks * 64 - first, 0, R);
    chunks[c].end = std::clamp<int64_t>(words * (c + 1) / kUpdateChunks * 64 - first, 0, R);
    chunks[c].bitmap.assign((chunks[c].end - chunks[c].begin + 63) / 64, 0);
    chunks[c].slot_of.assign(chunks[c].end - chunks[c].begin, 0);
  }
  if (cfg.momentum > 0) {
    weight_velocity.assign(R * D, 0.f);
    output_velocity.assign(R * Cp, 0.f);
    in_motion.assign(R, 0);
  }
  range_products.resize(kUpdateChunks);
  ones.assign(R, 1.f);
  dense_m.resize(Cp * D);
  dense_q.resize(C);
  certificates.configure(R, D, K, config.exhaustive ? 0 : config.cache_bytes, kernel);
  load_state();
}

float SdmlpTrainer::Impl::gaba_of(int64_t count) const {
  if (!(cfg.gaba_switch > 0)) return 1.f;
  const double g = -1.0 + 2.0 * static_cast<double>(count) / cfg.gaba_switch;
  return static_cast<float>(g > 1.0 ? 1.0 : g < -1.0 ? -1.0 : g);
}

void SdmlpTrainer::Impl::load_state() {
  std::fill(output.begin(), output.end(), 0.f);
  for (int64_t c = 0; c < C; ++c)
    for (int64_t j = 0; j < R; ++j) output[j * Cp + c] = output_weight[c * R + j];
  for (int64_t j = 0; j < R; ++j) gaba[j] = gaba_of(counts[j]);
  highest_count = *std::max_element(counts, counts + R);
  products_valid = false;
  last_active = recent_active = kUnknownActive;
  certificates.reset();
  begin_era();
  threshold_only = false;
  certificates.set_gaba(gaba);
}

void SdmlpTrainer::Impl::use_threads(int threads) {
  if (!team || team->threads() != threads) team = std::make_unique<Team>(threads);
  if (static_cast<int>(scratch.size()) < threads) scratch.resize(threads);
}

// Brings the caller's (C, R) output weights up to date with the neurons that changed.
void SdmlpTrainer::Impl::write_output() {
  for (size_t w = 0; w < stale_output.size(); ++w) {
    for (uint64_t word = stale_output[w]; word; word &= word - 1) {
      const int64_t j = static_cast<int64_t>(w) * 64 + __builtin_ctzll(word);
      for (int64_t c = 0; c < C; ++c) output_weight[c * R + j] = output[j * Cp + c];
    }
    stale_output[w] = 0;
  }
}

SdmlpTrainer::SdmlpTrainer(const SdmlpConfig& config, float* weight, float* output_weight, int64_t* counts)
    : impl_(std::make_unique<Impl>(config, weight, output_weight, counts)) {}
SdmlpTrainer::~SdmlpTrainer() = default;

bool SdmlpTrainer::infer(const float* x, int64_t samples, int threads, float* logits, int64_t* frequencies,
                         const uint8_t* keep, SdmlpActivations* activations) {
  Impl& self = *impl_;
  const InUse use(self.busy);
  const FloatMode mode;
  constexpr int64_t kBatch = EnginePolicy::kInferBatch;
  if (static_cast<int64_t>(self.rows.size()) < kBatch) self.rows.resize(kBatch);
  std::vector<int> which(kBatch);
  for (int i = 0; i < kBatch; ++i) which[i] = i;
  std::vector<float> outputs(static_cast<size_t>(kBatch) * self.Cp);
  if (activations) activations->offsets.assign(1, 0);
  std::atomic<bool> finite{true};
  self.use_threads(threads);
  for (int64_t begin = 0; begin < samples; begin += kBatch) {
    const int n = static_cast<int>(std::min(kBatch, samples - begin));
    const Impl::ScanPlan plan = self.plan_scan(n, self.gaba.data());
    for (int i = 0; i < n; ++i) {
      self.rows[i].x = x + (begin + i) * self.D;
      self.rows[i].sample = -1;
    }
    self.scan_begin(which.data(), n, plan);
    self.team->for_each(plan.groups * plan.parts, [&](int c, int) {
      self.scan(which.data(), n, plan, c / plan.parts, c % plan.parts, 0.f, self.gaba.data());
    });
    self.team->for_each(n, [&](int i, int) {
      Row& row = self.rows[i];
      if (!self.finish_scan(i, i, plan, 0.f, self.gaba.data())) {
        finite.store(false);
        row.count = 0;
      }
      if (!logits || self.by_neurons()) return;
      float* y = &outputs[static_cast<size_t>(i) * self.Cp];
      self.kernel.output_row(row.index.data(), row.h.data(), row.count, self.output.data(), self.Cp, y);
      std::copy_n(y, self.C, logits + (begin + i) * self.C);
    });
    self.scan_end(n);
    if (self.by_neurons() && !self.infer_together(n, finite.load(), logits ? logits + begin * self.C : nullptr))
      return false;
    const int32_t first = self.by_neurons() ? static_cast<int32_t>(self.cfg.share.first) : 0;
    for (int i = 0; i < n; ++i) {
      const Row& row = self.rows[i];
      for (int e = 0; e < row.count; ++e) {
        const int32_t j = row.index[e];  // of another process: below 0, or R and more
        if (frequencies && j >= 0 && j < self.R) ++frequencies[j];
        if (activations && keep[first + j]) {
          activations->indices.push_back(first + j);
          activations->values.push_back(row.h[e]);
        }
      }
      if (activations) activations->offsets.push_back(static_cast<int64_t>(activations->indices.size()));
    }
  }
  return finite.load();
}

void SdmlpTrainer::invalidate() {
  const InUse use(impl_->busy);
  impl_->load_state();
}

void SdmlpTrainer::get_velocity(float* weight, float* output) const {
  const Impl& self = *impl_;
  std::copy(self.weight_velocity.begin(), self.weight_velocity.end(), weight);
  for (int64_t c = 0; c < self.C; ++c)
    for (int64_t j = 0; j < self.R; ++j) output[c * self.R + j] = self.output_velocity[j * self.Cp + c];
}

void SdmlpTrainer::set_velocity(const float* weight, const float* output) {
  Impl& self = *impl_;
  const InUse use(self.busy);
  std::copy_n(weight, self.weight_velocity.size(), self.weight_velocity.begin());
  for (int64_t c = 0; c < self.C; ++c)
    for (int64_t j = 0; j < self.R; ++j) self.output_velocity[j * self.Cp + c] = output[c * self.R + j];
  double square = 0;
  for (int64_t j = 0; j < self.R; ++j) {
    const float *const w = &self.weight_velocity[j * self.D], *const v = &self.output_velocity[j * self.Cp];
    double row = 0;
    for (int64_t d = 0; d < self.D; ++d) row += static_cast<double>(w[d]) * w[d];
    for (int64_t c = 0; c < self.C; ++c) row += static_cast<double>(v[c]) * v[c];
    self.in_motion[j] = row > 0;  // in fp64 no square of an fp32 number vanishes
    square += row;
  }
  self.speed = std::sqrt(square);
}

}  // namespace ssd::cpu

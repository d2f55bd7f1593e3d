// The step loop: select winners -> forward and losses -> gradients by ranges of neurons -> clip and update.
// All threads run the same program (team.h); what one thread must do alone runs as the last act of a phase.
#include "ssd/sdmlp_trainer.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "sdmlp_impl.h"

namespace ssd::cpu {

namespace generic {
const SdmlpKernels& sdmlp_table();
}
#ifdef SSD_X86
namespace avx2 {
const SdmlpKernels& sdmlp_table();
}
namespace avx512 {
const SdmlpKernels& sdmlp_table();
}
#endif

const SdmlpKernels& sdmlp_kernels(SimdLevel level) {
  switch (level) {
#ifdef SSD_X86
    case SimdLevel::kAvx512Bf16:
    case SimdLevel::kAvx512:
      return avx512::sdmlp_table();
    case SimdLevel::kAvx2:
      return avx2::sdmlp_table();
#endif
    default:
      return generic::sdmlp_table();
  }
}

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
  output.resize(R * Cp);
  gaba.resize(R);
  stale_output.assign((R + 63) / 64, 0);
  chunks.resize(kUpdateChunks);
  for (int c = 0; c < kUpdateChunks; ++c) {
    const int64_t words = (R + 63) / 64;  // ranges end at multiples of 64: no two share a word of stale_output
    chunks[c].begin = std::min(R, words * c / kUpdateChunks * 64);
    chunks[c].end = std::min(R, words * (c + 1) / kUpdateChunks * 64);
    chunks[c].bitmap.assign((chunks[c].end - chunks[c].begin + 63) / 64, 0);
    chunks[c].slot_of.assign(chunks[c].end - chunks[c].begin, 0);
  }
  if (cfg.momentum > 0) {
    weight_velocity.assign(R * D, 0.f);
    output_velocity.assign(R * Cp, 0.f);
    in_motion.assign(R, 0);
  }
  certificates.configure(R, D, K, config.exhaustive ? 0 : config.cache_bytes, kernel);
  load_state();
}

float SdmlpTrainer::Impl::gaba_of(int64_t count) const {
  if (!(cfg.gaba_switch > 0)) return 1.f;
  const double g = -1.0 + 2.0 * static_cast<double>(count) / cfg.gaba_switch;
  return static_cast<float>(g > 1.0 ? 1.0 : g);
}

void SdmlpTrainer::Impl::load_state() {
  std::fill(output.begin(), output.end(), 0.f);
  for (int64_t c = 0; c < C; ++c)
    for (int64_t j = 0; j < R; ++j) output[j * Cp + c] = output_weight[c * R + j];
  for (int64_t j = 0; j < R; ++j) gaba[j] = gaba_of(counts[j]);
  certificates.reset();
  certificates.set_gaba(gaba);
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

// Active neurons per row of the first batch, which decides whether certificates are worth trying.
double SdmlpTrainer::Impl::measure_active(const SdmlpEpoch& epoch) {
  const int n = static_cast<int>(std::min<int64_t>({epoch.batch, epoch.count, kScanRows}));
  std::vector<int> which(n);
  const ScanPlan plan{1, 1};
  if (lists.size() < kScanRows) lists.resize(kScanRows);
  for (int i = 0; i < n; ++i) {
    which[i] = i;
    rows[i].x = epoch.x + epoch.order[i] * D;
  }
  scan(which.data(), n, plan, 0, 0, 0.f);
  double active = 0;
  for (int i = 0; i < n; ++i) active += finish_scan(i, i, plan, 0.f) ? rows[i].count : 0;
  return n ? active / n : 0;
}

// One call of train(): the program that every thread of the team runs.
struct SdmlpTrainer::Impl::Run {
  Impl& self;
  const SdmlpEpoch& epoch;
  SdmlpStats& stats;
  Team team;
  int64_t position = 0, steps = 0, batch = 0;
  double grad_norm_sum = 0, active_sum = 0, touched_sum = 0, mark = 0, last_poll = 0, scale = 0;
  bool stop = false;
  std::atomic<bool> non_finite{false};
  ScanPlan plan{1, 1};
  std::vector<int64_t> refresh;  // positions of a batch refresh
  size_t refreshed = 0;

  Run(Impl& impl, const SdmlpEpoch& e, SdmlpStats& s, int threads) : self(impl), epoch(e), stats(s), team(threads) {}

  void lap(SdmlpPhase phase) {
    const double time = now();
    stats.seconds[phase] += time - mark;
    mark = time;
  }

  void set_row(int b, int64_t sample) {
    Row& row = self.rows[b];
    row.sample = sample;
    row.x = epoch.x + sample * self.D;
    row.certified = false;
  }

  // Takes the next batch, or stops.
  void next_batch() {
    if (non_finite.load() || position >= epoch.count) {
      stop = true;
      return;
    }
    const double time = now();
    if (epoch.interrupted && time - last_poll > 0.1) {
      last_poll = time;
      if (epoch.interrupted(epoch.context)) {
        stop = true;
        return;
      }
    }
    batch = std::min(epoch.batch, epoch.count - position);
    for (int64_t b = 0; b < batch; ++b) set_row(static_cast<int>(b), epoch.order[position + b]);
    self.pending.clear();
    duplicates.assign(batch, 0);
    seen.clear();
    for (int64_t b = 0; b < batch; ++b) seen.emplace_back(self.rows[b].sample, b);
    std::sort(seen.begin(), seen.end());
    for (int64_t b = 1; b < batch; ++b)
      if (seen[b].first == seen[b - 1].first) duplicates[seen[b].second] = duplicates[seen[b - 1].second] = 1;
  }
  std::vector<uint8_t> duplicates;  // samples that stand twice in the batch: one record, so no certificate
  std::vector<std::pair<int64_t, int64_t>> seen;

  void program(int thread) {
    Team::Member me;
    ScratchRow& scratch = self.scratch[thread];
    refresh_records(me, scratch);
    team.for_each(me, 0, [](int) {}, [&] { next_batch(); });
    while (!stop) step(me, scratch);
  }

  // Scans the samples whose certificates would run out, many rows to a pass over the weights.
  void refresh_records(Team::Member& me, ScratchRow& scratch) {
    for (;;) {
      int n = 0;
      team.for_each(
          me, 0, [](int) {},
          [&] {
            chunk_rows = static_cast<int>(std::min<size_t>(refresh.size() - refreshed, self.rows.size()));
            for (int i = 0; i < chunk_rows; ++i) set_row(i, epoch.order[refresh[refreshed + i]]);
            plan = self.plan_scan(chunk_rows);
            identity.resize(chunk_rows);
            for (int i = 0; i < chunk_rows; ++i) identity[i] = i;
            grow_lists();
          });
      n = chunk_rows;
      if (n == 0) break;
      const float gap = self.certificates.gap();
      team.for_each(me, plan.groups * plan.parts,
                    [&](int c) { self.scan(identity.data(), n, plan, c / plan.parts, c % plan.parts, gap); });
      team.for_each(
          me, (n + 7) / 8,
          [&](int c) {
            for (int i = c * 8; i < std::min(n, c * 8 + 8); ++i) finish(i, i, gap, scratch, true);
          },
          [&] { refreshed += n; });
    }
    team.for_each(me, 0, [](int) {}, [&] { lap(kRefresh); });
  }
  int chunk_rows = 0;
  std::vector<int> identity;

  void grow_lists() {
    const size_t lists = static_cast<size_t>(plan.groups) * kScanRows * plan.parts;
    if (self.lists.size() < lists) self.lists.resize(lists);
  }

  // Ends a scan of one row: its active neurons and, where certificates are in use, its record.
  void finish(int which, int place, float gap, ScratchRow& scratch, bool keep) {
    if (!self.finish_scan(which, place, plan, gap)) {
      non_finite.store(true);
      return;
    }
    if (keep && gap > 0) {
      const ScanList& list = self.lists[static_cast<size_t>(place) * plan.parts];
      self.certificates.record(self.rows[which].sample, list.index.data(), list.score.data(), list.count,
                               self.rows[which].threshold, scratch);
    }
  }

  void step(Team::Member& me, ScratchRow& scratch) {
    constexpr int kRowChunk = 8;
    const int n = static_cast<int>(batch), row_chunks = (n + kRowChunk - 1) / kRowChunk;
    const bool certify = self.certificates.active();
    // Winners by certificate, and at once the row's outputs and losses.
    team.for_each(
        me, certify ? row_chunks : 0,
        [&](int c) {
          for (int b = c * kRowChunk; b < std::min(n, (c + 1) * kRowChunk); ++b) {
            Row& row = self.rows[b];
            int count;
            float threshold;
            if (duplicates[b] ||
                !self.certificates.certify(row.sample, row.x, self.weight, scratch, &count, &threshold))
              continue;
            row.certified = true;
            self.activate(row, scratch.index.data(), scratch.score.data(), count, threshold);
            self.forward(epoch, b, n);
          }
        },
        [&] {
          for (int b = 0; b < n; ++b)
            if (!self.rows[b].certified) self.pending.push_back(b);
          plan = self.plan_scan(static_cast<int>(self.pending.size()));
          grow_lists();
          if (!self.pending.empty()) self.certificates.take_snapshot(self.gaba);
          lap(kSelect);
        });
    // All others by a scan.
    const int rest = static_cast<int>(self.pending.size());
    if (rest > 0) {
      const float gap = certify ? self.certificates.gap() : 0.f;
      team.for_each(
          me, plan.groups * plan.parts,
          [&](int c) { self.scan(self.pending.data(), rest, plan, c / plan.parts, c % plan.parts, gap); },
          [&] { lap(kScan); });
      team.for_each(
          me, (rest + kRowChunk - 1) / kRowChunk,
          [&](int c) {
            for (int i = c * kRowChunk; i < std::min(rest, (c + 1) * kRowChunk); ++i) {
              const int b = self.pending[i];
              finish(b, i, gap, scratch, !duplicates[b]);
              if (!non_finite.load(std::memory_order_relaxed)) self.forward(epoch, b, n);
            }
          },
          [&] { lap(kForward); });
    }
    if (non_finite.load()) {
      team.for_each(me, 0, [](int) {}, [&] { stop = true; });
      return;
    }
    team.for_each(
        me, kUpdateChunks, [&](int c) { self.backward(c, n, epoch.penalty); },
        [&] {
          clip();
          lap(kBackward);
        });
    team.for_each(
        me, kUpdateChunks, [&](int c) { self.update(c, static_cast<float>(scale), epoch.penalty); },
        [&] {
          end_step();
          next_batch();
          lap(kUpdate);
        });
  }

  void clip() {
    double norm2 = 0;
    for (const UpdateChunk& chunk : self.chunks) norm2 += chunk.norm2;
    const double norm = std::sqrt(norm2);
    scale = std::min(1.0, self.cfg.max_grad_norm / (norm + 1e-6));
    grad_norm_sum += norm;
  }

  void end_step() {
    for (int64_t b = 0; b < batch; ++b) {
      const Row& row = self.rows[b];
      stats.ce += row.ce;
      stats.kd_hidden += row.kd_hidden;
      stats.kd_logits += row.kd_logits;
      active_sum += row.count;
    }
    for (const UpdateChunk& chunk : self.chunks) {
      self.certificates.merge(chunk.delta);
      touched_sum += static_cast<double>(chunk.neuron.size());
    }
    stats.scanned += static_cast<int64_t>(self.pending.size());
    stats.certified += batch - static_cast<int64_t>(self.pending.size());
    self.certificates.step_done(batch);
    position += batch;
    ++steps;
  }

  void finish_stats() {
    const double rows = std::max<double>(1.0, static_cast<double>(position));
    stats.ce /= rows;
    stats.kd_hidden /= rows;
    stats.kd_logits /= rows;
    const SdmlpConfig& cfg = self.cfg;
    stats.loss = epoch.teacher ? cfg.alpha * stats.ce +
                                     (1 - cfg.alpha) * (cfg.lam * stats.kd_hidden + (1 - cfg.lam) * stats.kd_logits)
                               : stats.ce;
    stats.active_per_row = active_sum / rows;
    stats.grad_norm = steps ? grad_norm_sum / steps : 0;
    stats.touched = steps ? touched_sum / steps : 0;
    stats.steps = steps;
    stats.refreshed = static_cast<int64_t>(refreshed);
    stats.non_finite = non_finite.load();
  }
};

SdmlpTrainer::SdmlpTrainer(const SdmlpConfig& config, float* weight, float* output_weight, int64_t* counts)
    : impl_(std::make_unique<Impl>(config, weight, output_weight, counts)) {}
SdmlpTrainer::~SdmlpTrainer() = default;

SdmlpStats SdmlpTrainer::train(const SdmlpEpoch& epoch, int threads) {
  Impl& self = *impl_;
  SdmlpStats stats;
  const size_t rows = static_cast<size_t>(std::max<int64_t>(epoch.batch, 256));
  if (self.rows.size() < rows) self.rows.resize(rows);
  self.y.resize(rows * self.Cp);
  self.dy.resize(rows * self.Cp);
  self.scratch.resize(std::max<size_t>(self.scratch.size(), threads));

  if (epoch.penalty) self.prepare_penalty(*epoch.penalty);
  if (!self.cfg.exhaustive && self.last_active > 1e29) self.last_active = self.measure_active(epoch);

  Impl::Run run(self, epoch, stats, threads);
  run.mark = run.last_poll = now();
  if (!self.cfg.exhaustive) {
    self.certificates.bind(epoch.x, epoch.samples);
    run.refresh = self.certificates.begin_epoch(epoch.order, epoch.count, self.last_active);
    if (!run.refresh.empty()) self.certificates.take_snapshot(self.gaba);
  }
  if (threads > 1) {
    if (!self.pool || self.pool->threads() != threads) self.pool = std::make_unique<ThreadPool>(threads);
    self.pool->run([&](int thread) { run.program(thread); });
  } else {
    run.program(0);
  }
  run.finish_stats();
  if (stats.steps > 0) self.last_active = stats.active_per_row;
  if (!self.cfg.exhaustive) self.certificates.end_epoch(stats.certified);
  self.write_output();
  return stats;
}

bool SdmlpTrainer::infer(const float* x, int64_t samples, int threads, float* logits, int64_t* frequencies,
                         const uint8_t* keep, SdmlpActivations* activations) {
  Impl& self = *impl_;
  constexpr int64_t kBatch = 256;
  if (static_cast<int64_t>(self.rows.size()) < kBatch) self.rows.resize(kBatch);
  std::vector<int> which(kBatch);
  for (int i = 0; i < kBatch; ++i) which[i] = i;
  std::vector<float> outputs(static_cast<size_t>(kBatch) * self.Cp);
  if (activations) activations->offsets.assign(1, 0);
  std::atomic<bool> finite{true};
  Team team(threads);
  const auto program = [&](int) {
    Team::Member me;
    for (int64_t begin = 0; begin < samples; begin += kBatch) {
      const int n = static_cast<int>(std::min(kBatch, samples - begin));
      const Impl::ScanPlan plan = self.plan_scan(n);
      team.for_each(
          me, 0, [](int) {},
          [&] {
            for (int i = 0; i < n; ++i) self.rows[i].x = x + (begin + i) * self.D;
            const size_t lists = static_cast<size_t>(plan.groups) * kScanRows * plan.parts;
            if (self.lists.size() < lists) self.lists.resize(lists);
          });
      team.for_each(me, plan.groups * plan.parts,
                    [&](int c) { self.scan(which.data(), n, plan, c / plan.parts, c % plan.parts, 0.f); });
      team.for_each(
          me, n,
          [&](int i) {
            if (!self.finish_scan(i, i, plan, 0.f)) {
              finite.store(false);
              self.rows[i].count = 0;
            }
            const Row& row = self.rows[i];
            if (logits) {
              float* y = &outputs[static_cast<size_t>(i) * self.Cp];
              self.kernel.output_row(row.index.data(), row.h.data(), row.count, self.output.data(), self.Cp, y);
              std::copy_n(y, self.C, logits + (begin + i) * self.C);
            }
          },
          [&] {
            for (int i = 0; i < n; ++i) {
              const Row& row = self.rows[i];
              for (int e = 0; e < row.count; ++e) {
                if (frequencies) ++frequencies[row.index[e]];
                if (activations && keep[row.index[e]]) {
                  activations->indices.push_back(row.index[e]);
                  activations->values.push_back(row.h[e]);
                }
              }
              if (activations) activations->offsets.push_back(static_cast<int64_t>(activations->indices.size()));
            }
          });
    }
  };
  if (threads > 1) {
    if (!self.pool || self.pool->threads() != threads) self.pool = std::make_unique<ThreadPool>(threads);
    self.pool->run([&](int thread) { program(thread); });
  } else {
    program(0);
  }
  return finite.load();
}

void SdmlpTrainer::invalidate() { impl_->load_state(); }

void SdmlpTrainer::get_velocity(float* weight, float* output) const {
  const Impl& self = *impl_;
  std::copy(self.weight_velocity.begin(), self.weight_velocity.end(), weight);
  for (int64_t c = 0; c < self.C; ++c)
    for (int64_t j = 0; j < self.R; ++j) output[c * self.R + j] = self.output_velocity[j * self.Cp + c];
}

void SdmlpTrainer::set_velocity(const float* weight, const float* output) {
  Impl& self = *impl_;
  std::copy_n(weight, self.weight_velocity.size(), self.weight_velocity.begin());
  for (int64_t c = 0; c < self.C; ++c)
    for (int64_t j = 0; j < self.R; ++j) self.output_velocity[j * self.Cp + c] = output[c * self.R + j];
  std::fill(self.in_motion.begin(), self.in_motion.end(), uint8_t{1});
}

}  // namespace ssd::cpu

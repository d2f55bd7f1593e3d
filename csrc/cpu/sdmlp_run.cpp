// The step loop: select winners -> forward and losses -> gradients by ranges of neurons -> clip and update.
// All threads run the same program (team.h); what one thread must do alone runs as the last act of a phase.
#include <algorithm>
#include <atomic>
#include <cmath>

#include "sdmlp_impl.h"

namespace ssd::cpu {

// Active neurons per row of the first batch, which decides whether certificates are worth trying.
double SdmlpTrainer::Impl::measure_active(const SdmlpEpoch& epoch) {
  const int n = static_cast<int>(std::min<int64_t>({epoch.batch, epoch.count, kScanRows}));
  std::vector<int> which(n);
  const ScanPlan plan;
  if (lists.size() < kScanRows) lists.resize(kScanRows);
  for (int i = 0; i < n; ++i) {
    which[i] = i;
    rows[i].x = epoch.x + epoch.order[i] * D;
  }
  scan(which.data(), n, plan, 0, 0, 0.f, gaba.data());
  double active = 0;
  for (int i = 0; i < n; ++i) active += finish_scan(i, i, plan, 0.f, gaba.data()) ? rows[i].count : 0;
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
  bool dense = false;  // this step takes the all-active form
  int proved = 0;      // rows of this step that a certificate covered
  std::atomic<bool> non_finite{false};
  ScanPlan plan;
  static constexpr int64_t kWindow = 1024;  // rows whose certificates are looked at together
  int64_t window_end = 0;
  std::vector<int64_t> refresh;  // positions of a batch refresh

  static constexpr int kRowChunk = 8;

  Run(Impl& impl, const SdmlpEpoch& e, SdmlpStats& s, int threads) : self(impl), epoch(e), stats(s), team(threads) {}

  void lap(SdmlpPhase phase) {
    const double time = now();
    stats.seconds[phase] += time - mark;
    mark = time;
  }

  const float* coefficients() const { return self.threshold_only ? self.ones.data() : self.gaba.data(); }

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
    // The form of the step depends on exact counts alone, so every way of finding winners takes the same.
    dense = self.dense_form(epoch);
    if (self.threshold_only && !dense) {
      self.threshold_only = false;
      self.certificates.change_gaba(self.gaba);
    }
    refresh.clear();
    if (self.certificates.active() && position >= window_end) {
      window_end = std::min(epoch.count, position + kWindow);
      refresh = self.certificates.expiring(epoch.order, position, window_end);
      if (!refresh.empty()) self.certificates.take_snapshot(self.gaba);
    }
    if (refresh.empty()) load_batch();
  }

  void load_batch() {
    self.pending.clear();
    duplicates.assign(batch, 0);
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t sample = epoch.order[position + b];
      set_row(static_cast<int>(b), sample);
      if (place[sample] >= position) duplicates[b] = duplicates[place[sample] - position] = 1;
      place[sample] = position + b;
    }
  }
  std::vector<uint8_t> duplicates;  // samples that stand twice in the batch: one record, so no certificate
  std::vector<int64_t> place;       // (N,) last position of every sample

  void program(int thread) {
    Team::Member me;
    ScratchRow& scratch = self.scratch[thread];
    team.for_each(
        me, 0, [](int) {},
        [&] {
          next_batch();
          lap(kRefresh);
        });
    while (!stop) {
      if (!refresh.empty()) refresh_records(me, scratch);
      step(me, scratch);
    }
  }

  // Scans the samples whose certificates would run out, many rows to a pass over the weights.
  void refresh_records(Team::Member& me, ScratchRow& scratch) {
    size_t done = 0;
    while (done < refresh.size()) {
      team.for_each(
          me, 0, [](int) {},
          [&] {
            chunk_rows = static_cast<int>(std::min<size_t>(refresh.size() - done, self.rows.size()));
            for (int i = 0; i < chunk_rows; ++i) set_row(i, epoch.order[refresh[done + i]]);
            plan = self.plan_scan(chunk_rows, coefficients());
            identity.resize(chunk_rows);
            for (int i = 0; i < chunk_rows; ++i) identity[i] = i;
            grow_lists();
          });
      const int n = chunk_rows;
      const float gap = self.certificates.gap();
      team.for_each(me, plan.groups * plan.parts, [&](int c) {
        self.scan(identity.data(), n, plan, c / plan.parts, c % plan.parts, gap, coefficients());
      });
      team.for_each(me, (n + 7) / 8, [&](int c) {
        for (int i = c * 8; i < std::min(n, c * 8 + 8); ++i) finish(i, i, gap, scratch, true, coefficients());
      });
      done += n;
    }
    team.for_each(
        me, 0, [](int) {},
        [&] {
          stats.refreshed += static_cast<int64_t>(refresh.size());
          refresh.clear();
          load_batch();
          lap(kRefresh);
        });
  }
  int chunk_rows = 0;
  std::vector<int> identity;

  void grow_lists() {
    const size_t lists = static_cast<size_t>(plan.groups) * plan.rows * plan.parts;
    if (self.lists.size() < lists) self.lists.resize(lists);
  }

  // Ends a scan of one row: its active neurons and, where certificates are in use, its record.
  void finish(int which, int place, float gap, ScratchRow& scratch, bool keep, const float* coefficients) {
    if (!self.finish_scan(which, place, plan, gap, coefficients)) {
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
    select(me, scratch);
    if (non_finite.load()) {
      team.for_each(me, 0, [](int) {}, [&] { stop = true; });
    } else if (dense) {
      dense_step(me);
    } else {
      list_step(me);
    }
  }

  // Each row's threshold and active neurons, by certificate or by a scan; outside the all-active phase its losses too.
  void select(Team::Member& me, ScratchRow& scratch) {
    const int n = static_cast<int>(batch);
    const bool certify = self.certificates.active();
    team.for_each(
        me, certify ? (n + kRowChunk - 1) / kRowChunk : 0,
        [&](int c) {
          for (int b = c * kRowChunk; b < std::min(n, (c + 1) * kRowChunk); ++b) {
            if (b + 1 < n) self.certificates.prefetch(self.rows[b + 1].sample, self.weight);
            Row& row = self.rows[b];
            int count;
            if (duplicates[b] ||
                !self.certificates.certify(row.sample, row.x, self.weight, scratch, &count, &row.threshold))
              continue;
            row.certified = true;
            if (self.threshold_only) continue;
            self.activate(row, scratch.index.data(), scratch.score.data(), count, row.threshold);
            self.forward(epoch, b, n);
          }
        },
        [&] {
          for (int b = 0; b < n; ++b)
            if (!self.rows[b].certified) self.pending.push_back(b);
          proved = n - static_cast<int>(self.pending.size());
          if (!self.pending.empty()) self.certificates.take_snapshot(self.gaba);
          lap(kSelect);
        });
    if (proved < n) scan_pending(me, scratch, certify ? self.certificates.gap() : 0.f, coefficients());
    if (!dense || non_finite.load()) return;
    // A row without any positive score breaks the all-active form: this step takes the lists of active neurons.
    team.for_each(
        me, 0, [](int) {},
        [&] {
          for (int b = 0; b < n; ++b) dense = dense && self.rows[b].threshold > 0;
          if (!dense) {
            self.pending.resize(n);
            for (int b = 0; b < n; ++b) self.pending[b] = b;
          }
        });
    if (!dense) scan_pending(me, scratch, 0.f, self.gaba.data());
  }

  void scan_pending(Team::Member& me, ScratchRow& scratch, float gap, const float* coefficients) {
    const int n = static_cast<int>(batch), rest = static_cast<int>(self.pending.size());
    team.for_each(
        me, 0, [](int) {},
        [&] {
          plan = self.plan_scan(rest, coefficients);
          grow_lists();
        });
    team.for_each(
        me, plan.groups * plan.parts,
        [&](int c) { self.scan(self.pending.data(), rest, plan, c / plan.parts, c % plan.parts, gap, coefficients); },
        [&] { lap(kScan); });
    team.for_each(
        me, (rest + kRowChunk - 1) / kRowChunk,
        [&](int c) {
          for (int i = c * kRowChunk; i < std::min(rest, (c + 1) * kRowChunk); ++i) {
            const int b = self.pending[i];
            finish(b, i, gap, scratch, !duplicates[b], coefficients);
            if (coefficients == self.gaba.data() && !non_finite.load(std::memory_order_relaxed))
              self.forward(epoch, b, n);
          }
        },
        [&] { lap(kForward); });
  }

  void list_step(Team::Member& me) {
    const int n = static_cast<int>(batch);
    team.for_each(
        me, kUpdateChunks, [&](int c) { self.backward(c, n, epoch.penalty); },
        [&] {
          double norm2 = 0;
          for (const UpdateChunk& chunk : self.chunks) norm2 += chunk.norm2;
          clip(norm2);
          lap(kBackward);
        });
    team.for_each(
        me, kUpdateChunks, [&](int c) { self.update(c, static_cast<float>(scale), epoch.penalty); },
        [&] {
          self.products_valid = false;
          for (const UpdateChunk& chunk : self.chunks) {
            touched_sum += static_cast<double>(chunk.neuron.size());
            if (self.all_active())
              for (int32_t j : chunk.neuron) self.highest_count = std::max(self.highest_count, self.counts[j]);
          }
          end_step();
          next_batch();
          lap(kUpdate);
        });
  }

  // One step with every neuron active (sdmlp_dense.cpp).
  void dense_step(Team::Member& me) {
    const int n = static_cast<int>(batch);
    if (!self.products_valid)
      team.for_each(me, kUpdateChunks, [&](int c) { self.dense_prepare(c); }, [&] { self.dense_collect(); });
    team.for_each(me, (n + kRowChunk - 1) / kRowChunk, [&](int c) {
      for (int b = c * kRowChunk; b < std::min(n, (c + 1) * kRowChunk); ++b) self.dense_forward(epoch, b, n);
    });
    team.for_each(me, static_cast<int>(self.C), [&](int c) { self.dense_gradient(c, n); }, [&] { lap(kDense); });
    team.for_each(
        me, kUpdateChunks, [&](int c) { self.dense_output_gradient(c); },
        [&] {
          double norm2 = self.dense_weight_norm2();
          for (const UpdateChunk& chunk : self.chunks) norm2 += chunk.norm2;
          clip(norm2);
          lap(kBackward);
        });
    team.for_each(
        me, kUpdateChunks, [&](int c) { self.dense_update(c, static_cast<float>(scale), n); },
        [&] {
          self.dense_collect();
          self.highest_count += n;
          touched_sum += static_cast<double>(self.R);
          end_step();
          next_batch();
          lap(kUpdate);
        });
  }

  void clip(double norm2) {
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
    for (const UpdateChunk& chunk : self.chunks) self.certificates.merge(chunk.delta);
    stats.scanned += batch - proved;
    stats.certified += proved;
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
    double scored = 0, examined = 0;
    for (ScratchRow& scratch : self.scratch) {
      scored += static_cast<double>(scratch.scored);
      examined += static_cast<double>(scratch.examined);
      scratch.scored = scratch.examined = 0;
    }
    stats.scored = scored / std::max<double>(1.0, static_cast<double>(stats.certified));
    stats.examined = examined / std::max<double>(1.0, static_cast<double>(stats.certified));
    stats.non_finite = non_finite.load();
  }
};

SdmlpStats SdmlpTrainer::train(const SdmlpEpoch& epoch, int threads) {
  Impl& self = *impl_;
  SdmlpStats stats;
  const size_t rows = static_cast<size_t>(std::max<int64_t>(epoch.batch, 256));
  if (self.rows.size() < rows) self.rows.resize(rows);
  self.y.resize(rows * self.Cp);
  self.dy.resize(rows * self.Cp);
  self.scratch.resize(std::max<size_t>(self.scratch.size(), threads));

  if (epoch.penalty) self.prepare_penalty(*epoch.penalty);
  const bool dense = self.dense_form(epoch);
  if (self.threshold_only != dense) {
    self.threshold_only = dense;
    self.certificates.change_gaba(dense ? self.ones : self.gaba);
  }
  if (!self.cfg.exhaustive && !dense && self.last_active > 1e29) self.last_active = self.measure_active(epoch);

  Impl::Run run(self, epoch, stats, threads);
  run.mark = run.last_poll = now();
  run.place.assign(epoch.samples, -1);
  if (!self.cfg.exhaustive) {
    self.certificates.bind(epoch.x, epoch.samples);
    self.certificates.begin_epoch(dense ? static_cast<double>(self.K) : self.last_active);
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

}  // namespace ssd::cpu

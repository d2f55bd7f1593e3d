// The step loop: select winners -> forward and losses -> gradients by ranges of neurons -> clip and update.
// One thread runs it, and cuts each phase into chunks for all of them (team.h).
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <utility>

#include "engine/state.h"
#include "ssd/float_mode.h"

namespace ssd::cpu {

// Active neurons per row of the first batch, which decides whether certificates are worth trying.
double SdmlpTrainer::Impl::measure_active(const SdmlpEpoch& epoch) {
  const int n = static_cast<int>(std::min<int64_t>({epoch.batch, epoch.count, kScanRows}));
  std::vector<int> which(n);
  const ScanPlan plan;
  for (int i = 0; i < n; ++i) {
    which[i] = i;
    rows[i].x = epoch.x + epoch.order[i] * D;
    rows[i].sample = -1;
  }
  scan_begin(which.data(), n, plan);
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
  Team& team;
  int64_t position = 0, steps = 0, batch = 0;
  double grad_norm_sum = 0, active_sum = 0, touched_sum = 0, mark = 0, last_poll = 0, scale = 0;
  bool stop = false;
  bool dense = false;                   // this step takes the all-active form
  bool tiles = false;                   // this step takes the form for many active neurons
  int proved = 0;                       // rows of this step that a certificate covered
  std::atomic<bool> non_finite{false};  // a score was NaN
  std::atomic<int64_t> bad_sample{std::numeric_limits<int64_t>::max()};  // the least sample that had one
  ScanPlan plan;
  static constexpr int64_t kWindow = 1024;  // rows whose certificates are looked at together
  int64_t window_end = 0;
  std::vector<int64_t> refresh;  // samples of a batch refresh

  static constexpr int kRowChunk = 8;

  Run(Impl& impl, const SdmlpEpoch& e, SdmlpStats& s) : self(impl), epoch(e), stats(s), team(*impl.team) {}

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
    row.certified = row.duplicate = false;
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
        agreed.stop = true;  // where there are other processes, they must stop here too
        stop = !self.cfg.share.exchange;
        if (stop) return;
      }
    }
    batch = std::min(epoch.batch, epoch.count - position);
    // The form of the step depends on exact counts alone, so every way of finding winners takes the same.
    dense = self.dense_form(epoch);
    if (self.threshold_only && !dense) {
      self.threshold_only = false;
      self.certificates.change_gaba(self.gaba, false);
    }
    refresh.clear();
    if (self.certificates.active() && position >= window_end) {
      window_end = std::min(epoch.count, position + kWindow);
      refresh = self.certificates.expiring(epoch.order, position, window_end);
      refresh.erase(std::remove_if(refresh.begin(), refresh.end(), [&](int64_t at) { return !is_here(at); }),
                    refresh.end());
      for (int64_t& at : refresh) at = epoch.order[at];
      if (!refresh.empty()) self.certificates.take_snapshot();
    }
    tiles = !dense && self.tile_form(batch);
    if (refresh.empty()) load_batch();
  }

  void load_batch() {
    self.pending.clear();
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t sample = epoch.order[position + b];
      set_row(static_cast<int>(b), sample);
      // One record of a sample, so no certificate for a row that is not alone with it.
      if (place[sample] >= position) self.rows[b].duplicate = self.rows[place[sample] - position].duplicate = true;
      place[sample] = position + b;
    }
  }
  std::vector<int64_t> place;  // (N,) last position of every sample
  // (count,) by samples: the process that finds the winners of each position; else empty.
  std::vector<uint8_t> owner;
  Agreement agreed;
  bool is_here(int64_t at) const { return owner.empty() || owner[at] == self.cfg.share.rank; }

  void program() {
    next_batch();
    lap(kRefresh);
    while (!stop) {
      if (!refresh.empty()) refresh_records();
      step();
    }
  }

  // Scans the samples whose certificates would run out, many rows to a pass over the weights.
  void refresh_records() {
    take_along(refresh.size());
    for (size_t done = 0; done < refresh.size();) {
      const int n = static_cast<int>(std::min<size_t>(refresh.size() - done, self.rows.size()));
      std::vector<int> which(n);
      for (int i = 0; i < n; ++i) {
        which[i] = i;
        set_row(i, refresh[done + i]);
      }
      const float gap = self.certificates.gap();
      scan_rows(which, gap, coefficients());
      team.for_each((n + kRowChunk - 1) / kRowChunk, [&](int c, int thread) {
        for (int i = c * kRowChunk; i < std::min(n, (c + 1) * kRowChunk); ++i)
          finish(i, i, gap, self.scratch[thread], true, coefficients());
      });
      done += n;
    }
    stats.refreshed += static_cast<int64_t>(refresh.size());
    refresh.clear();
    load_batch();
    lap(kRefresh);
  }

  // Adds samples to a batch refresh or, after the batch's own, to a scan of `rows` rows.
  void take_along(size_t rows) {
    for (const int64_t sample : refresh) listed[sample] = true;
    const auto company = self.certificates.company(static_cast<int64_t>(rows), [&](int64_t sample) {
      return listed[sample] || (refresh.empty() && place[sample] >= position);
    });
    for (const int64_t sample : refresh) listed[sample] = false;
    refresh.insert(refresh.end(), company.begin(), company.end());
  }
  std::vector<bool> listed;  // (N,) scratch

  void scan_rows(const std::vector<int>& which, float gap, const float* coefficients) {
    const int n = static_cast<int>(which.size());
    plan = self.plan_scan(n, coefficients);
    self.scan_begin(which.data(), n, plan);
    team.for_each(plan.groups * plan.parts, [&](int c, int) {
      self.scan(which.data(), n, plan, c / plan.parts, c % plan.parts, gap, coefficients);
    });
  }

  // Ends a scan of one row: its active neurons and, where certificates are in use, its record.
  void finish(int which, int place, float gap, ScratchRow& scratch, bool keep, const float* coefficients) {
    if (!self.finish_scan(which, place, plan, gap, coefficients)) {
      bad_score(self.rows[which].sample);
      return;
    }
    if (keep && gap > 0) {
      const ScanList& list = self.lists[static_cast<size_t>(place) * plan.parts];
      const ScanResult scan{list.index.data(), list.score.data(), list.count, self.rows[which].threshold};
      self.certificates.record(self.rows[which].sample, scan, scratch);
    }
  }

  void bad_score(int64_t sample) {
    int64_t least = bad_sample.load();
    while (sample < least && !bad_sample.compare_exchange_weak(least, sample)) {
    }
    non_finite.store(true);
  }

  void step() {
    if (tiles) {
      tile_step();
      return;
    }
    select();
    if (self.by_samples() && !dense && !stop) {
      const Agreement all = agree([&] { self.gather_rows(&owner[position], static_cast<int>(batch), &agreed); });
      proved = static_cast<int>(all.proved);
    }
    if (self.by_neurons() && !dense && !stop && !non_finite.load()) forward_together();
    if (stop) return;
    if (non_finite.load()) {
      stop = true;
    } else if (dense) {
      dense_step();
    } else {
      list_step();
    }
  }

  // Each row's threshold and active neurons, by certificate or by a scan; outside the all-active phase its losses too.
  void select() {
    const int n = static_cast<int>(batch);
    const bool certify = self.certificates.active();
    if (certify) {
      team.for_each((n + kRowChunk - 1) / kRowChunk, [&](int c, int thread) {
        const int end = std::min(n, (c + 1) * kRowChunk);  // rows of other chunks may be written to meanwhile
        for (int b = c * kRowChunk; b < end; ++b)
          if (is_here(position + b)) certify_row(b, b + 1 < end, self.scratch[thread]);
      });
    }
    int here = 0;
    for (int b = 0; b < n; ++b) {
      here += is_here(position + b);
      if (!self.rows[b].certified && is_here(position + b)) self.pending.push_back(b);
    }
    proved = here - static_cast<int>(self.pending.size());
    if (!self.pending.empty()) self.certificates.take_snapshot();
    lap(kSelect);
    if (proved < here) scan_pending(certify ? self.certificates.gap() : 0.f, coefficients());
    if (self.by_neurons() || (self.by_samples() && dense)) share_thresholds();
    if (!dense || stop || non_finite.load()) return;
    // A row without any positive score breaks the all-active form: this step takes the lists of active neurons.
    for (int b = 0; b < n; ++b) dense = dense && self.rows[b].threshold > 0;
    if (dense) return;
    self.pending.clear();
    for (int b = 0; b < n; ++b)
      if (is_here(position + b)) self.pending.push_back(b);
    scan_pending(0.f, self.gaba.data());
    if (self.by_neurons()) share_thresholds();
  }

  // One exchange that begins with what all processes must see alike; what it comes to.
  template <class Exchange>
  Agreement agree(Exchange&& exchange) {
    agreed.bad_sample = bad_sample.load();
    agreed.proved = proved;
    exchange();
    stop = stop || agreed.stop;
    if (agreed.bad_sample != std::numeric_limits<int64_t>::max()) bad_score(agreed.bad_sample);
    return agreed;
  }

  void share_thresholds() {
    const int n = static_cast<int>(batch);
    const Agreement all = agree([&] {
      if (self.by_neurons()) {
        self.merge_thresholds(n, &agreed);
      } else {
        self.gather_thresholds(&owner[position], n, &agreed);
      }
    });
    proved = static_cast<int>(all.proved);
  }

  void forward_together() {
    const int n = static_cast<int>(batch);
    self.gather_lists(n);
    team.for_each((n + kRowChunk - 1) / kRowChunk, [&](int c, int) {
      for (int b = c * kRowChunk; b < std::min(n, (c + 1) * kRowChunk); ++b) self.forward_gathered(epoch, b, n);
    });
    lap(kForward);
  }

  void certify_row(int b, bool more, ScratchRow& scratch) {
    if (more) self.certificates.prefetch(self.rows[b + 1].sample, self.weight);
    Row& row = self.rows[b];
    int count;
    if (self.rows[b].duplicate ||
        !self.certificates.certify(row.sample, row.x, self.weight, scratch, &count, &row.threshold))
      return;
    row.certified = true;
    if (self.by_neurons()) self.keep_best(row, scratch.score.data(), count, row.threshold);
    if (self.threshold_only) {
      row.count = 0;
      return;
    }
    self.activate(row, scratch.index.data(), scratch.score.data(), count, row.threshold);
    if (!self.by_neurons()) self.forward(epoch, b, static_cast<int>(batch));
  }

  void scan_pending(float gap, const float* coefficients) {
    const int n = static_cast<int>(batch), rest = static_cast<int>(self.pending.size());
    if (gap > 0) take_along(self.pending.size());
    for (size_t i = 0; i < refresh.size(); ++i) {
      self.pending.push_back(n + static_cast<int>(i));
      set_row(self.pending.back(), refresh[i]);
    }
    stats.refreshed += static_cast<int64_t>(refresh.size());
    refresh.clear();
    scan_rows(self.pending, gap, coefficients);
    lap(kScan);
    const int all = static_cast<int>(self.pending.size());
    team.for_each((all + kRowChunk - 1) / kRowChunk, [&](int c, int thread) {
      for (int i = c * kRowChunk; i < std::min(all, (c + 1) * kRowChunk); ++i) {
        const int b = self.pending[i];
        finish(b, i, gap, self.scratch[thread], !self.rows[b].duplicate, coefficients);
        const bool good = !non_finite.load(std::memory_order_relaxed);
        if (i < rest && coefficients == self.gaba.data() && good && !self.by_neurons()) self.forward(epoch, b, n);
      }
    });
    lap(kForward);
  }

  // One step with many neurons active (forms/tiles.cpp).
  void tile_step() {
    const int n = static_cast<int>(batch);
    proved = 0;
    self.tile_begin(epoch, n);
    team.for_each((n + kRowChunk - 1) / kRowChunk,
                  [&](int c, int) { self.tile_load(c * kRowChunk, std::min(n, (c + 1) * kRowChunk)); });
    self.kernel.tile_slice(self.tiles.inputs.data(), n, self.D, self.tiles.sliced.data());
    lap(kSelect);
    team.for_each(kUpdateChunks, [&](int c, int) {
      const int row = self.tile_scores(c);
      if (row >= 0) bad_score(self.rows[row].sample);
    });
    lap(kScan);
    if (non_finite.load()) {
      stop = true;
      return;
    }
    team.for_each(self.tiles.columns / kTileColumns, [&](int c, int) { self.tile_forward(epoch, c); });
    lap(kForward);
    team.for_each(kUpdateChunks, [&](int c, int) { self.tile_backward(c, epoch.penalty); });
    update_step();
  }

  void list_step() {
    const int n = static_cast<int>(batch);
    team.for_each(kUpdateChunks, [&](int c, int) { self.backward(c, n, epoch.penalty); });
    update_step();
  }

  // Clips and applies the touched neurons' gradients.
  void update_step() {
    if (self.by_neurons()) touched_sum += self.gather_norms(false);
    if (!clip(0.0)) return;
    lap(kBackward);
    team.for_each(kUpdateChunks, [&](int c, int) { self.update(c, static_cast<float>(scale), epoch.penalty); });
    self.products_valid = false;
    for (const UpdateChunk& chunk : self.chunks) {
      if (!self.by_neurons()) touched_sum += static_cast<double>(chunk.neuron.size());
      if (self.all_active())
        for (int32_t j : chunk.neuron) self.highest_count = std::max(self.highest_count, self.counts[j]);
    }
    end_step();
  }

  // One step with every neuron active (forms/all_active.cpp).
  void dense_step() {
    const int n = static_cast<int>(batch);
    if (!self.products_valid) {
      team.for_each(kUpdateChunks, [&](int c, int) { self.dense_prepare(c); });
      self.dense_collect();
    }
    team.for_each((n + kRowChunk - 1) / kRowChunk, [&](int c, int) {
      for (int b = c * kRowChunk; b < std::min(n, (c + 1) * kRowChunk); ++b) self.dense_forward(epoch, b, n);
    });
    team.for_each(static_cast<int>(self.C), [&](int c, int) { self.dense_gradient(c, n); });
    lap(kDense);
    team.for_each(kUpdateChunks, [&](int c, int) { self.dense_output_gradient(c); });
    if (self.by_neurons()) self.gather_norms(true);
    const double weight_norm2 = self.dense_weight_norm2();
    if (!clip(weight_norm2 < 0 ? 0.0 : weight_norm2)) return;  // rounding may leave it below 0
    lap(kBackward);
    team.for_each(kUpdateChunks, [&](int c, int) { self.dense_update(c, static_cast<float>(scale), n); });
    self.dense_collect();
    self.highest_count += n;
    touched_sum += static_cast<double>(self.all_neurons());
    end_step();
  }

  // The clipping factor, from the ranges' squared norms and what is in none of them. False, and the call ends, where
  // the loss, the norm or the update is not finite: nothing has been changed by this step then.
  bool clip(double norm2) {
    for (const UpdateChunk& chunk : self.chunks) norm2 += chunk.norm2;
    const double norm = std::sqrt(norm2);
    scale = std::min(1.0, self.cfg.max_grad_norm / (norm + 1e-6));
    double loss = 0;
    for (int64_t b = 0; b < batch; ++b) loss += self.rows[b].ce + self.rows[b].kd_hidden + self.rows[b].kd_logits;
    const double speed = self.cfg.momentum * self.speed + scale * norm;
    if (!std::isfinite(loss) || !std::isfinite(norm) || !(self.cfg.lr * speed <= kLongestStep)) {
      stats.failure = explain(norm);
      stop = true;
      return false;
    }
    if (!self.weight_velocity.empty()) self.speed = speed;
    grad_norm_sum += norm;
    return true;
  }

  // What is not finite in a step that cannot be taken, and where.
  SdmlpFailure explain(double norm) const {
    for (int64_t b = 0; b < batch; ++b) {
      const Row& row = self.rows[b];
      if (!std::isfinite(row.ce)) return {"cross-entropy", row.sample};
      if (!std::isfinite(row.kd_hidden)) return {"hidden distillation", row.sample};
      if (!std::isfinite(row.kd_logits)) return {"logit distillation", row.sample};
    }
    if (std::isfinite(norm)) return {"learning rate times the gradient"};
    if (dense) return {"norm of the gradient"};
    for (const UpdateChunk& chunk : self.chunks) {
      for (size_t s = 0; s < chunk.neuron.size(); ++s) {
        if (!std::isfinite(self.kernel.square_norm(&chunk.gradient[s * self.D], self.D)))
          return {"gradient of weight", -1, self.cfg.share.first + chunk.neuron[s]};
        if (!std::isfinite(self.kernel.square_norm(&chunk.output_gradient[s * self.Cp], self.Cp)))
          return {"gradient of output_weight", -1, self.cfg.share.first + chunk.neuron[s]};
      }
    }
    for (size_t j = 0; epoch.penalty && j < self.pull_norm2.size(); ++j)
      if (!std::isfinite(self.pull_norm2[j])) return {"gradient of the penalty", -1, static_cast<int64_t>(j)};
    return {"norm of the gradient"};
  }

  void end_step() {
    double active = 0;
    for (int64_t b = 0; b < batch; ++b) {
      const Row& row = self.rows[b];
      stats.ce += row.ce;
      stats.kd_hidden += row.kd_hidden;
      stats.kd_logits += row.kd_logits;
      active += row.count;
    }
    active_sum += active;
    self.recent_active = active / static_cast<double>(batch);
    for (const UpdateChunk& chunk : self.chunks) self.certificates.merge(chunk.delta);
    stats.scanned += batch - proved;
    stats.certified += proved;
    self.certificates.step_done(batch);
    position += batch;
    ++steps;
    next_batch();
    lap(kUpdate);
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
    stats.sent = std::exchange(self.sent, 0);
    stats.received = std::exchange(self.received, 0);
    stats.exchanges = std::exchange(self.exchanges, 0);
    stats.exchange_seconds = std::exchange(self.exchange_seconds, 0.0);
    double scored = 0, examined = 0;
    for (ScratchRow& scratch : self.scratch) {
      scored += static_cast<double>(scratch.scored);
      examined += static_cast<double>(scratch.examined);
      scratch.scored = scratch.examined = 0;
    }
    stats.scored = scored / std::max<double>(1.0, static_cast<double>(stats.certified));
    stats.examined = examined / std::max<double>(1.0, static_cast<double>(stats.certified));
    if (non_finite.load()) stats.failure = {"score", bad_sample.load()};
  }
};

SdmlpStats SdmlpTrainer::train(const SdmlpEpoch& epoch, int threads) {
  Impl& self = *impl_;
  const InUse use(self.busy);
  const FloatMode mode;
  SdmlpStats stats;
  const size_t rows = static_cast<size_t>(std::max<int64_t>(epoch.batch, 256)) + Certificates::kCompanyMost;
  if (self.rows.size() < rows) self.rows.resize(rows);
  self.y.resize(rows * self.Cp);
  self.dy.resize(rows * self.Cp);

  if (self.cfg.share.exchange) self.agree_on_call(epoch);
  if (epoch.penalty) self.prepare_penalty(*epoch.penalty);
  const bool dense = self.dense_form(epoch);
  if (self.threshold_only != dense) {
    self.threshold_only = dense;
    self.certificates.change_gaba(dense ? self.ones : self.gaba, dense);
  }
  if (!self.cfg.exhaustive && !dense && self.last_active > 1e29) self.last_active = self.measure_active(epoch);

  self.use_threads(threads);
  if (static_cast<int64_t>(self.likely.size()) != epoch.samples * (self.K + 1))
    self.likely.assign(epoch.samples * (self.K + 1), -1);
  Impl::Run run(self, epoch, stats);
  run.mark = run.last_poll = now();
  run.place.assign(epoch.samples, -1);
  run.listed.assign(epoch.samples, false);
  if (self.by_samples()) run.owner = self.share_batches(epoch);
  if (!self.cfg.exhaustive) {
    self.certificates.bind(epoch.x, epoch.samples, self.likely.data());
    if (self.certificates.begin_epoch(dense ? static_cast<double>(self.K) : self.last_active)) self.begin_era();
  }
  try {
    run.program();
  } catch (...) {  // no memory: a step may have been broken off, so nothing proved before holds
    self.write_output();
    self.load_state();
    throw;
  }
  run.finish_stats();
  if (stats.steps > 0) self.last_active = stats.active_per_row;
  if (!self.cfg.exhaustive) self.certificates.end_epoch(stats.certified);
  self.write_output();
  return stats;
}

}  // namespace ssd::cpu

// The step loop: select winners -> forward and losses -> gradients by ranges of neurons -> clip and update.
// One thread runs it, and cuts each phase into chunks for all of them (ssd/team.h).
#include "engine/run.h"

#include <algorithm>

#include "ssd/float_mode.h"

namespace ssd::cpu {

void SdmlpTrainer::Impl::Run::program() {
  next_batch();
  lap(kRefresh);
  while (!stop) {
    if (!refresh.empty()) refresh_records();
    step();
  }
}

void SdmlpTrainer::Impl::Run::next_batch() {
  if (non_finite.load() || position >= epoch.count) {
    stop = true;
    return;
  }
  const double time = now();
  if (epoch.interrupted && time - last_poll > kPollSeconds) {
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
    window_end = std::min(epoch.count, position + kLookAhead);
    refresh = self.certificates.expiring(epoch.order, position, window_end);
    refresh.erase(std::remove_if(refresh.begin(), refresh.end(), [&](int64_t at) { return !is_here(at); }),
                  refresh.end());
    for (int64_t& at : refresh) at = epoch.order[at];
    if (!refresh.empty()) self.certificates.take_snapshot();
  }
  tiles = !dense && self.tile_form(batch);
  if (refresh.empty()) load_batch();
}

void SdmlpTrainer::Impl::Run::load_batch() {
  self.pending.clear();
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t sample = epoch.order[position + b];
    set_row(static_cast<int>(b), sample);
    // One record of a sample, so no certificate for a row that is not alone with it.
    if (place[sample] >= position) self.rows[b].duplicate = self.rows[place[sample] - position].duplicate = true;
    place[sample] = position + b;
  }
}

void SdmlpTrainer::Impl::Run::step() {
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

void SdmlpTrainer::Impl::Run::end_step() {
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

void SdmlpTrainer::Impl::Run::finish_stats() {
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
  stats.sent = self.sent;
  stats.received = self.received;
  stats.exchanges = self.exchanges;
  stats.exchange_seconds = self.exchange_seconds;
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

SdmlpStats SdmlpTrainer::train(const SdmlpEpoch& epoch, int threads) {
  Impl& self = *impl_;
  const InUse use(self.busy);
  const FloatMode mode;
  SdmlpStats stats;
  const size_t rows =
      static_cast<size_t>(std::max(epoch.batch, EnginePolicy::kRefreshRows)) + Certificates::kCompanyMost;
  if (self.rows.size() < rows) self.rows.resize(rows);
  self.y.resize(rows * self.Cp);
  self.dy.resize(rows * self.Cp);

  if (self.cfg.share.exchange) {
    self.sent = self.received = self.exchanges = 0;  // of infer()
    self.exchange_seconds = 0;
    self.agree_on_call(epoch);
  }
  if (epoch.penalty) self.prepare_penalty(*epoch.penalty);
  const bool dense = self.dense_form(epoch);
  if (self.threshold_only != dense) {
    self.threshold_only = dense;
    self.certificates.change_gaba(dense ? self.ones : self.gaba, dense);
  }
  if (!self.cfg.exhaustive && !dense && self.last_active >= kUnknownActive)
    self.last_active = self.measure_active(epoch);

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

// The winners of a batch: by certificate where there is one, by a scan for the other rows, and which samples a scan
// takes along so that their records are renewed.
#include <algorithm>

#include "engine/run.h"

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

// Scans the samples whose certificates would run out, many rows to a pass over the weights.
void SdmlpTrainer::Impl::Run::refresh_records() {
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
void SdmlpTrainer::Impl::Run::take_along(size_t rows) {
  for (const int64_t sample : refresh) listed[sample] = true;
  const auto company = self.certificates.company(static_cast<int64_t>(rows), [&](int64_t sample) {
    return listed[sample] || (refresh.empty() && place[sample] >= position);
  });
  for (const int64_t sample : refresh) listed[sample] = false;
  refresh.insert(refresh.end(), company.begin(), company.end());
}

void SdmlpTrainer::Impl::Run::scan_rows(const std::vector<int>& which, float gap, const float* coefficients) {
  const int n = static_cast<int>(which.size());
  plan = self.plan_scan(n, coefficients);
  self.scan_begin(which.data(), n, plan);
  team.for_each(plan.groups * plan.parts, [&](int c, int) {
    self.scan(which.data(), n, plan, c / plan.parts, c % plan.parts, gap, coefficients);
  });
}

// Ends a scan of one row: its active neurons and, where certificates are in use, its record.
void SdmlpTrainer::Impl::Run::finish(int which, int place, float gap, ScratchRow& scratch, bool keep,
                                     const float* coefficients) {
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

void SdmlpTrainer::Impl::Run::bad_score(int64_t sample) {
  int64_t least = bad_sample.load();
  while (sample < least && !bad_sample.compare_exchange_weak(least, sample)) {
  }
  non_finite.store(true);
}

// Each row's threshold and active neurons, by certificate or by a scan; outside the all-active phase its losses too.
void SdmlpTrainer::Impl::Run::select() {
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

void SdmlpTrainer::Impl::Run::certify_row(int b, bool more, ScratchRow& scratch) {
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

void SdmlpTrainer::Impl::Run::scan_pending(float gap, const float* coefficients) {
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

void SdmlpTrainer::Impl::Run::share_thresholds() {
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

void SdmlpTrainer::Impl::Run::forward_together() {
  const int n = static_cast<int>(batch);
  self.gather_lists(n);
  team.for_each((n + kRowChunk - 1) / kRowChunk, [&](int c, int) {
    for (int b = c * kRowChunk; b < std::min(n, (c + 1) * kRowChunk); ++b) self.forward_gathered(epoch, b, n);
  });
  lap(kForward);
}

}  // namespace ssd::cpu

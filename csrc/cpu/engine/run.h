// One call of train(): what it adds to the trainer's state while it lasts.
//   run.cpp      batches, and what an epoch reports     winners.cpp  certificates, scans and batch refreshes
//   step.cpp     the three forms of a step, and clipping
#pragma once

#include <atomic>
#include <limits>
#include <vector>

#include "engine/state.h"

namespace ssd::cpu {

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
  int64_t window_end = 0;        // position up to which certificates have been looked at
  std::vector<int64_t> refresh;  // samples of a batch refresh
  std::vector<int64_t> place;    // (N,) last position of every sample
  std::vector<bool> listed;      // (N,) scratch of take_along
  std::vector<uint8_t> owner;    // (count,) by samples: the process that finds the winners of each position; else empty
  Agreement agreed;

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

  bool is_here(int64_t at) const { return owner.empty() || owner[at] == self.cfg.share.rank; }
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

  // ---- run.cpp
  void program();     // steps until the epoch ends, a score is NaN or the caller interrupts
  void next_batch();  // takes the next batch, or stops
  void load_batch();
  void step();
  void end_step();
  void finish_stats();

  // ---- winners.cpp
  void refresh_records();
  void take_along(size_t rows);
  void scan_rows(const std::vector<int>& which, float gap, const float* coefficients);
  void finish(int which, int place, float gap, ScratchRow& scratch, bool keep, const float* coefficients);
  void bad_score(int64_t sample);
  void select();
  void certify_row(int b, bool more, ScratchRow& scratch);
  void scan_pending(float gap, const float* coefficients);
  void share_thresholds();
  void forward_together();

  // ---- step.cpp
  void list_step();
  void tile_step();
  void dense_step();
  void update_step();
  bool clip(double norm2);
  SdmlpFailure explain(double norm) const;
};

}  // namespace ssd::cpu

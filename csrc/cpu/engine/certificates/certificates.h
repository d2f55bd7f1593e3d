// Drift certificates: the exact winners of a sample, and the proof that no other neuron can be active, from a short
// list of candidates. Why it is exact, and the rounding slack, is derived in ssd_kernels/sdmlp_trainer/README.md.
//
// Inputs stay fixed and rows are unit vectors, so a score moves by at most its row's movement. Training moves rows to
// and fro, so distances count, not path lengths: time is cut into eras of about a pass over the samples, and for row j
//   e_j(t) = ||w_j(t) - w_j(era's start)||
//   P_j = sum of e_j at the ends of past eras
//   U_j = P_j + e_j, L_j = P_j - e_j
//   s_j(t) <= s_j(r) + U_j(t) - L_j(r)
// A record of a sample, made by a scan at time r, holds its candidates Q in blocks of falling margin s_j - g_j I, with
// the bound s_j - L_j of each; the bounds of the movers Z (neurons that move fast, one set for all samples); and the
// largest margin of all others. Later, K + 1 likely winners are scored; their lowest score v bounds the threshold
// from below; candidates and movers whose upper bound exceeds g v are scored too. All others fall in two tiers by their
// drift from the record's snapshot: the far list F of the snapshot holds each neuron that drifted far, and these are
// looked at one by one; what did not is dismissed by one inequality with delta, the largest drift of the rest: two rows
// at most delta from the same point are at most the sum of what delta was then and is now apart.
//   certificates.cpp  what lasts: samples, records, epochs      movement.cpp  drifts, movers, snapshots, far lists
//   proof.cpp         a sample's certificate                    record.cpp    a sample's record, from a scan
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <vector>

#include "engine/kernels.h"

namespace ssd::cpu {

// The least float that is not below value.
inline float round_up(double value) {
  const float rounded = static_cast<float>(value);
  return rounded < value ? std::nextafterf(rounded, std::numeric_limits<float>::max()) : rounded;
}

// Per-thread scratch of one row's selection.
struct ScratchRow {
  std::vector<int32_t> kept, place, index;
  std::vector<float> score, order;
  int64_t scored = 0, examined = 0;  // neurons scored, and bounds looked at, by certified rows
};

// The numbers that decide how much is kept and when it is renewed: they change speed, never a bit of a result. "Gap" is
// how far below a neuron's threshold a scan keeps it.
struct CertificatePolicy {
  static constexpr int kSnapshots = 16;  // live snapshots: a cache line of places per neuron
  static constexpr int kEraPasses = 1;   // passes over the samples that an era lasts: rows turn back within a few steps
  static constexpr int kBlock = 16;      // candidates per block of falling margin: a cache line
  static constexpr int kRetry = 8;       // most epochs without another try for a sample with too many active neurons
  static constexpr int kMovers = 512;    // most movers: each costs every record 4 bytes, and every certificate a look
  static constexpr int kUsual = 512;     // candidates of most records: what a scan with a good gap keeps
  static constexpr int kLongest = 2048;  // candidates of a record with many active neurons; more cost what a scan does
  static constexpr int kShortest = 64;   // where memory is short, lists shorten to this before samples go without

  static constexpr float kGap = 0.1f, kGapLeast = 0.005f, kGapMost = 0.5f;  // the first gap, and its bounds
  static constexpr float kMoves = 0.02f;  // in gaps, in one era: from there on a neuron may be a mover
  static constexpr float kFaster = 4;     // how much farther than a mover another neuron gets before it takes its place

  // A drift of this many gaps makes a neuron one of the far ones. It doubles where a list reaches a quarter and each
  // half of its room, so that a collective drift does not fill it with neurons that are hardly far.
  static constexpr float kFar = 0.03f;
  static constexpr int kFarMost = 1024;  // looked at by every certificate of the snapshot: 1 us
  static constexpr int kFarShare = 16;   // at most one neuron of so many: where more drift far, the drift is collective
  static constexpr int kFarScored = 256;  // scored by one certificate: more cost what a row of a shared scan does
  static constexpr int kFarBounds = 64;   // of these a record keeps bounds of its own, once they were scored: a few are
                                          // near a sample, and stay near
  static constexpr int kFarSnapshot = 32;  // from there on a new snapshot is worth its slot, however small delta is
  // A scan is one pass over W, so it takes samples along whose records have used up three quarters of their room: one
  // for so many bytes of W, since a row costs its products too.
  static constexpr int64_t kCompanyBytes = 1 << 16;
  static constexpr int kCompanyMost = 32;
  static constexpr float kCompanyRoom = 0.25f;
  static constexpr float kDrifted = 0.05f, kDriftedAgain = 0.25f;  // or from this growth of delta on, in gaps: the
                                                                   // first snapshot of an epoch, and others
};

// What a scan of one sample kept: all neurons with s > g * threshold - gap.
struct ScanResult {
  const int32_t* index;
  const float* score;
  int count;
  float threshold;
};

class Certificates : public CertificatePolicy {
 public:
  // A neuron that drifted far from a snapshot in this step.
  struct Far {
    int32_t neuron;
    int slot;
    float drift;
  };
  // What the updates of one range of neurons did in one step.
  struct Delta {
    float value[kSnapshots] = {};
    double path_max = 0;
    std::vector<Far> far;

    void clear() {
      std::fill(value, value + kSnapshots, 0.f);
      path_max = 0;
      far.clear();
    }
  };

  void configure(int64_t neurons, int64_t inputs, int64_t k, int64_t cache_bytes, const SdmlpKernels& kernel);
  // Forgets everything: the inputs or the weights changed.
  void reset();
  // Binds the records to these samples; forgets them when they are not the ones of the last call.
  // likely (N, K + 1): neurons likely to be at or above a sample's threshold, kept by every scan and certificate.
  void bind(const float* x, int64_t samples, int32_t* likely);
  void set_gaba(const std::vector<float>& gaba);
  // Goes over to other coefficients: records made for the old ones are forgotten, until the next epoch none are made.
  // all_move: from now on every neuron moves in every step, so none is followed apart as a far one.
  void change_gaba(const std::vector<float>& gaba, bool all_move);

  // ---- Once per epoch, one thread.
  // Decides whether certificates are worth trying. True when a new era begins: distances count from now on.
  bool begin_epoch(double active_per_row);
  // The positions of order[begin, end) that a batch refresh should take now: their slack may run out before their turn.
  std::vector<int64_t> expiring(const int64_t* order, int64_t begin, int64_t end);
  void end_epoch(int64_t certified);
  // The samples that a scan of `rows` rows should take along: their records are the nearest to failing. Not those with
  // busy(sample).
  std::vector<int64_t> company(int64_t rows, const std::function<bool(int64_t)>& busy) const;
  bool active() const { return active_; }
  float gap() const { return gap_; }
  // Before a scan that makes records: the snapshot it belongs to, and how far below the threshold it keeps neurons.
  void take_snapshot();

  // ---- Per row, any thread; a sample may be used by one thread at a time.
  // The sample's candidates that can matter, scored: scratch.index / scratch.score, and the exact threshold.
  // False when there is no proof: scan then.
  bool certify(int64_t sample, const float* x, const float* weight, ScratchRow& scratch, int* count, float* threshold);
  // Asks for what certify will read of this sample, ahead of time.
  void prefetch(int64_t sample, const float* weight) const;
  // Records a scan.
  void record(int64_t sample, const ScanResult& scan, ScratchRow& scratch);

  // ---- Per updated row; the thread that owns the neuron.
  // A bound of the row's distance from where it was at the era's start, before and after an update.
  double distance(int64_t neuron) const { return distance_[neuron]; }
  void moved(int64_t neuron, double distance, float gaba, Delta* delta);
  // Asks for what moved() will read and write, ahead of time.
  void prefetch_moved(int64_t neuron) const;
  // Readies what a range's updates of one step add to.
  void begin_moves(Delta* delta) const;
  void merge(const Delta& delta);
  // After the merges of a step.
  void step_done(int64_t rows);

 private:
  struct Record {
    int32_t snapshot = -1;        // id; stale when no slot carries it
    float threshold = 0;          // I(r)
    float last = 0;               // threshold when last seen
    float outside = 0;            // largest margin outside Q and Z at r
    float strayed = 0;            // the snapshot's delta at r
    int32_t known = 0;            // neurons of the snapshot's far list at r
    int32_t count = 0;            // candidates
    int32_t extras = 0;           // far neurons with a bound of their own
    int32_t wait = 0, retry = 0;  // a list was too long: epochs to wait, and the epoch in which a scan tries again
  };
  struct Snapshot {
    int32_t id = -1;
    int movers = 0;    // the first ones of Z that its records hold bounds of
    float delta = 0;   // largest U_j(t) - P_j(r) outside those and the far list since it was taken
    float level = 0;   // the drift that makes a neuron one of the far list
    float start = 0;   // what it was then
    float before = 0;  // the same when expiring() was last asked, and the rows trained then
    int64_t before_rows = 0;
    float gaba_min = 0;
    int far_start = 0;  // neurons that were far when it was taken
    int64_t taken = 0;  // rows trained when it was taken
  };
  // The neurons that drifted far from a snapshot. It only grows: a record knows a part of it, those that were in it at
  // r. For neurons of that part `peak` bounds the drift at r, for the others the record's `strayed` does.
  struct FarList {
    std::vector<int32_t> neuron;
    std::vector<float> drift, peak;  // U_j(t) - P_j(r), and the largest it was since the neuron's entry
    float most_drift = 0, most_peak = 0;
  };
  // One visit of a sample: what certify() has found out so far.
  struct Visit {
    Record* record;
    int slot;
    const float *x, *weight;
    ScratchRow* scratch;
    int32_t *hints, *candidates, *extras;
    float *bounds, *margins, *mover_bounds, *extra_bounds;
    int fresh = 0;                            // far neurons that get a bound in the record
    int found = 0, scored = 0, examined = 0;  // neurons listed, those with a score, candidates looked at
    float floor = 0;                          // the (K + 1)-th largest score: a lower bound of the threshold
  };
  int slot_of(const Record& record) const {
    const int slot = record.snapshot >= 0 ? record.snapshot % kSnapshots : 0;
    return record.snapshot >= 0 && snapshots_[slot].id == record.snapshot ? slot : -1;
  }
  double nearest(int64_t neuron) const { return past_[neuron] - distance_[neuron]; }  // L
  float room(const Record& record, const Snapshot& snapshot, float threshold) const;
  float need(const Record& record, const Snapshot& snapshot, float threshold) const;
  float rest(const Visit& visit) const;
  float room_left(int64_t sample) const;
  bool start(Visit* visit, int64_t sample);
  void add(Visit* visit, int32_t neuron, int32_t place) const;
  bool listed(const Visit& visit, int32_t neuron, int from) const;
  bool score(Visit* visit) const;
  void examine(Visit* visit, int end) const;
  void examine_movers(Visit* visit) const;
  void examine_extras(Visit* visit) const;
  bool examine_far(Visit* visit) const;
  void renew(Visit* visit) const;
  struct Survivors {
    float highest;  // margin
    int active;
  };
  Survivors measure(int64_t sample, const ScanResult& scan, ScratchRow& scratch);
  int sort_candidates(int64_t sample, const ScanResult& scan, const Survivors& survivors, int room, ScratchRow& scratch,
                      float* outside);
  // Whether the snapshot's records hold a bound of the mover at this place (-1: not a mover), not of the one before.
  bool covers(const Snapshot& snapshot, int place) const {
    return place >= 0 && place < snapshot.movers && mover_since_[place] <= snapshot.id;
  }
  void drift(int64_t neuron, double past, float path, Delta* delta);
  size_t far_most() const;
  void most_far(int slot);
  bool add_far(int slot, int32_t neuron, float drift);
  void forget_far(int slot);
  bool worth_a_snapshot();
  void choose_gap();
  void forget_movers();
  void choose_movers(bool replace);
  bool replace_mover(int32_t place, int32_t neuron);
  void forget_snapshots();
  template <class Body>
  void for_each_moved(Body&& body) const {
    for (size_t w = 0; w < moved_.size(); ++w)
      for (uint64_t word = moved_[w]; word; word &= word - 1)
        body(static_cast<int64_t>(w) * 64 + __builtin_ctzll(word));
  }
  void update_slack();

  int64_t neurons_ = 0, inputs_ = 0, k_ = 0, cache_bytes_ = 0;
  const SdmlpKernels* kernel_ = nullptr;
  const float* x_ = nullptr;
  int64_t samples_ = 0, recorded_ = 0;  // records exist for the first recorded_ samples
  int capacity_ = 0, movers_max_ = 0;   // room of a record: candidates, of which most samples fill `usual_`, and movers
  int usual_ = 0;
  size_t far_room_ = 0;  // of a far list

  std::vector<double> past_, distance_;  // (R,) P and e
  std::vector<float> path_gaba_;         // (R, 2) U rounded up, coefficient
  std::vector<float> farthest_;          // (R,) largest e of the era
  std::unique_ptr<float[]> base_;        // (R, kSnapshots) P at each snapshot; left as allocated, as those below
  std::vector<int32_t> stamp_of_;        // (R,) newest snapshot whose base_ is set
  std::vector<uint64_t> moved_;          // neurons that moved in this era
  Snapshot snapshots_[kSnapshots];
  FarList far_[kSnapshots];
  std::vector<uint16_t> in_far_;                // (R,) bit s: in the far list of snapshot s
  std::unique_ptr<int32_t[]> far_place_;        // (R, kSnapshots) place in it
  std::atomic<int32_t> held_[kSnapshots] = {};  // live records of each snapshot
  int32_t generation_ = 0;                      // snapshots taken: ids grow, and id % kSnapshots is the slot
  int newest_ = -1;
  int64_t newest_epoch_ = -1, epoch_ = 0;
  int64_t rows_ = 0;      // rows trained so far
  int64_t era_rows_ = 0;  // the same when the era began
  int taken_ = 0;         // snapshots taken in newest_epoch_
  double path_max_ = 0;
  float slack_ = 0;  // rounding of scores, path lengths and margins

  std::vector<int32_t> movers_, mover_place_;  // (|Z|,), (R,) place in Z or -1
  std::vector<float> mover_path_, mover_gaba_;
  // (|Z|,) The neuron that had a place before, -1: none; least id of the snapshots whose records know the present one.
  std::vector<int32_t> mover_before_, mover_since_;
  std::vector<int32_t> replaced_;  // places that changed hands

  std::vector<Record> records_;
  int32_t* likely_ = nullptr;
  // Left as allocated: only the pages that records fill are ever touched.
  std::unique_ptr<int32_t[]> candidates_;  // (N, capacity)
  std::unique_ptr<float[]> bounds_;        // (N, capacity)
  std::unique_ptr<float[]> margins_;       // (N, capacity / kBlock) largest margin of a block and all after it, at r
  std::unique_ptr<float[]> mover_bounds_;  // (N, movers_max)
  std::unique_ptr<int32_t[]> extras_;      // (N, kFarBounds)
  std::unique_ptr<float[]> extra_bounds_;  // (N, kFarBounds)
  std::vector<int64_t> near_;              // samples of this epoch that had used up half of their room, or more
  std::vector<int32_t> stamp_;             // (N,) last epoch that listed the sample

  bool active_ = false;
  float gap_ = kGap;
  // Records made since gap_ was set, those whose list overflowed, and where it then ended (in units of 2^-30).
  std::atomic<int64_t> made_{0}, overflowed_{0}, reach_{0};
  int64_t live_ = 0;  // listed samples with a live record at the start of the epoch
  int backoff_ = 0, wait_ = 0;
};

}  // namespace ssd::cpu

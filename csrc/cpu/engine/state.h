// The SDMLP trainer's state and the parts of one step. Plain C++: the inner loops are in kernels.h.
//   run.cpp     the step loop (run.h)             scan.cpp                       exact winners by scanning
//   winners.cpp a batch's winners                 certificates/certificates.cpp  exact winners without scanning
//   step.cpp    the three forms of a step         forms/all_active.cpp           the phase with every neuron active
//   loss.cpp    outputs, losses, gradients        forms/tiles.cpp                the form for many active neurons
//   update.cpp  gradients, update of the rows     trainer.cpp                    state and inference
//   processes.cpp  what several processes that train one model exchange
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

#include "engine/certificates/certificates.h"
#include "engine/era.h"
#include "engine/kernels.h"
#include "engine/pages.h"
#include "engine/policy.h"
#include "ssd/sdmlp_trainer.h"
#include "ssd/team.h"

namespace ssd::cpu {

// One sample of the batch: its threshold and its active neurons, ascending.
struct Row {
  const float* x = nullptr;
  int64_t sample = -1;  // -1: not one of the training samples
  float threshold = 0;
  bool certified = false;
  bool duplicate = false;        // its sample stands in the batch twice
  int count = 0;                 // active neurons
  std::vector<int32_t> top;      // after a scan: K + 1 neurons at or above the threshold
  std::vector<int32_t> index;    // (count,)
  std::vector<float> h, dh;      // (count,) activation, and the loss's gradient
  std::vector<double> terms;     // scratch of the hidden loss
  std::vector<int> chunk_begin;  // (kUpdateChunks + 1,) where each chunk of neurons begins in index
  double ce = 0, kd_hidden = 0, kd_logits = 0;
  // Shared by neurons: the K + 1 best scores here; then, of all processes' active neurons, where each one's column of V
  // stands in gathered_output, and which entries are those of the neurons here.
  std::vector<float> best;
  std::vector<int32_t> slot;
  int own_begin = 0, own_end = 0;

  void reserve(int64_t entries) {
    if (static_cast<int64_t>(index.size()) < entries) {
      index.resize(entries);
      h.resize(entries);
      dh.resize(entries);
    }
  }
};

// Survivors of a scan over a range of neurons for one row: (neuron, score), ascending, and the K + 1 best scores.
struct ScanList {
  std::vector<int32_t> index;
  std::vector<float> score;
  std::vector<float> heap;  // min-heap of the K + 1 best scores
  float floor = -1;         // lower bound of the row's threshold; -1: none yet
  int count = 0;
};

// Neurons are updated in this many ranges, whatever the number of threads: the sums of norms follow their order.
constexpr int kUpdateChunks = 16;
constexpr double kLongestStep = 1e38;    // of both layers together: beyond it a weight may leave fp32
constexpr double kUnknownActive = 1e30;  // active neurons per row before any were counted

// The neurons of one range that a step touched, ascending, with their gradients.
struct UpdateChunk {
  int64_t begin = 0, end = 0;    // neurons
  std::vector<uint64_t> bitmap;  // touched neurons of the range
  std::vector<int32_t> slot_of;  // (end - begin,) valid for touched neurons
  std::vector<int32_t> neuron;   // (slots,)
  std::vector<int32_t> first;    // (slots + 1,) where a slot's samples begin
  std::vector<int32_t> row;      // (pairs,) batch rows, ascending within a slot
  std::vector<float> h, dh;      // (pairs,)
  Floats gradient;               // (slots, D)
  Floats output_gradient;        // (slots, Cp)
  std::vector<float> pull;       // (D,) scratch: a row's penalty gradient
  std::vector<float> old_row;    // (D,) scratch: a row before its step
  Floats coef;                   // scratch: gradients of some neurons over all batch rows, 0 where silent
  double norm2 = 0;              // squared norm of the range's gradients
  std::vector<const float*> x;   // scratch of one slot
  EraRows era;
  Certificates::Delta delta;
};

// Marks the trainer as in use; throws where another call, of another thread or of a callback, is using it.
class InUse {
 public:
  explicit InUse(std::atomic<bool>& busy) : busy_(busy) {
    if (busy_.exchange(true)) throw std::logic_error("the engine is in use by another call: one at a time");
  }
  ~InUse() { busy_.store(false); }
  InUse(const InUse&) = delete;
  InUse& operator=(const InUse&) = delete;

 private:
  std::atomic<bool>& busy_;
};

// What all processes must see alike before a step: whether one was asked to stop, the least sample with a bad score
// (the largest number: none), and the rows that certificates covered (by samples: of all, by neurons: of the least).
struct Agreement {
  int64_t stop = 0, bad_sample = 0, proved = 0;
};

struct SdmlpTrainer::Impl : EnginePolicy {
  Impl(const SdmlpConfig& config, float* weight, float* output_weight, int64_t* counts);

  // ---- State.
  SdmlpConfig cfg;
  const SdmlpKernels& kernel;
  int64_t R, D, C, K;
  int Cp;                                   // C rounded up to whole vectors
  float *weight, *output_weight;            // (R, D), (C, R): the caller's
  int64_t* counts;                          // (R,)
  Floats output;                            // (R, Cp) output_weight transposed, padded with 0
  std::vector<float> gaba;                  // (R,)
  Floats weight_velocity, output_velocity;  // (R, D), (R, Cp); empty without momentum
  std::vector<uint8_t> in_motion;           // (R,) 1 where a velocity is not 0
  double speed = 0;                         // a bound of the norm of both velocities together
  // The quadratic penalty of this call: output parts transposed to (R, Cp), rows that it pulls at all, and the squared
  // norm of each row's pull, so that rows no sample touches cost one pass a step and not two.
  Floats output_importance, output_anchor;
  std::vector<uint8_t> pulled;
  std::vector<double> pull_norm2;
  // The all-active phase (forms/all_active.cpp): products of the model, kept up to date by every dense update.
  struct Products {
    Floats vw;               // (C, D) V W
    std::vector<double> vg;  // (C,) V g
    Floats vv;               // (C, Cp) V V^T
  };
  Products products;
  std::vector<Products> range_products;  // of each range of neurons
  bool products_valid = false;
  Floats dense_m;                      // (Cp, D) G^T X, rows past C are 0
  std::vector<double> dense_q;         // (C,) G^T I
  int64_t highest_count = 0;           // largest counter
  bool threshold_only = false;         // certificates are kept for thresholds (g = 1), as the all-active phase needs
  std::vector<float> ones;             // (R,) the coefficients of that kind
  std::vector<uint64_t> stale_output;  // neurons whose column of output_weight is behind `output`
  Certificates certificates;

  // ---- One batch.
  std::vector<Row> rows;
  Floats y, dy;  // (B, Cp)
  std::vector<ScanList> lists;
  std::vector<std::atomic<float>> scan_floors;  // of the rows of a scan: lower bounds of the thresholds, -1: none
  std::vector<int> pending;                     // rows that no certificate covers
  // (N, K + 1) the neurons at or above a sample's threshold when it was last seen, -1: never. The least of their scores
  // now is a lower bound of its threshold.
  std::vector<int32_t> likely;
  // Neurons that won lately, for samples never seen: rows of a kind share winners. A ring; (R,) whether in it.
  std::vector<int32_t> popular;
  std::vector<uint8_t> is_popular;
  size_t popular_next = 0;
  std::vector<UpdateChunk> chunks;
  std::vector<ScratchRow> scratch;  // per thread
  struct Tiles {
    int batch = 0, columns = 0;           // rows of the batch, rounded up to kTileColumns
    Floats inputs, sliced;                // (B, D), and the same in slices (SdmlpKernels::tile_slice)
    Floats scores;                        // (R, columns), activations later
    std::vector<float> floors;            // (ranges, columns) lower bounds of the thresholds
    std::vector<int32_t> best;            // (ranges, columns) entries of the lists below
    std::vector<float> best_score;        // (ranges, columns, K + 1)
    std::vector<int32_t> best_index;      // the same shape
    std::vector<float> thresholds;        // (columns,)
    Floats y, dy;                         // (C, columns)
    std::vector<float> active;            // (columns,) active neurons of each row
    std::vector<int32_t> units, unit_of;  // selected units, ascending; (R,) place among them or -1
    Floats unit_gradient;                 // (units, columns) hidden distillation's part of dh
  } tiles;
  std::unique_ptr<Team> team;
  std::atomic<bool> busy{false};
  double last_active = kUnknownActive;    // active neurons per row in the last call
  double recent_active = kUnknownActive;  // the same in the last step

  void use_threads(int threads);
  void load_state();
  void write_output();
  float gaba_of(int64_t count) const;

  // ---- scan.cpp
  struct ScanPlan {
    int groups = 1, parts = 1;  // groups of rows x ranges of neurons
    int rows = kScanRows;       // rows of a group
    bool preselect = false;     // bf16 scores name the candidates
  };
  ScanPlan plan_scan(int n, const float* coefficients) const;
  float floor_of(const Row& row) const;  // by `likely`, else by `popular`; -1: none
  void remember(Row& row, const int32_t* index, const float* score, int n);
  // Readies the lists and bounds of a scan of n rows by this plan.
  void scan_begin(const int* which, int n, const ScanPlan& plan);
  void scan_end(int n);  // after finish_scan of rows [0, n): what they teach the next scan
  // One group of rows against one range of neurons.
  struct ScanGroup {
    int count = 0;  // rows
    float gap = 0;
    const float* coefficients = nullptr;
    bool preselects = false;  // bf16 is readied
    const float* x[kPreselectRows];
    ScanList* list[kPreselectRows];
    float floors[kPreselectRows];  // bounds of the thresholds, as last shared
    std::atomic<float>* shared = nullptr;
    bool share_floors();
  };
  void load_group(ScanGroup& group, const int* which, int first, const ScanPlan& plan, int part);
  void scan_block(const ScanGroup& group, int64_t first, int size);
  int64_t preselect_block(const ScanGroup& group, int64_t first, int size, int64_t next);
  // Scores range `part` for row group `group` of which[], keeping what exceeds g * floor - gap; lists[] gets it.
  // `coefficients` (R,) are g, or ones where only the threshold is wanted.
  void scan(const int* which, int n, const ScanPlan& plan, int group, int part, float gap, const float* coefficients);
  // Merges a row's lists into its threshold and active neurons; false when a score is NaN. As in scan.
  bool finish_scan(int which, int position, const ScanPlan& plan, float gap, const float* coefficients);
  // The row's active neurons among those scored; shared by neurons, only keeps them until the threshold is known.
  void activate(Row& row, const int32_t* index, const float* score, int n, float threshold);
  void inhibit(Row& row, const int32_t* index, const float* score, int n);  // index, score: of row itself or others

  // ---- loss.cpp
  void logit_losses(const SdmlpEpoch& epoch, int which, int batch);
  void hidden_loss(const SdmlpEpoch& epoch, int which, int batch);
  void forward(const SdmlpEpoch& epoch, int which, int batch);

  // ---- forms/all_active.cpp: every neuron of every row active
  bool all_active() const { return cfg.gaba_switch > 0 && 2.0 * static_cast<double>(highest_count) < cfg.gaba_switch; }
  // Also needed: no teacher, penalty or momentum.
  bool dense_form(const SdmlpEpoch& epoch) const {
    return all_active() && !epoch.teacher && !epoch.penalty && weight_velocity.empty();
  }
  void dense_prepare(int chunk);  // products of the present model, from scratch
  void dense_collect();           // adds up the ranges' products, in order
  void dense_forward(const SdmlpEpoch& epoch, int which, int batch);
  void dense_gradient(int c, int batch);  // one class's row of M and entry of q
  void dense_output_gradient(int chunk);  // dV of a range, and its squared norm
  double dense_weight_norm2() const;
  void add_products(Products& part, int64_t first, int n);  // of n neurons
  void dense_update(int chunk, float scale, int64_t batch);

  // ---- forms/tiles.cpp
  bool tile_form(int64_t batch) const;
  void tile_begin(const SdmlpEpoch& epoch, int batch);
  void tile_load(int begin, int end);
  int tile_scores(int chunk);
  void tile_threshold(int b, std::vector<std::pair<float, int32_t>>& merged);
  void tile_forward(const SdmlpEpoch& epoch, int group);
  void tile_hidden(const SdmlpEpoch& epoch, int b);
  void tile_backward(int chunk, const SdmlpPenalty* penalty);

  // ---- update.cpp
  void group(int chunk, int batch);
  void add_norm(UpdateChunk& chunk, int slot, double norm2, int64_t* next, const SdmlpPenalty* penalty);
  void backward(int chunk, int batch, const SdmlpPenalty* penalty);
  void update(int chunk, float scale, const SdmlpPenalty* penalty);
  void update_all(int chunk, float scale, const SdmlpPenalty* penalty);
  void move(UpdateChunk& chunk, int64_t neuron, const float* gradient, const float* output_gradient, float scale,
            int64_t active);
  double step_row(UpdateChunk& chunk, int64_t neuron, const float* gradient, float step);
  void prefetch_move(const UpdateChunk& chunk, int64_t neuron) const;
  void begin_era();
  void prepare_penalty(const SdmlpPenalty& penalty);
  double pull_norm(int64_t neuron, const SdmlpPenalty& penalty, std::vector<float>& pull) const;

  // ---- processes.cpp; nothing of it is called where one process trains.
  bool by_neurons() const { return cfg.share.exchange && cfg.share.by_neurons; }
  bool by_samples() const { return cfg.share.exchange && !cfg.share.by_neurons; }
  int64_t all_neurons() const { return by_neurons() ? cfg.share.all_neurons : R; }
  std::vector<std::string> gather(const std::string& bytes);
  void keep_best(Row& row, const float* score, int n, float least) const;
  void agree_on_call(const SdmlpEpoch& epoch);                        // and on the largest counter
  std::vector<uint8_t> share_batches(const SdmlpEpoch& epoch) const;  // (count,) by samples: the rank of each position
  void merge_thresholds(int batch, Agreement* agreed);                // by neurons
  void gather_thresholds(const uint8_t* owner, int batch, Agreement* agreed);  // by samples
  void gather_rows(const uint8_t* owner, int batch, Agreement* agreed);
  void gather_lists(int batch);
  void forward_gathered(const SdmlpEpoch& epoch, int which, int batch);
  void cut_into_chunks(Row& row) const;                    // loss.cpp
  bool infer_together(int n, bool finite, float* logits);  // false: a score of some process is NaN
  double gather_norms(
      bool dense);  // of the ranges, and the largest counter after the step; returns the neurons touched in all
  void gather_products();
  Floats gathered_output;             // (slots, Cp)
  std::vector<int32_t> touched_slot;  // (R,) scratch, -1 between calls
  int64_t sent = 0, received = 0, exchanges = 0;
  double exchange_seconds = 0;

  struct Run;  // run.h

  // ---- winners.cpp
  double measure_active(const SdmlpEpoch& epoch);
};

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace ssd::cpu

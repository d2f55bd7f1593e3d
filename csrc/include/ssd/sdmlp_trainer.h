// The multi-step SDMLP / SSD trainer: many optimizer steps in one call, touching only what can change.
// Letters: N samples, B batch, D inputs, R neurons, C classes, K winners. README: ssd_kernels/sdmlp_trainer/README.md.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ssd/simd_level.h"

namespace ssd::cpu {

// How processes that train one model together tell each other what they found.
class SdmlpExchange {
 public:
  virtual ~SdmlpExchange() = default;
  // Every process's bytes, by rank. All call it equally often; throws where another one is lost.
  virtual std::vector<std::string> gather(const std::string& bytes) = 0;
};

// The part of this process in the training of one model. By samples: each has all weights, and finds the winners of a
// part of every batch. By neurons: each has the weights of a range of neurons that whole update ranges make up
// (sdmlp_neuron_bounds), and sees every sample.
struct SdmlpShare {
  std::shared_ptr<SdmlpExchange> exchange;  // null: there is one process
  int rank = 0, size = 1;
  bool by_neurons = false;
  int64_t first = 0, all_neurons = 0;  // by neurons: the first one here, of how many in all
};

// Where the neurons of each process begin and, last, end: (size + 1,). Some may be empty where neurons are few.
std::vector<int64_t> sdmlp_neuron_bounds(int64_t neurons, int size);

struct SdmlpConfig {
  int64_t neurons = 0, inputs = 0, classes = 0;
  int64_t k = 0;
  double gaba_switch = 0;  // S of the GABA coefficient; <= 0: none, g = 1
  float lr = 0.05f, momentum = 0.f, max_grad_norm = 1.f;
  double alpha = 0.7, lam = 0.1, temperature = 8.0;
  bool reverse_kl = false;
  bool exhaustive = false;        // score every neuron for every row
  int64_t cache_bytes = 1 << 30;  // bound of the candidate lists
  double tile_active = 64;        // active neurons per row from which a step keeps no lists of them: speed, never bits
  SimdLevel simd = SimdLevel::kGeneric;
  SdmlpShare share;
};

// The frozen teacher, evaluated once on the samples of a task. All pointers are the caller's.
struct SdmlpTeacher {
  const double* targets = nullptr;       // (N, C) q = softmax(logits / T); log q for the reverse KL
  const double* neg_entropy = nullptr;   // (N,) sum_c q log q
  const uint8_t* in_units = nullptr;     // (R,) 1 where the neuron is one of the selected units
  int64_t units = 0;                     // n
  const int64_t* offsets = nullptr;      // (N + 1,)
  const int32_t* indices = nullptr;      // (nnz,) neurons, ascending within a sample
  const float* values = nullptr;         // (nnz,) teacher activations
  const double* hidden_log_z = nullptr;  // (N,) log of the hidden softmax's normaliser
};

// coef * sum importance * (theta - anchor)^2, added to the loss outside alpha.
struct SdmlpPenalty {
  const float *weight_importance = nullptr, *weight_anchor = nullptr;  // (R, D)
  const float *output_importance = nullptr, *output_anchor = nullptr;  // (C, R)
  float coef = 0.f;
};

struct SdmlpEpoch {
  const float* x = nullptr;        // (N, D): relu and unit norm already applied
  const int64_t* y = nullptr;      // (N,)
  int64_t samples = 0;             // N
  const int64_t* order = nullptr;  // (count,) sample of every position
  int64_t count = 0;
  int64_t batch = 128;
  const SdmlpTeacher* teacher = nullptr;
  const SdmlpPenalty* penalty = nullptr;
  bool (*interrupted)(void*) = nullptr;  // asked at step boundaries, at least every 0.2 s; true stops
  void* context = nullptr;
};

// The first number of a step that was not finite: that step was not taken, and nothing has changed since the one
// before.
struct SdmlpFailure {
  const char* what = nullptr;        // null: there was none
  int64_t sample = -1, neuron = -1;  // where, -1: not of one
};

enum SdmlpPhase { kSelect, kScan, kForward, kGroup, kBackward, kUpdate, kRefresh, kDense, kPhases };

struct SdmlpStats {
  double loss = 0, ce = 0, kd_hidden = 0, kd_logits = 0;  // means over samples
  double grad_norm = 0;                                   // mean over steps, before clipping
  double active_per_row = 0, touched = 0;                 // means over samples, over steps
  int64_t steps = 0;
  int64_t certified = 0, refreshed = 0, scanned = 0;  // rows
  double scored = 0, examined = 0;                    // means per certified row: neurons scored, bounds looked at
  double seconds[kPhases] = {};
  int64_t sent = 0, received = 0, exchanges = 0;  // bytes to and from each other process, and calls of its exchange
  double exchange_seconds = 0;                    // of the seconds above, spent waiting for others
  SdmlpFailure failure;                           // why the call ended before a step, where one could not be taken
};

// Rows of sparse activations, as make_teacher wants them.
struct SdmlpActivations {
  std::vector<int64_t> offsets;
  std::vector<int32_t> indices;
  std::vector<float> values;
};

class SdmlpTrainer {
 public:
  // weight (R, D), output_weight (C, R) and counts (R,) stay the caller's and are updated in place.
  SdmlpTrainer(const SdmlpConfig& config, float* weight, float* output_weight, int64_t* counts);
  ~SdmlpTrainer();

  SdmlpStats train(const SdmlpEpoch& epoch, int threads);

  // Forward of N rows without counting: logits (N, C) if not null; frequencies (R,) += 1 per sample with h > 0 if not
  // null; activations of the neurons with keep[j] != 0 if not null. False when a score is NaN. Shared by neurons:
  // frequencies are those of the neurons here, keep and the activations are of all neurons.
  bool infer(const float* x, int64_t samples, int threads, float* logits, int64_t* frequencies, const uint8_t* keep,
             SdmlpActivations* activations);

  // Reads weight, output_weight and counts again after a change from outside; forgets every certificate.
  void invalidate();

  // Momentum buffers, (R, D) and (C, R), finite; only with momentum.
  void get_velocity(float* weight, float* output) const;
  void set_velocity(const float* weight, const float* output);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ssd::cpu

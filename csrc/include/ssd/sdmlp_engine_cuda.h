// CUDA: SDMLP / SSD training, a step in four launches; S trainings of the same sizes side by side.
// Shapes: S seeds, N samples, B batch, D inputs, R neurons, C classes, K winners, n distilled units, W = ceil(R / 32).
#pragma once

#include <cstdint>

namespace ssd::cuda {

// Where a training stands: numbers and totals that kernels keep in device memory, by place.
enum SdmlpNumber {
  kPosition,      // samples of the order that have been trained on
  kCount,         // samples of the order
  kSteps,         // steps taken in this call
  kGo,            // whether the last step is to be applied
  kFailure,       // SdmlpFailureCode of the step that could not be taken
  kFailedSample,  // where, -1: of none
  kNumbers
};
enum SdmlpFailureCode {
  kNoFailure,
  kScoreFailure,
  kCrossEntropyFailure,
  kHiddenFailure,
  kLogitsFailure,
  kStepFailure,
  kNormFailure
};
// Sums over samples; over steps: gradient norms and touched neurons. kScale is the last step's clip coefficient, kSpeed
// a bound of the norm of both velocities together.
enum SdmlpTotal { kCe, kKdHidden, kKdLogits, kActiveSum, kNormSum, kTouchedSum, kScale, kSpeed, kTotals };
enum SdmlpFlag { kTick, kClaims, kFinished, kBadSample, kFlags };  // kTick begins at 1, kBadSample at 2^32 - 1

// One training. Pointers are device memory of the caller's; tensors are contiguous.
struct SdmlpSeed {
  // ---- The model. output is V transposed.
  float* weight;    // (R, D)
  float* output;    // (R, C)
  int64_t* counts;  // (R,)
  float* gaba;      // (R,) g of the counts
  // ---- Momentum: null without.
  float *weight_velocity, *output_velocity;  // (R, D), (R, C)
  uint8_t* in_motion;                        // (R,) 1 where a velocity is not 0
  // ---- The samples, as ssd/sdmlp_trainer.h has them.
  const float* x;        // (N, D)
  const int64_t* y;      // (N,)
  const int64_t* order;  // (kCount,)
  // ---- The teacher: targets is null without.
  const double *targets, *neg_entropy;  // (N, C), (N,)
  const uint8_t* in_units;              // (R,)
  int64_t units;                        // n
  const int64_t* offsets;               // (N + 1,)
  const int32_t* indices;               // (nnz,)
  const float* values;                  // (nnz,)
  const double* hidden_log_z;           // (N,)
  // ---- The penalty: pulled is null without. Output parts are transposed.
  const float *weight_importance, *weight_anchor;  // (R, D)
  const float *output_importance, *output_anchor;  // (R, C)
  const uint8_t* pulled;                           // (R,) 1 where it pulls at all
  float coef;
  // ---- State that outlives a step.
  int64_t* numbers;  // (kNumbers,)
  double* totals;    // (kTotals,)
  uint32_t* flags;   // (kFlags,)
  int32_t* likely;   // (N, K + 1) winners of each sample's last visit, -1: never seen. Any neurons give right results
  // ---- Scratch; active_words, list_* and active are read beyond where they were written after a bad score: zeros
  // first.
  float* floors;                // (B,)
  uint32_t* ready;              // (B,) zeros first
  uint32_t* candidates;         // (B, W)
  uint32_t* active_words;       // (B, W) a bit for each active neuron
  int32_t* before;              // (B, W) active neurons of the sample before a word
  int32_t* list_index;          // (B, R) a sample's active neurons, ascending; kept where lists are long, and by infer
  float *list_h, *list_dh;      // (B, R)
  int32_t* list_count;          // (B,)
  float *logits, *logits_grad;  // (B, C)
  double* losses;               // (3, B) CE, hidden and logit distillation
  float* weight_grad;           // (R, D); kept rows only
  float* output_grad;           // (R, C)
  int32_t* active;              // (R,) samples in which a neuron is active
  double* partial;              // (3, blocks) of sdmlp_blocks: squares, touched neurons, pairs
  int64_t* frequencies;         // (R,) infer adds to it; null: it does not
};

struct SdmlpStep {
  int64_t neurons, inputs, classes, k, batch;
  double gaba_switch;  // S; <= 0: none
  float lr, momentum;
  double max_grad_norm, alpha, lam, temperature;
  bool reverse_kl;
  bool aligned;            // x and weight of every seed begin at multiples of 16 bytes
  const SdmlpSeed* seeds;  // (S,) on the device
  int64_t count;           // S
  int device;
  void* stream;  // cudaStream_t
};

// A batch's bits of some neurons stay in shared memory.
constexpr int64_t kMostSdmlpBatch = 4096;

// How many numbers `partial` has room for in each of its rows.
const char* sdmlp_blocks(int64_t neurons, int device, int64_t* blocks);

// One step of every seed, on the samples that numbers[kPosition] points to: nothing where there are none left or a step
// has failed. Enqueues kernels; allocates nothing, never synchronises. nullptr, or what went wrong.
const char* sdmlp_step(const SdmlpStep& step);

// Lists, logits and frequencies of the same samples; then kPosition moves on. No teacher and no penalty are read.
const char* sdmlp_infer(const SdmlpStep& step);

}  // namespace ssd::cuda

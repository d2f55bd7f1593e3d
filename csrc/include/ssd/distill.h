// The SSD loss: cross-entropy, logit distillation and selected-unit distillation, each with its gradient in one pass.
// Shapes: B batch, C classes, R neurons, n selected units. Arithmetic is fp64; strides count elements.
#pragma once

#include <cstdint>

#include "ssd/dtype.h"
#include "ssd/simd_level.h"

namespace ssd::cpu {

struct DistillLogitsParams {
  Dtype dtype, teacher_dtype;
  int64_t batch, classes, old;  // old is the number of distilled classes
  const void* logits;           // (B, C)
  int64_t logits_stride;
  const void* teacher;  // (B, C) or null
  int64_t teacher_stride;
  const int64_t* labels;       // (B,) in [0, C)
  const int64_t* old_classes;  // (old,), or null for all C
  double temperature;
  bool reverse;
  void *ce, *kd;  // scalars out, of the accumulation type: means over the batch; kd is 0 without a teacher
  void* grad_ce;  // (B, C) out: of the mean
  void* grad_kd;  // (B, C) out; null without a teacher
  int threads;
};

// What went wrong, and the number that was refused.
enum class DistillStatus : int { kDone = 0, kNoMemory = 1, kOutOfRange = 2, kRepeated = 3 };
struct DistillResult {
  DistillStatus status;
  int64_t bad;
};

// kOutOfRange: a label outside [0, C). The old classes are checked by the caller.
DistillResult distill_logits(const DistillLogitsParams& params, SimdLevel level);

// Activations in one of three forms: dense, k entries per sample, or rows. (Null does not tell which: no entries at
// all may have a null address too.)
enum class Form : int { kDense = 0, kTopK = 1, kRows = 2 };
struct Activations {
  Form form;
  Dtype dtype;
  const void* values;  // dense (B, R), (B, k) or (nnz,)
  int64_t stride;      // of the rows of a dense matrix
  const int32_t* indices;
  const int64_t* offsets;  // (B + 1,)
  int64_t k;
};

struct DistillHiddenParams {
  int64_t batch, units;
  int64_t neurons;  // R where an operand is dense, else 2^31: units are below it
  Activations student, teacher;
  const int64_t* selected;  // (n,) distinct
  double temperature;
  bool reverse;
  void* kd;    // scalar out, of the student's accumulation type: the mean over the batch
  void* grad;  // of the student's dtype, out: (B, n) for dense activations, else as the values
  int threads;
};

// kOutOfRange or kRepeated: a unit outside [0, R), or given twice.
DistillResult distill_hidden(const DistillHiddenParams& params, SimdLevel level);

}  // namespace ssd::cpu

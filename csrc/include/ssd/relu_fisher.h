// The diagonal Fisher information, per sample, of an MLP with one ReLU layer. Shapes: B batch, D inputs, R neurons,
// C classes. Every array is fp32, or every one is fp64.
#pragma once

#include <cstdint>

#include "ssd/dtype.h"
#include "ssd/simd_level.h"

namespace ssd::cpu {

struct ReluMlpParams {
  Dtype dtype;
  int64_t batch, inputs, neurons, classes;
  const void* x;  // (B, D) with this row stride, columns adjacent
  int64_t x_stride;
  const void* weight;  // (R, D) with this row stride, columns adjacent
  int64_t weight_stride;
  const void* bias;           // (R,)
  const void* output_weight;  // (C, R) with this row stride, columns adjacent
  int64_t output_stride;
  const void* output_bias;  // (C,)
  void* hidden;             // (R, B) out: max(W x + bias, 0), the samples of a neuron adjacent
  void* logits;             // (B, C) out
  int threads;
};
// False: no memory.
bool relu_mlp(const ReluMlpParams& params, SimdLevel level);

struct ReluFisherParams {
  Dtype dtype;
  int64_t batch, inputs, neurons, classes;
  const void* x;  // (B, D) with this row stride, columns adjacent
  int64_t x_stride;
  const void* hidden;  // (R, B) with this row stride, columns adjacent
  int64_t hidden_stride;
  const void* output_weight;  // (C, R) with this row stride, columns adjacent
  int64_t output_stride;
  const void* probabilities;  // (B, C)
  const int64_t* labels;      // (B,), or null for the expectation over labels drawn from the probabilities
  double beta;
  void* weight;       // (R, D) added to
  void* bias;         // (R,) added to
  void* output;       // (C, R) added to
  void* output_sums;  // (C,) added to
  int threads;
};
enum class ReluFisherStatus : int { kDone = 0, kNoMemory = 1, kBadLabel = 2 };
struct ReluFisherResult {
  ReluFisherStatus status;
  int64_t label;  // the one that is outside [0, C)
};
ReluFisherResult relu_fisher(const ReluFisherParams& params, SimdLevel level);

}  // namespace ssd::cpu

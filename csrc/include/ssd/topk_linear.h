// The K largest activations of act(x W^T + bias) per row, and their gradient. Nothing here holds (B, R) scores.
// Shapes: B batch, D inputs, R neurons, K winners, U active neurons. Strides count elements; columns are adjacent.
#pragma once

#include <cstdint>

#include "ssd/dtype.h"
#include "ssd/simd_level.h"

namespace ssd::cpu {

struct TopkLinearParams {
  Dtype dtype;  // of x, weight, bias, values, threshold and every gradient
  int64_t batch, inputs, neurons, k;
  const void* x;  // (B, D)
  int64_t x_stride;
  const void* weight;  // (R, D)
  int64_t weight_stride;
  const void* bias;       // (R,) or null
  bool relu;              // activation "relu", else none
  bool normalize_input;   // divide rows of x by their L2 norm
  bool normalize_weight;  // and rows of the weight
  bool inhibition;        // values are relu(a - threshold)
  void* values;           // (B, K)
  int32_t* indices;       // (B, K)
  void* threshold;        // (B,)
  int threads;
  // Element (j, d) of the weight lies at d * weight_stride + j: the transpose of a (D, R) matrix.
  bool weight_transposed = false;
  const int64_t* rows = nullptr;  // (neurons,) the rows of weight, bias and scale that take part, ascending; null: all
  const void* scale = nullptr;    // (R,) > 0: scores are scale * (x w + bias); or null
  bool magnitude = false;         // the largest |score| win, values keep their sign; no relu, no inhibition then
};

// False when memory runs out; then the outputs are not complete.
bool topk_linear_forward(const TopkLinearParams& params, SimdLevel level);

// The pairs (sample, slot) that receive a gradient, grouped by neuron.
struct TopkPairsParams {
  Dtype dtype;
  int64_t pairs;           // B K
  int64_t neurons;         // R
  const void* values;      // (B, K)
  const int32_t* indices;  // (B, K)
  bool masked;             // only pairs with a value > 0 (or NaN)
  int64_t* order;          // (B K) out: pair numbers, by neuron, then ascending
  int64_t* rows;           // (B K) out: the active neurons, ascending
  int64_t* starts;         // (B K + 1) out: where each active neuron's pairs begin in `order`
};

// U, the number of active neurons; -1 when memory runs out.
int64_t topk_linear_pairs(const TopkPairsParams& params);

struct TopkLinearBackwardParams {
  Dtype dtype;
  int64_t batch, inputs, neurons, k, active;  // active is U
  const void* grad_values;                    // (B, K)
  const void* x;                              // (B, D)
  int64_t x_stride;
  const void* weight;  // (R, D)
  int64_t weight_stride;
  const void* values;      // (B, K)
  const int32_t* indices;  // (B, K)
  bool masked;             // as in TopkPairsParams, which gives the next three
  const int64_t* order;    // (starts[U],)
  const int64_t* rows;     // (U,)
  const int64_t* starts;   // (U + 1)
  bool normalize_input, normalize_weight;
  void* grad_x;       // (B, D), or null where it is not needed
  void* grad_weight;  // (R, D), zeroed by the caller, or null
  void* grad_rows;    // (U, D), or null
  void* grad_bias;    // (R,), zeroed by the caller, or null
  int threads;
  // weight and grad_weight are (D, R) in memory, weight_stride and neurons apart; no grad_rows, no normalisation then.
  bool transposed = false;
};

// False when memory runs out.
bool topk_linear_backward(const TopkLinearBackwardParams& params, SimdLevel level);

}  // namespace ssd::cpu

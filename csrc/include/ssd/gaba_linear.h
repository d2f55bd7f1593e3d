// SDMLP layer with GABA inhibition: s = x W^T, a = relu(s), I = the (K+1)-th largest a, h_j = relu(a_j - g_j I).
// Shapes: B batch, D inputs, R neurons, K winners, P pairs (active entries), U active neurons. Strides count elements;
// columns are adjacent.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ssd/active_rows.h"
#include "ssd/dtype.h"
#include "ssd/simd_level.h"

namespace ssd::cpu {

struct GabaLinearParams {
  Dtype dtype;                        // of x, weight, h, threshold
  int64_t batch, inputs, neurons, k;  // K + 1 <= R
  const void* x;                      // (B, D)
  int64_t x_stride;
  const void* weight;  // (R, D)
  int64_t weight_stride;
  const double* g;  // (R,), rounded to the accumulation type
  void* threshold;  // (B,) out
  int threads;
};

// h (B, R) out, contiguous. False when memory runs out.
bool gaba_linear_dense(const GabaLinearParams& params, void* h, SimdLevel level);

// offsets (B + 1,) out. False when memory runs out.
bool gaba_linear_rows(const GabaLinearParams& params, int64_t* offsets, ActiveRows* rows, SimdLevel level);

// Up to so many pairs the backward pass goes pair by pair, beyond it by dense tiles. The count alone decides, never a
// time.
int64_t most_pairs(int64_t batch, int64_t neurons);

// Gradients from pairs: dx_b = sum of ds W_j, dW_j = sum of ds x_b over the pairs (b, j).
struct PairsBackwardParams {
  Dtype dtype;
  int64_t batch, inputs, neurons, active;  // active is U
  const void* grad;                        // (P,) ds
  const int32_t* indices;                  // (P,)
  const int64_t* offsets;                  // (B + 1,)
  const bool* masked;                      // (P,) pairs that receive no gradient, or null
  const void* x;                           // (B, D)
  int64_t x_stride;
  const void* weight;  // (R, D)
  int64_t weight_stride;
  const int64_t* order;   // pair numbers grouped by neuron, ascending within
  const int64_t* rows;    // (U,) the active neurons
  const int64_t* starts;  // (U + 1) where each begins in order
  void* grad_x;           // (B, D) out, or null
  void* grad_weight;      // (R, D) out, or null
  void* grad_rows;        // (U, D) out, or null
  bool by_tiles;          // as dense products: order, rows and starts are not needed, grad_rows is null
  int threads;
};
bool pairs_backward(const PairsBackwardParams& params, SimdLevel level);

struct GabaBackwardParams {
  Dtype dtype;
  int64_t batch, inputs, neurons;
  const void* grad_h;  // (B, R) contiguous
  const void* h;       // (B, R) contiguous; null where grad_h is ds already
  const void* x;       // (B, D)
  int64_t x_stride;
  const void* weight;  // (R, D)
  int64_t weight_stride;
  void* grad_x;       // (B, D) out, or null
  void* grad_weight;  // (R, D) out, or null
  int threads;
};
bool gaba_linear_dense_backward(const GabaBackwardParams& params, SimdLevel level);

}  // namespace ssd::cpu

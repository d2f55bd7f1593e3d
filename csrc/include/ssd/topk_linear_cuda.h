// CUDA: the K largest activations of act(x W^T * scales + bias) per row. Nothing here holds (B, R) scores.
// Shapes: B batch, D inputs, R neurons, K winners, P parts of the neurons. Strides count elements; columns are
// adjacent.
#pragma once

#include <cstdint>

#include "ssd/dtype.h"

namespace ssd::cuda {

struct TopkLinearParams {
  cpu::Dtype dtype;  // of x, weight, bias, values, threshold: fp32, bf16 or fp16
  int64_t batch, inputs, neurons, k;
  const void* x;  // (B, D)
  int64_t x_stride;
  const void* weight;  // (R, D)
  int64_t weight_stride;
  const void* bias;               // (R,) or null
  const float* x_scale;           // (B,) factors of the scores, or null
  const float* weight_scale;      // (R,) or null
  const float* x_norms;           // (B,) L2 norms of the rows of x
  const float* weight_norm_most;  // one number: the largest |weight_scale_j| (||w_j|| + 2^-50)
  bool relu;                      // activation "relu", else none
  bool inhibition;                // values are relu(a - threshold)
  int64_t parts;                  // from topk_linear_parts
  uint64_t* lists;                // (B, P, min(K + 1, R)) scratch
  void* values;                   // (B, K) out
  int32_t* indices;               // (B, K) out
  void* threshold;                // (B,) out, 0 where K = R
  int device;
  void* stream;  // cudaStream_t
};

// More winners than this go through scores and threshold_select.
constexpr int64_t kMostFusedWinners = 127;

// P, into how many parts the neurons are split so that every multiprocessor has work.
const char* topk_linear_parts(int64_t batch, int64_t neurons, int64_t k, int device, int64_t* parts);

// Enqueues the kernels; allocates nothing, never synchronises. nullptr, or what went wrong.
const char* topk_linear(const TopkLinearParams& params);

}  // namespace ssd::cuda

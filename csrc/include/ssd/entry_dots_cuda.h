// CUDA: the gradient of sparse activations through a linear layer. Shapes: B batch, C outputs, R neurons, P entries.
#pragma once

#include <cstdint>

#include "ssd/dtype.h"

namespace ssd::cuda {

// out[p] = grad[sample of p, :] . weight[:, index of p], in the canonical order.
struct EntryDotsParams {
  cpu::Dtype dtype;  // of grad, weight and out
  int64_t entries, outputs;
  const void* grad;  // (B, C)
  int64_t grad_stride;
  const int32_t* indices;  // (P,)
  const int64_t* samples;  // (P,); null: p / per_sample
  int64_t per_sample;
  const void* weight;  // (C, R)
  int64_t output_stride, neuron_stride;
  void* out;  // (P,)
  int device;
  void* stream;  // cudaStream_t
};

// Enqueues the kernel; allocates nothing, never synchronises. nullptr, or what went wrong.
const char* entry_dots(const EntryDotsParams& params);

}  // namespace ssd::cuda

// What every SIMD level has of relu_fisher, and the memory that its parts share.
#pragma once

#include "simd/levels.h"
#include "ssd/relu_fisher.h"

namespace ssd::cpu {

constexpr int64_t kFisherLanes = 32;  // columns of a panel

// The right-hand sides of the three products, as panels of kFisherLanes columns, 0 where there is no column.
struct FisherPanels {
  void* inputs;     // (D panels, B, 32): x^2
  void* gradients;  // (B panels, C, 32): dL/dy, or p for the expectation
  void* squares;    // (C panels, B, 32): (dL/dy)^2, or its expectation
};

#define SSD_RELU_FISHER_LEVEL(level)                                                                                \
  namespace level {                                                                                                 \
  /* hidden and logits of the panels [begin, end) of 32 samples. False when memory runs out. */                     \
  bool relu_mlp_panels(const ReluMlpParams& params, int64_t begin, int64_t end);                                    \
  /* Fills the panels' parts of samples [begin, end), begin a multiple of 32. */                                    \
  void relu_fisher_pack(const ReluFisherParams& params, const FisherPanels& panels, int64_t begin, int64_t end);    \
  /* Adds what belongs to neurons [begin, end). False when memory runs out. */                                      \
  bool relu_fisher_neurons(const ReluFisherParams& params, const FisherPanels& panels, int64_t begin, int64_t end); \
  }
SSD_EACH_LEVEL(SSD_RELU_FISHER_LEVEL)
#undef SSD_RELU_FISHER_LEVEL

}  // namespace ssd::cpu

// Certified preselection of topk_linear and gaba_linear: bf16 scores name the candidates, the canonical dot product
// decides. The winners are bitwise those of the fp32 scan, because every neuron that could enter a row's buffer is
// scored canonically.
#pragma once

#include "select/scan_bf16.h"

#ifdef __AVX512BF16__

namespace ssd::cpu::SSD_LEVEL {

// Where it pays: enough rows to share the rounding of a block of W, and rows long enough for the tile.
constexpr int64_t kPreselectRows = 16, kPreselectInputs = 32, kPreselectNeurons = 256;
constexpr int64_t kPreselectStart = 128;  // neurons scanned in fp32 first, which gives every row a limit
constexpr int kQueue = 8;                 // candidates that are scored together

template <class S>
class Preselection {
 public:
  Preselection(int64_t rows, int64_t inputs) : inputs_(inputs), pairs_(stored_pairs(inputs)), arena_(bytes(rows)) {
    if (!arena_.ok()) return;
    x_pairs_ = arena_.template take<uint32_t>(rows * pairs_);
    block_pairs_ = arena_.template take<uint32_t>(kBlockNeurons * pairs_);
    rounded_ = arena_.template take<uint32_t>(16 * pairs_);
    rows_ = {x_pairs_,
             0,
             inputs,
             arena_.template take<float>(rows),
             arena_.template take<float>(rows),
             arena_.template take<float>(rows)};
  }
  bool ok() const { return arena_.ok(); }

  // Rounds the block of x: (rows, inputs) fp32.
  void load(const float* x, int64_t rows) {
    x_ = x;
    rows_.rows = static_cast<int>(rows);
    for (int64_t r = 0; r < rows; ++r)
      round_row(x + r * inputs_, inputs_, x_pairs_ + r * pairs_, rows_.errors + r, rows_.roundeds + r);
  }

  // From now on a score is dot - g[neuron] * thresholds[row], g of all neurons, thresholds finite or NaN; no scale and
  // no shift then. Limits and emitted scores stay those of the dot product's row and the dot product itself.
  void inhibit(const float* g, const float* thresholds) {
    g_ = g;
    rows_.thresholds = thresholds;
  }

  // Calls emit(row, neuron, canonical score) for every neuron of [first, first + neurons) that may pass a row's limit.
  // scale and shift belong to these neurons. False when so many were candidates that the plain scan is faster.
  template <class Emit>
  bool scan(const S* w, ptrdiff_t w_stride, int64_t first, int64_t neurons, const float* scale, const float* shift,
            const float* limits, ptrdiff_t limit_stride, Emit& emit) {
    int64_t candidates = 0;
    alignas(64) float scales[kBlockNeurons], shifts[kBlockNeurons], inhibition[kBlockNeurons];
    // Pairs are scored while their rows are in the cache: the block's of W, the tile's of x.
    int queued = 0, row_of[kQueue], neuron_of[kQueue];
    const auto flush = [&] {
      const float* x[kQueue];
      const S* from[kQueue];
      for (int i = 0; i < kQueue; ++i) {
        const int at = i < queued ? i : 0;
        x[i] = x_ + row_of[at] * inputs_;
        from[i] = w + neuron_of[at] * w_stride;
      }
      float scores[kQueue];
      dot_pairs<kQueue>(x, from, inputs_, scores);
      for (int i = 0; i < queued; ++i) {
        const int at = neuron_of[i];
        float score = scores[i];
        if (scale || shift) score = __builtin_fmaf(score, scale ? scale[at] : 1, shift ? shift[at] : 0);
        emit(row_of[i], first + at, score);
      }
      queued = 0;
    };
    for (int64_t begin = 0; begin < neurons; begin += kBlockNeurons) {
      RoundedBlock block;
      block.pairs = block_pairs_;
      block.neurons = static_cast<int>(neurons - begin < kBlockNeurons ? neurons - begin : kBlockNeurons);
      block.scale = block.shift = nullptr;
      if (scale || shift) {
        for (int j = 0; j < kBlockNeurons; ++j) {
          const int64_t at = begin + (j < block.neurons ? j : block.neurons - 1);
          scales[j] = scale ? scale[at] : 1;
          shifts[j] = shift ? shift[at] : 0;
        }
        block.scale = scales;
        block.shift = shifts;
      }
      if (g_) {
        for (int j = 0; j < kBlockNeurons; ++j)
          inhibition[j] = g_[first + begin + (j < block.neurons ? j : block.neurons - 1)];
        block.inhibition = inhibition;
      }
      round_block(w + begin * w_stride, w_stride, inputs_, rounded_, &block);
      auto candidate = [&](int row, int neuron) {
        row_of[queued] = row;
        neuron_of[queued++] = static_cast<int>(begin) + neuron;
        ++candidates;
        if (queued == kQueue) flush();
      };
      // Rows far apart are left to the hardware's prefetcher.
      const int64_t left = neurons - begin - kBlockNeurons, wanted = left < kBlockNeurons ? left : kBlockNeurons;
      const bool fetch = wanted > 0 && w_stride < 2 * inputs_;
      scan_rounded(rows_, block, limits, limit_stride,
                   reinterpret_cast<const char*>(w + (begin + kBlockNeurons) * w_stride),
                   fetch ? wanted * w_stride * static_cast<ptrdiff_t>(sizeof(S)) : 0, candidate);
      if (queued) flush();
    }
    return candidates * 4 <= neurons * rows_.rows;
  }

 private:
  size_t bytes(int64_t rows) const {
    return Arena::size_of<uint32_t>(rows * pairs_) + Arena::size_of<uint32_t>(kBlockNeurons * pairs_) +
           Arena::size_of<uint32_t>(16 * pairs_) + 3 * Arena::size_of<float>(rows);
  }

  const int64_t inputs_;
  const ptrdiff_t pairs_;
  Arena arena_;
  uint32_t *x_pairs_, *block_pairs_, *rounded_;
  RoundedRows rows_;
  const float* x_ = nullptr;
  const float* g_ = nullptr;
};

}  // namespace ssd::cpu::SSD_LEVEL

#endif

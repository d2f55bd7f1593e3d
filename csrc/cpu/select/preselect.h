// Certified preselection, for the operations and the engine: bf16 scores name the candidates, the canonical dot product
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

// Rows of x rounded once, and room for a block of neurons, in 64-byte aligned memory of the caller.
struct RoundedInputs {
  RoundedRows rows;
  const float* x;
  uint32_t *block_pairs, *rounded;

  static int64_t bytes(int64_t rows, int64_t inputs) {
    const int64_t pairs = stored_pairs(inputs);
    return static_cast<int64_t>(Arena::size_of<uint32_t>(rows * pairs) +
                                Arena::size_of<uint32_t>(kBlockNeurons * pairs) + Arena::size_of<uint32_t>(16 * pairs) +
                                3 * Arena::size_of<float>(rows));
  }

  // Lays out bytes(most, inputs) of memory for up to `most` rows.
  void place(void* memory, int64_t most, int64_t inputs) {
    const int64_t pairs = stored_pairs(inputs);
    char* next = static_cast<char*>(memory);
    const auto take = [&next](int64_t count) {
      char* const piece = next;
      next += Arena::size_of<uint32_t>(count);  // floats are as long
      return piece;
    };
    rows = RoundedRows();
    rows.size = inputs;
    rows.pairs = reinterpret_cast<uint32_t*>(take(most * pairs));
    block_pairs = reinterpret_cast<uint32_t*>(take(kBlockNeurons * pairs));
    rounded = reinterpret_cast<uint32_t*>(take(16 * pairs));
    rows.errors = reinterpret_cast<float*>(take(most));
    rows.roundeds = reinterpret_cast<float*>(take(most));
    rows.certain = reinterpret_cast<float*>(take(most));
  }

  // Rounds the block of x: (count, inputs) fp32.
  void load(const float* from, int64_t count) {
    x = from;
    rows.rows = static_cast<int>(count);
    uint32_t* const pairs = const_cast<uint32_t*>(rows.pairs);
    for (int64_t r = 0; r < count; ++r)
      round_row(x + r * rows.size, rows.size, pairs + r * stored_pairs(rows.size), rows.errors + r, rows.roundeds + r);
  }

  // Calls emit(row, neuron of the block, canonical dot product) for every pair that may pass its row's limit; returns
  // how many. The block's neurons, scale, shift and inhibition are set; the rest as scan_rounded. Pairs are scored
  // while their rows are in the cache: the block's of W, the tile's of x.
  template <class S, class Emit>
  SSD_INLINE int64_t scan(const S* w, ptrdiff_t w_stride, RoundedBlock& block, const float* limits,
                          ptrdiff_t limit_stride, const char* next, ptrdiff_t next_bytes, Emit emit) {
    int64_t candidates = 0;
    int queued = 0, row_of[kQueue], neuron_of[kQueue];
    const auto flush = [&] {
      const float* of_x[kQueue];
      const S* of_w[kQueue];
      for (int i = 0; i < kQueue; ++i) {
        const int at = i < queued ? i : 0;
        of_x[i] = x + row_of[at] * rows.size;
        of_w[i] = w + neuron_of[at] * w_stride;
      }
      float dots[kQueue];
      dot_pairs<kQueue>(of_x, of_w, rows.size, dots);
      for (int i = 0; i < queued; ++i) emit(row_of[i], neuron_of[i], dots[i]);
      queued = 0;
    };
    auto candidate = [&](int row, int neuron) {
      row_of[queued] = row;
      neuron_of[queued++] = neuron;
      ++candidates;
      if (queued == kQueue) flush();
    };
    block.pairs = block_pairs;
    round_block(w, w_stride, rows.size, rounded, &block);
    scan_rounded(rows, block, limits, limit_stride, next, next_bytes, candidate);
    if (queued) flush();
    return candidates;
  }
};

// The preselection of an operation: panels of W of any length, with scale and shift or with inhibition.
template <class S>
class Preselection {
 public:
  Preselection(int64_t rows, int64_t inputs) : arena_(static_cast<size_t>(RoundedInputs::bytes(rows, inputs))) {
    if (arena_.ok()) inputs_.place(arena_.template take<char>(0), rows, inputs);
  }
  bool ok() const { return arena_.ok(); }

  // Rounds the block of x: (rows, inputs) fp32.
  void load(const float* x, int64_t rows) { inputs_.load(x, rows); }

  // From now on a score is dot - g[neuron] * thresholds[row], g of all neurons, thresholds finite or NaN; no scale and
  // no shift then. Limits and emitted scores stay those of the dot product's row and the dot product itself.
  void inhibit(const float* g, const float* thresholds) {
    g_ = g;
    inputs_.rows.thresholds = thresholds;
  }

  // Calls emit(row, neuron, canonical score) for every neuron of [first, first + neurons) that may pass a row's limit.
  // scale and shift belong to these neurons. False when so many were candidates that the plain scan is faster.
  template <class Emit>
  bool scan(const S* w, ptrdiff_t w_stride, int64_t first, int64_t neurons, const float* scale, const float* shift,
            const float* limits, ptrdiff_t limit_stride, Emit& emit) {
    int64_t candidates = 0;
    alignas(64) float scales[kBlockNeurons], shifts[kBlockNeurons], inhibition[kBlockNeurons];
    for (int64_t begin = 0; begin < neurons; begin += kBlockNeurons) {
      RoundedBlock block;
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
      // Rows far apart are left to the hardware's prefetcher.
      const int64_t left = neurons - begin - kBlockNeurons, wanted = left < kBlockNeurons ? left : kBlockNeurons;
      const bool fetch = wanted > 0 && w_stride < 2 * inputs_.rows.size;
      candidates += inputs_.scan(w + begin * w_stride, w_stride, block, limits, limit_stride,
                                 reinterpret_cast<const char*>(w + (begin + kBlockNeurons) * w_stride),
                                 fetch ? wanted * w_stride * static_cast<ptrdiff_t>(sizeof(S)) : 0,
                                 [&](int row, int neuron, float score) {
                                   const int64_t at = begin + neuron;
                                   if (scale || shift)
                                     score = __builtin_fmaf(score, scale ? scale[at] : 1, shift ? shift[at] : 0);
                                   emit(row, first + at, score);
                                 });
    }
    return candidates * 4 <= neurons * inputs_.rows.rows;
  }

 private:
  Arena arena_;
  RoundedInputs inputs_;
  const float* g_ = nullptr;
};

}  // namespace ssd::cpu::SSD_LEVEL

#endif

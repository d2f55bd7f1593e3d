// Fused matmul + Top-K: act(x W^T + bias), the K + 1 largest per row of x, ties to the lowest neuron, NaN largest.
//
// Work: a part owns rows of x (or, for few rows, a range of neurons; the parts are merged by keys afterwards). It holds
// a block of x in fp32 (fp64), walks panels of W, and keeps per row a buffer of keys and a limit that only rises.
// A weight that is transposed, or of which some rows take part, is copied panel by panel.
// Traffic: W once per block of x rows, x once, and (K + 1) keys per row; never the (B, R) scores.
// Determinism: every score is the canonical dot product, and the K + 1 largest keys are one definite set, so neither
// the blocking nor the number of parts can change a result.
#include "ops/topk_linear/topk_linear_backward.h"
#include "ops/topk_linear/topk_linear_levels.h"
#include "rows/rows.h"
#include "select/operands.h"
#include "select/preselect.h"
#include "select/scan.h"
#include "select/top_keys.h"
#include "ssd/topk_linear.h"

namespace ssd::cpu::SSD_LEVEL {

// Sizes of one part's blocking.
struct Blocking {
  int64_t need;      // kept per row: K + 1, or R where that is less
  int64_t capacity;  // of a row's buffer
  int64_t rows;      // of x per block; W is read from memory once per block
  int64_t sub;       // of x per scan: in L1
  int64_t panel;     // rows of W per scan: in L2
  bool preselect;    // bf16 scores first
};

template <class T>
Blocking blocking(const TopkLinearParams& p, const TopkPart& part) {
  Blocking b;
  const int64_t bytes = p.inputs * static_cast<int64_t>(sizeof(T));
  b.need = p.k < p.neurons ? p.k + 1 : p.k;
  b.capacity = TopKeys<T>::capacity_for(b.need);
  b.preselect = false;
#ifdef __AVX512BF16__
  b.preselect = sizeof(T) == sizeof(float) && !p.magnitude && part.row_end - part.row_begin >= kPreselectRows &&
                p.inputs >= kPreselectInputs && part.neuron_end - part.neuron_begin >= kPreselectNeurons;
#endif
  // Blocks larger than L2 still pay: W comes from memory once per block, and x from L3 once per panel.
  const int64_t by_cache = clamp((768 << 10) / bytes, 64, 256);
  const int64_t by_memory = (8 << 20) / (b.capacity * static_cast<int64_t>(sizeof(Key<T>)));
  b.rows = clamp(clamp(by_memory, kTileX, by_cache) / kTileX * kTileX, kTileX, part.row_end - part.row_begin);
  b.sub = clamp((24 << 10) / bytes / kTileX * kTileX, kTileX, b.rows);
  b.panel = clamp((384 << 10) / bytes / kTileW * kTileW, 4 * kTileW, kMostPanel);
  return b;
}

// Sorts a row's keys and writes its winners and its threshold.
template <class S, class T>
void write_row(const TopkLinearParams& p, int64_t row, Key<T>* keys) {
  const bool beyond = p.k < p.neurons;
  sort_keys(keys, p.k + beyond);
  const T threshold = beyond ? KeyOf<T>::score(keys[p.k]) : T{0};
  from_acc(threshold, static_cast<S*>(p.threshold) + row);
  S* values = static_cast<S*>(p.values) + row * p.k;
  int32_t* indices = p.indices + row * p.k;
  for (int64_t i = 0; i < p.k; ++i) {
    T value = KeyOf<T>::score(keys[i]);
    uint32_t neuron = KeyOf<T>::neuron(keys[i]);
    if (p.magnitude) {
      if (neuron & 1) value = 0 - value;
      neuron >>= 1;
    }
    if (p.inhibition) {
      value = value - threshold;
      if (value <= 0) value = 0;
    }
    from_acc(value, values + i);
    indices[i] = static_cast<int32_t>(p.rows ? p.rows[neuron] : neuron);
  }
}

template <class S, class T>
class Part {
 public:
  Part(const TopkLinearParams& params, const TopkPart& part)
      : p_(params), part_(part), b_(blocking<T>(params, part)), operands_(params, b_.rows, b_.panel), arena_(bytes()) {
    if (!arena_.ok()) return;
    operands_.place(arena_);
    limits_ = arena_.template take<T>((b_.rows + kTileX) * kTileW);
    top_ = arena_.template take<TopKeys<T>>(b_.rows);
    keys_ = arena_.template take<Key<T>>(b_.rows * b_.capacity);
  }

  bool run() {
    if (!arena_.ok()) return false;
    for (int64_t row = part_.row_begin; row < part_.row_end; row += b_.rows) {
      const int64_t rows = clamp(part_.row_end - row, 1, b_.rows);
      load_block(row, rows);
      int64_t first = part_.neuron_begin;
#ifdef __AVX512BF16__
      if constexpr (sizeof(T) == sizeof(float)) {
        if (b_.preselect) {
          Preselection<S> preselection(rows, p_.inputs);
          if (!preselection.ok()) return false;
          preselection.load(operands_.x(), rows);
          scan_panel(first, clamp(b_.panel, 1, kPreselectStart), rows);  // without limits all neurons are candidates
          first += clamp(b_.panel, 1, kPreselectStart);
          const int64_t step = operands_.gathers() ? operands_.gathered_rows() : kMostPanel;
          for (bool pays = true; pays && first < part_.neuron_end; first += step)
            pays = preselect_panel(preselection, first, clamp(part_.neuron_end - first, 1, step));
        }
      }
#endif
      for (; first < part_.neuron_end; first += b_.panel)
        scan_panel(first, clamp(part_.neuron_end - first, 1, b_.panel), rows);
      for (int64_t r = 0; r < rows; ++r) finish(row + r, top_[r]);
    }
    return true;
  }

 private:
  size_t bytes() const {
    return operands_.bytes() + Arena::size_of<T>((b_.rows + kTileX) * kTileW) + Arena::size_of<TopKeys<T>>(b_.rows) +
           Arena::size_of<Key<T>>(b_.rows * b_.capacity);
  }

  void load_block(int64_t row, int64_t rows) {
    operands_.load_block(row, rows);
    for (int64_t r = 0; r < rows; ++r) top_[r] = {keys_ + r * b_.capacity, 0, b_.need, b_.capacity};
    const T everything = static_cast<T>(__builtin_nan(""));
    for (int64_t i = 0; i < (rows + kTileX) * kTileW; ++i) limits_[i] = everything;
  }

  // What a scan calls for each score that passed: enters it, and raises the row's limit when the buffer was cut.
  auto emitter(int64_t first_row) {
    T* const limits = limits_ + first_row * kTileW;
    TopKeys<T>* const top = top_ + first_row;
    const bool relu = p_.relu, magnitude = p_.magnitude;
    return [limits, top, relu, magnitude](int row, int64_t neuron, T score) {
      if (magnitude) {  // the key holds |score|, and the sign below the neuron
        neuron = 2 * neuron + (score < 0);
        if (score < 0) score = 0 - score;
      }
      if (score <= limits[row * kTileW]) return;  // the limit may have risen since the comparison
      if (top[row].push(relu && score <= 0 ? T{0} : score, static_cast<uint32_t>(neuron))) {
        const T limit = top[row].limit();
        for (int j = 0; j < kTileW; ++j) limits[row * kTileW + j] = limit;
      }
    };
  }

  void scan_panel(int64_t first, int64_t neurons, int64_t rows) {
    ScanBlock<T> block;
    block.w = operands_.load_panel(first, neurons, &block.w_stride);
    block.magnitude = p_.magnitude;
    block.x_stride = block.size = p_.inputs;
    block.first = first;
    block.neurons = static_cast<int>(neurons);
    block.scale = operands_.scale();
    block.shift = operands_.shift();
    for (int64_t begin = 0; begin < rows; begin += b_.sub) {
      block.x = operands_.x() + begin * p_.inputs;
      block.rows = static_cast<int>(clamp(rows - begin, 1, b_.sub));
      block.limits = limits_ + begin * kTileW;
      auto emit = emitter(begin);
      scan_block(block, emit);
    }
  }

#ifdef __AVX512BF16__
  // False when the plain scan is the faster one for these data.
  bool preselect_panel(Preselection<S>& preselection, int64_t first, int64_t neurons) {
    ptrdiff_t stride;
    const S* const stored = operands_.stored_panel(first, neurons, &stride);
    auto emit = emitter(0);
    return preselection.scan(stored, stride, first, neurons, operands_.scale(), operands_.shift(), limits_, kTileW,
                             emit);
  }
#endif

  void finish(int64_t row, TopKeys<T>& top) {
    top.cut();
    if (part_.keys) {
      Key<T>* to = static_cast<Key<T>*>(part_.keys) + row * b_.need;
      for (int64_t i = 0; i < b_.need; ++i) to[i] = i < top.count ? top.keys[i] : 0;  // 0 is below every key
      return;
    }
    write_row<S, T>(p_, row, top.keys);
  }

  const TopkLinearParams& p_;
  const TopkPart& part_;
  const Blocking b_;
  Operands<S, T, TopkLinearParams> operands_;
  Arena arena_;
  T* limits_;
  TopKeys<T>* top_;
  Key<T>* keys_;
};

// Merges the keys of several parts, (parts, B, need), for rows [begin, end), and writes their results.
template <class S, class T>
bool merge_rows(const TopkLinearParams& p, int parts, int64_t begin, int64_t end, const void* part_keys) {
  const Key<T>* keys = static_cast<const Key<T>*>(part_keys);
  const int64_t need = p.k < p.neurons ? p.k + 1 : p.k, all = parts * need;
  Arena arena(Arena::size_of<Key<T>>(all));
  if (!arena.ok()) return false;
  Key<T>* row_keys = arena.take<Key<T>>(all);
  for (int64_t row = begin; row < end; ++row) {
    for (int part = 0; part < parts; ++part)
      for (int64_t i = 0; i < need; ++i) row_keys[part * need + i] = keys[(part * p.batch + row) * need + i];
    if (all > need) keep_largest(row_keys, all, need);
    write_row<S, T>(p, row, row_keys);
  }
  return true;
}

bool topk_linear_part(const TopkLinearParams& params, const TopkPart& part) {
  switch (params.dtype) {
    case Dtype::kFloat32:
      return Part<float, float>(params, part).run();
    case Dtype::kFloat64:
      return Part<double, double>(params, part).run();
    case Dtype::kBFloat16:
      return Part<BFloat16, float>(params, part).run();
    case Dtype::kHalf:
      return Part<Half, float>(params, part).run();
  }
  return false;
}

bool topk_linear_merge(const TopkLinearParams& params, int parts, int64_t begin, int64_t end, const void* keys) {
  switch (params.dtype) {
    case Dtype::kFloat32:
      return merge_rows<float, float>(params, parts, begin, end, keys);
    case Dtype::kFloat64:
      return merge_rows<double, double>(params, parts, begin, end, keys);
    case Dtype::kBFloat16:
      return merge_rows<BFloat16, float>(params, parts, begin, end, keys);
    case Dtype::kHalf:
      return merge_rows<Half, float>(params, parts, begin, end, keys);
  }
  return false;
}

}  // namespace ssd::cpu::SSD_LEVEL

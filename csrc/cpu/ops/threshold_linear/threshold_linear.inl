// threshold_linear and batch_topk_linear: the scores above a limit, found by the fused scan and given to a sink.
//
// Work: a part owns samples. It holds a block of x in the accumulation type and walks panels of W; bf16 scores
// (AVX-512 BF16) name the candidates where that pays. With thresholds a panel's limit is the least of them, and each
// hit is compared with its own. For the M largest of a batch the limit is the M-th largest so far of the part's
// samples: it only rises, and the keys that are collected are cut back to the M + 1 largest when their buffer is full.
// Traffic: W once per block of x rows, x once, and the hits; never the (B, R) scores.
// Determinism: every score is the canonical dot product and what is kept is one definite set, so neither blocking nor
// the number of parts can change a result.
#include "ops/threshold_linear/threshold_linear_levels.h"
#include "rows/active_list.h"
#include "rows/rows.h"
#include "select/operands.h"
#include "select/preselect.h"
#include "select/scan.h"
#include "select/top_keys.h"

namespace ssd::cpu::SSD_LEVEL {

// The greatest number below a positive one; 0 of 0.
SSD_INLINE float below(float number) { return number > 0 ? bits_to_float(float_to_bits(number) - 1) : 0.0f; }
SSD_INLINE double below(double number) { return number > 0 ? bits_to_double(double_to_bits(number) - 1) : 0.0; }

// Scans a part's samples against all neurons. Sink:
//   start(row, rows, limits)    a block begins; limits are its rows'
//   first_neurons(rows)         how many are scanned before a preselection, so that it meets a limit worth having
//   step()                      the most neurons that may share a limit
//   limit(first, neurons, rows) of a panel, and room for its hits; NaN where memory ran out
//   emit(row, neuron, score)    a score that is not <= the limit
//   finish(row, rows)           false where memory ran out
template <class S, class T, class Sink>
class LimitScan {
 public:
  LimitScan(const ThresholdLinearParams& params, int64_t samples, Sink& sink)
      : p_(params),
        sink_(sink),
        block_(block_rows(params, samples)),
        operands_(params, block_, panel_of(params)),
        arena_(operands_.bytes() + Arena::size_of<T>((block_ + kTileX) * kTileW)) {
    if (!arena_.ok()) return;
    operands_.place(arena_);
    limits_ = arena_.template take<T>((block_ + kTileX) * kTileW);
  }

  bool run(int64_t begin, int64_t end) {
    if (!arena_.ok()) return false;
    for (int64_t row = begin; row < end; row += block_) {
      const int64_t rows = clamp(end - row, 1, block_);
      operands_.load_block(row, rows);
      sink_.start(row, rows, limits_);
      int64_t first = 0;
#ifdef __AVX512BF16__
      if constexpr (sizeof(T) == sizeof(float)) {
        if (rows >= kPreselectRows && p_.inputs >= kPreselectInputs && p_.neurons >= kPreselectNeurons &&
            !preselect(rows, &first))
          return false;
      }
#endif
      if (!plain(rows, first, p_.neurons) || !sink_.finish(row, rows)) return false;
    }
    return true;
  }

 private:
  static int64_t row_bytes(const ThresholdLinearParams& p) { return p.inputs * static_cast<int64_t>(sizeof(T)); }
  // Blocks larger than L2 still pay: W comes from memory once per block, and x from L3 once per panel.
  static int64_t block_rows(const ThresholdLinearParams& p, int64_t samples) {
    return clamp(clamp((768 << 10) / row_bytes(p), 64, 256), 1, samples);
  }
  static int64_t panel_of(const ThresholdLinearParams& p) {
    return clamp((384 << 10) / row_bytes(p) / kTileW * kTileW, 4 * kTileW, kMostPanel);
  }

  bool set_limits(int64_t first, int64_t neurons, int64_t rows) {
    const T limit = sink_.limit(first, neurons, rows);
    for (int64_t i = 0; i < (rows + kTileX) * kTileW; ++i) limits_[i] = limit;
    return limit == limit;
  }

  // Neurons [first, end) without a preselection.
  bool plain(int64_t rows, int64_t first, int64_t end) {
    const int64_t bytes = row_bytes(p_), sub = clamp((24 << 10) / bytes / kTileX * kTileX, kTileX, block_);
    for (int64_t neurons; first < end; first += neurons) {
      neurons = clamp(end - first, 1, clamp(panel_of(p_), 1, sink_.step()));
      if (!set_limits(first, neurons, rows)) return false;
      ScanBlock<T> block;
      block.w = operands_.load_panel(first, neurons, &block.w_stride);
      block.x_stride = block.size = p_.inputs;
      block.first = first;
      block.neurons = static_cast<int>(neurons);
      block.scale = operands_.scale();
      block.shift = operands_.shift();
      for (int64_t begin = 0; begin < rows; begin += sub) {
        block.x = operands_.x() + begin * p_.inputs;
        block.rows = static_cast<int>(clamp(rows - begin, 1, sub));
        block.limits = limits_ + begin * kTileW;
        auto emit = [this, begin](int row, int64_t neuron, T score) { sink_.emit(begin + row, neuron, score); };
        scan_block(block, emit);
      }
    }
    return true;
  }

#ifdef __AVX512BF16__
  // Goes through neurons from 0 on while that pays; *first is where it stopped. False where memory ran out.
  bool preselect(int64_t rows, int64_t* first) {
    Preselection<S> preselection(rows, p_.inputs);
    if (!preselection.ok()) return false;
    preselection.load(operands_.x(), rows);
    *first = clamp(sink_.first_neurons(rows), 0, p_.neurons);
    if (!plain(rows, 0, *first)) return false;
    auto emit = [this](int row, int64_t neuron, T score) { sink_.emit(row, neuron, score); };
    const int64_t most = clamp(operands_.gathers() ? operands_.gathered_rows() : kMostPanel, 1, sink_.step());
    int64_t neurons;
    for (bool pays = true; pays && *first < p_.neurons; *first += neurons) {
      neurons = clamp(p_.neurons - *first, 1, most);
      if (!set_limits(*first, neurons, rows)) return false;
      ptrdiff_t stride;
      const S* const stored = operands_.stored_panel(*first, neurons, &stride);
      pays = preselection.scan(stored, stride, *first, neurons, operands_.scale(), operands_.shift(), limits_, kTileW,
                               emit);
    }
    return true;
  }
#endif

  const ThresholdLinearParams& p_;
  Sink& sink_;
  const int64_t block_;
  Operands<S, T, ThresholdLinearParams> operands_;
  Arena arena_;
  T* limits_;
};

// Hits above their neuron's threshold. Neurons ascend for each row, so a row's hits need no order of their own.
template <class S, class T>
class ThresholdSink {
  struct Hit {
    S value;
    int32_t row, neuron;
  };

 public:
  ThresholdSink(const ThresholdLinearParams& p, const T* thresholds, ActiveRows::List* list, int64_t* counts)
      : thresholds_(thresholds), list_(list), counts_(counts) {
    for (int64_t j = 1; j < p.neurons && !varying_; ++j) varying_ = !(thresholds[j] == thresholds[0]);
  }
  ~ThresholdSink() { std::free(hits_); }
  ThresholdSink(const ThresholdSink&) = delete;
  ThresholdSink& operator=(const ThresholdSink&) = delete;

  void start(int64_t, int64_t, T*) { count_ = 0; }
  int64_t first_neurons(int64_t) const { return 0; }
  // A limit is shared by the neurons of a step: the fewer, the closer it is to their thresholds.
  int64_t step() const { return varying_ ? 64 : kMostPanel; }

  T limit(int64_t first, int64_t neurons, int64_t rows) {
    const int64_t least = count_ + rows * neurons;
    if (least > capacity_) {
      const int64_t capacity = least > 2 * capacity_ ? least : 2 * capacity_;
      void* const memory = std::realloc(hits_, static_cast<size_t>(capacity) * sizeof(Hit));
      if (!memory) return static_cast<T>(__builtin_nan(""));
      hits_ = static_cast<Hit*>(memory);
      capacity_ = capacity;
    }
    T low = static_cast<T>(__builtin_inf());
    for (int64_t j = 0; j < neurons; ++j) {
      const T threshold = thresholds_[first + j], positive = threshold > 0 ? threshold : T{0};
      low = positive < low ? positive : low;
    }
    return low;
  }

  SSD_INLINE void emit(int64_t row, int64_t neuron, T score) {
    if (score <= thresholds_[neuron] || score <= 0) return;
    S value;
    from_acc(score, &value);
    if (to_acc(value) <= 0) return;  // a 16-bit type rounded it to 0
    hits_[count_++] = {value, static_cast<int32_t>(row), static_cast<int32_t>(neuron)};
  }

  bool finish(int64_t row, int64_t rows) {
    if (!reserve<S>(list_, count_)) return false;
    int64_t* const counts = counts_ + row;
    for (int64_t r = 0; r < rows; ++r) counts[r] = 0;
    for (int64_t i = 0; i < count_; ++i) ++counts[hits_[i].row];
    Arena arena(Arena::size_of<int64_t>(rows));
    if (!arena.ok()) return false;
    int64_t* const next = arena.take<int64_t>(rows);
    int64_t at = list_->count;
    for (int64_t r = 0; r < rows; ++r) {
      next[r] = at;
      at += counts[r];
    }
    S* const values = static_cast<S*>(list_->values);
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t to = next[hits_[i].row]++;
      values[to] = hits_[i].value;
      list_->indices[to] = hits_[i].neuron;
    }
    list_->count = at;
    return true;
  }

 private:
  const T* thresholds_;
  ActiveRows::List* const list_;
  int64_t* const counts_;
  bool varying_ = false;
  Hit* hits_ = nullptr;
  int64_t count_ = 0, capacity_ = 0;
};

template <class T>
SSD_INLINE T score_of(PlaceKey key) {
  return KeyOf<T>::score(static_cast<Key<T>>(static_cast<uint64_t>(key >> 64)) << 32);
}

// The `need` largest keys of a part.
template <class T>
class BatchSink {
 public:
  BatchSink(const ThresholdLinearParams& p, int64_t need)
      : neurons_(p.neurons),
        need_(need),
        capacity_(need + clamp(need, 1 << 12, 1 << 20)),
        keys_(static_cast<PlaceKey*>(std::malloc(static_cast<size_t>(capacity_) * sizeof(PlaceKey)))) {}
  ~BatchSink() { std::free(keys_); }
  BatchSink(const BatchSink&) = delete;
  BatchSink& operator=(const BatchSink&) = delete;
  bool ok() const { return keys_ != nullptr; }

  void start(int64_t row, int64_t rows, T* limits) {
    row_ = row;
    rows_ = rows;
    limits_ = limits;
  }
  // Eight scores for each that is wanted: an eighth passes the limit that they give, and fewer later.
  int64_t first_neurons(int64_t rows) const { return count_ >= need_ ? 0 : 8 * need_ / rows + 1; }
  int64_t step() const { return kMostPanel; }
  T limit(int64_t, int64_t, int64_t) {
    cut();
    return limit_;
  }

  SSD_INLINE void emit(int64_t row, int64_t neuron, T score) {
    if (score <= limit_) return;  // it may have risen since the comparison
    const uint64_t place = static_cast<uint64_t>((row_ + row) * neurons_ + neuron);
    const uint64_t bits = static_cast<uint64_t>(KeyOf<T>::make(score, 0) >> 32);
    keys_[count_++] = static_cast<PlaceKey>(bits) << 64 | ~place;
    if (count_ < capacity_) return;
    cut();
    for (int64_t i = 0; i < (rows_ + kTileX) * kTileW; ++i) limits_[i] = limit_;
  }
  bool finish(int64_t, int64_t) { return true; }

  // Hands over the keys.
  PlaceKey* take(int64_t* count) {
    cut();
    *count = count_;
    PlaceKey* const keys = keys_;
    keys_ = nullptr;
    return keys;
  }

 private:
  // Leaves the `need` largest. An equal score with an earlier place may come yet, so the limit is just below the least.
  void cut() {
    if (count_ <= need_) return;
    keep_largest(keys_, count_, need_);
    count_ = need_;
    PlaceKey least = keys_[0];
    for (int64_t i = 1; i < need_; ++i) least = keys_[i] < least ? keys_[i] : least;
    const T score = score_of<T>(least);
    limit_ = score != score ? static_cast<T>(__builtin_inf()) : below(score);  // beside NaN only NaN is large
  }

  const int64_t neurons_, need_, capacity_;
  PlaceKey* keys_;
  int64_t count_ = 0, row_ = 0, rows_ = 0;
  T limit_ = 0;  // only positive scores are wanted
  T* limits_ = nullptr;
};

template <class S, class T>
bool run_threshold(const ThresholdLinearParams& p, const void* thresholds, int64_t begin, int64_t end,
                   ActiveRows::List* list, int64_t* counts) {
  ThresholdSink<S, T> sink(p, static_cast<const T*>(thresholds), list, counts);
  return LimitScan<S, T, ThresholdSink<S, T>>(p, end - begin, sink).run(begin, end);
}

template <class S, class T>
bool run_batch(const ThresholdLinearParams& p, int64_t need, int64_t begin, int64_t end, PlaceKey** keys,
               int64_t* count) {
  BatchSink<T> sink(p, need);
  if (!sink.ok() || !LimitScan<S, T, BatchSink<T>>(p, end - begin, sink).run(begin, end)) return false;
  *keys = sink.take(count);
  return true;
}

template <class S, class T>
bool write_batch(const ThresholdLinearParams& p, const PlaceKey* keys, int64_t count, ActiveRows::List* list,
                 int64_t* counts) {
  if (!reserve<S>(list, count)) return false;
  S* const values = static_cast<S*>(list->values);
  for (int64_t i = 0; i < count; ++i) {
    S value;
    from_acc(score_of<T>(keys[i]), &value);
    if (to_acc(value) <= 0) continue;  // a 16-bit type rounded it to 0
    const int64_t place = static_cast<int64_t>(~static_cast<uint64_t>(keys[i]));
    values[list->count] = value;
    list->indices[list->count++] = static_cast<int32_t>(place % p.neurons);
    ++counts[place / p.neurons];
  }
  return true;
}

#define SSD_BY_TYPE(dtype, function, ...)            \
  switch (dtype) {                                   \
    case Dtype::kFloat32:                            \
      return function<float, float>(__VA_ARGS__);    \
    case Dtype::kFloat64:                            \
      return function<double, double>(__VA_ARGS__);  \
    case Dtype::kBFloat16:                           \
      return function<BFloat16, float>(__VA_ARGS__); \
    default:                                         \
      return function<Half, float>(__VA_ARGS__);     \
  }

bool threshold_linear_part(const ThresholdLinearParams& params, const void* thresholds, int64_t begin, int64_t end,
                           ActiveRows::List* list, int64_t* counts) {
  SSD_BY_TYPE(params.dtype, run_threshold, params, thresholds, begin, end, list, counts)
}
bool batch_topk_part(const ThresholdLinearParams& params, int64_t need, int64_t begin, int64_t end, PlaceKey** keys,
                     int64_t* count) {
  SSD_BY_TYPE(params.dtype, run_batch, params, need, begin, end, keys, count)
}
bool batch_topk_write(const ThresholdLinearParams& params, const PlaceKey* keys, int64_t count, ActiveRows::List* list,
                      int64_t* counts) {
  SSD_BY_TYPE(params.dtype, write_batch, params, keys, count, list, counts)
}
#undef SSD_BY_TYPE

double batch_topk_score(Dtype dtype, PlaceKey key) {
  return dtype == Dtype::kFloat64 ? score_of<double>(key) : static_cast<double>(score_of<float>(key));
}

}  // namespace ssd::cpu::SSD_LEVEL

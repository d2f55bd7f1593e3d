// gaba_linear forward: canonical scores of a block of x against a panel of W at a time.
//
// After a panel, its scores (in L2) raise each row's running lower bound of I, and are then kept: all of them for dense
// output, else those with s > g_j I_low. As I only rises, no entry with h_j > 0 is lost where g_j >= 0; where g_j < 0
// every entry stays. When all panels have passed, I is known and h is computed from what was kept.
// Where every g of a panel is in [0, 1], bf16 scores (AVX-512 BF16) name the pairs that may have s > g_j I_low, and
// only those are scored canonically; dense output is then written from what was kept, too. When too many pass, the rest
// of the part is scored plainly: that changes the time, not a bit of the result. Traffic: W once per block of rows of
// x; for rows output never the (B, R) scores. Determinism: canonical scores and an exact selection: neither blocking
// nor threads can change a bit.
#include "ops/gaba_linear/gaba_linear_backward.h"
#include "ops/gaba_linear/gaba_linear_levels.h"
#include "rows/active_list.h"
#include "rows/rows.h"
#include "select/preselect.h"
#include "select/scan.h"
#include "select/top_keys.h"
#include "simd/simd.h"

namespace ssd::cpu::SSD_LEVEL {

constexpr int64_t kPreselectPanel = 512;  // neurons between two looks at the limits

// Scores of `rows` rows of x and `neurons` rows of w: out[row * out_stride + neuron].
template <class T>
void score_panel(const T* x, ptrdiff_t size, int64_t rows, const T* w, ptrdiff_t w_stride, int64_t neurons, T* out,
                 int64_t out_stride) {
  for (int64_t j = 0; j < neurons; j += kTileW) {
    const int64_t wide = neurons - j < kTileW ? neurons - j : kTileW;
    const T* ws[kTileW];
    for (int i = 0; i < kTileW; ++i) ws[i] = w + (j + (i < wide ? i : wide - 1)) * w_stride;
    for (int64_t r = 0; r < rows; r += kTileX) {
      const int64_t high = rows - r < kTileX ? rows - r : kTileX;
      const T* xs[kTileX];
      for (int i = 0; i < kTileX; ++i) xs[i] = x + (r + (i < high ? i : high - 1)) * size;
      alignas(64) T scores[kTileX * kTileW];
      dot_tile<kTileX, kTileW>(xs, ws, size, scores);
      for (int64_t i = 0; i < high; ++i)
        for (int64_t l = 0; l < wide; ++l) out[(r + i) * out_stride + j + l] = scores[i * kTileW + l];
    }
  }
}

template <class S, class T>
class GabaPart {
  static constexpr bool kWidened = sizeof(S) != sizeof(T), kWide = sizeof(T) != sizeof(float);
  static constexpr uint32_t kAllLanes = (1u << Vec<T>::kWidth) - 1u;

 public:
  GabaPart(const GabaLinearParams& p, const T* g, int64_t samples, bool dense)
      : p_(p), g_(g), dense_(dense), need_(p.k + 1), capacity_(need_ + clamp(need_, 16, 1 << 20)) {
    const int64_t bytes = p.inputs * static_cast<int64_t>(sizeof(T));
    const int64_t kept = dense && kWidened ? (32 << 20) / (p.neurons * static_cast<int64_t>(sizeof(T))) : 64;
    block_ = clamp(clamp(kept, 4, 64), 1, samples);
    sub_ = clamp((24 << 10) / bytes / kTileX * kTileX, kTileX, 64);
    panel_ = clamp((384 << 10) / bytes / kTileW * kTileW, 4 * kTileW, 1024);
    stride_ = panel_ + 16;
#ifdef __AVX512BF16__
    preselect_ = !kWide && samples >= kPreselectRows && p.inputs >= kPreselectInputs && p.neurons >= kPreselectNeurons;
    for (int64_t j = 0; dense && preselect_ && j < p.neurons; ++j) preselect_ = g[j] > 0 && g[j] <= 1;
#endif
  }

  bool run(int64_t begin, int64_t end, S* h, ActiveRows::List* list, int64_t* counts) {
    using A = Arena;
    const int64_t kept = dense_ && kWidened ? block_ * p_.neurons : 0;
    Arena arena(A::size_of<T>(block_ * p_.inputs) + A::size_of<T>(kWidened ? panel_ * p_.inputs : 0) +
                A::size_of<T>(block_ * stride_) + 2 * A::size_of<T>(panel_) + A::size_of<TopKeys<T>>(block_) +
                A::size_of<Key<T>>(block_ * capacity_) + A::size_of<T>(block_) + A::size_of<T>(kept) +
                A::size_of<T>(block_) + A::size_of<ActiveRows::List>(block_));
    if (!arena.ok()) return false;
    x_ = arena.take<T>(block_ * p_.inputs);
    w_ = arena.take<T>(kWidened ? panel_ * p_.inputs : 0);
    scores_ = arena.take<T>(block_ * stride_);
    cut_ = arena.take<T>(panel_);
    top_ = arena.take<TopKeys<T>>(block_);
    keys_ = arena.take<Key<T>>(block_ * capacity_);
    limits_ = arena.take<T>(block_);
    lows_ = arena.take<T>(block_);
    kept_ = arena.take<T>(kept);
    candidates_ = arena.take<ActiveRows::List>(block_);
    for (int64_t r = 0; r < block_; ++r) candidates_[r] = {nullptr, nullptr, 0, 0};
    bool ok = true;
    for (int64_t b = begin; b < end && ok; b += block_) ok = run_block(b, clamp(end - b, 1, block_), h, list, counts);
    for (int64_t r = 0; r < block_; ++r) {
      std::free(candidates_[r].values);
      std::free(candidates_[r].indices);
    }
    return ok;
  }

 private:
  bool run_block(int64_t b, int64_t rows, S* h, ActiveRows::List* list, int64_t* counts) {
    for (int64_t r = 0; r < rows; ++r)
      widen_row(static_cast<const S*>(p_.x) + (b + r) * p_.x_stride, x_ + r * p_.inputs, p_.inputs);
    start(rows);
    int64_t first = 0;
#ifdef __AVX512BF16__
    if constexpr (!kWide) {
      if (preselect_ && !preselect_panels(b, rows, h, &first)) return false;
      if (listed_ && dense_ && !preselect_ && first <= kPreselectStart + kPreselectPanel) {
        start(rows);  // many neurons are active: keep all scores after all
        first = 0;
      }
    }
#endif
    for (; first < p_.neurons; first += panel_)
      if (!plain_panel(b, rows, first, clamp(p_.neurons - first, 1, panel_), h)) return false;
    for (int64_t r = 0; r < rows; ++r) {
      top_[r].cut();
      const T threshold = top_[r].count < need_ ? T{0} : top_[r].limit();
      from_acc(threshold, static_cast<S*>(p_.threshold) + b + r);
      if (!listed_) {
        finish_dense(dense_row(b, r, h), h + (b + r) * p_.neurons, threshold);
        continue;
      }
      // A NaN or an infinite I changes what was left out.
      if (!is_finite(threshold) && !keep_all(r)) return false;
      if (dense_)
        scatter(candidates_[r], threshold, h + (b + r) * p_.neurons);
      else if (!finish_rows(candidates_[r], threshold, list, counts + b + r))
        return false;
    }
    return true;
  }

  void start(int64_t rows) {
    listed_ = !dense_ || preselect_;
    for (int64_t r = 0; r < rows; ++r) {
      top_[r] = {keys_ + r * capacity_, 0, need_, capacity_};
      limits_[r] = 0;  // a >= 0: only positive scores can be above I
      candidates_[r].count = 0;
    }
  }

  static bool is_finite(T number) { return number - number == 0; }

  // Scores and keeps neurons [first, first + neurons) of a block of rows.
  bool plain_panel(int64_t b, int64_t rows, int64_t first, int64_t neurons, S* h) {
    ptrdiff_t w_stride;
    const T* w = load_panel(first, neurons, &w_stride);
    for (int64_t r = 0; r < rows; r += sub_)
      score_panel(x_ + r * p_.inputs, p_.inputs, clamp(rows - r, 1, sub_), w, w_stride, neurons, scores_ + r * stride_,
                  stride_);
    if (listed_)
      for (int64_t j = 0; j < neurons; ++j)
        cut_[j] = g_[first + j] < 0 ? static_cast<T>(__builtin_nan("")) : g_[first + j];  // NaN: every score passes
    for (int64_t r = 0; r < rows; ++r) {
      raise_limit(r, first, neurons);
      if (!listed_)
        std::memcpy(dense_row(b, r, h) + first, scores_ + r * stride_, static_cast<size_t>(neurons) * sizeof(T));
      else if (!keep_candidates(r, first, neurons))
        return false;
    }
    return true;
  }

#ifdef __AVX512BF16__
  // Goes through neurons from *first on while that pays; false when memory runs out.
  bool preselect_panels(int64_t b, int64_t rows, S* h, int64_t* first) {
    Preselection<S> preselection(rows, p_.inputs);
    if (!preselection.ok()) return false;
    preselection.load(x_, rows);
    preselection.inhibit(g_, lows_);
    const auto emit = [&](int row, int64_t neuron, T score) {
      enter(row, neuron, score);
      ActiveRows::List& list = candidates_[row];
      if (score <= g_[neuron] * low_of(row)) return;
      static_cast<T*>(list.values)[list.count] = score;
      list.indices[list.count++] = static_cast<int32_t>(neuron);
    };
    while (preselect_ && *first < p_.neurons) {
      int64_t neurons = clamp(p_.neurons - *first, 1, kPreselectPanel);
      bool within = *first > 0;  // the first neurons give every row a limit
      for (int64_t j = 0; within && j < neurons; ++j) within = g_[*first + j] > 0 && g_[*first + j] <= 1;
      if (within) {
        for (int64_t r = 0; r < rows; ++r) {
          lows_[r] = low_of(r);
          if (!reserve<T>(&candidates_[r], neurons)) return false;
        }
        const T zero = 0;
        preselect_ = preselection.scan(static_cast<const S*>(p_.weight) + *first * p_.weight_stride, p_.weight_stride,
                                       *first, neurons, nullptr, nullptr, &zero, 0, emit);
      } else {
        neurons = clamp(*first > 0 ? neurons : kPreselectStart, 1, clamp(neurons, 1, panel_));
        if (!plain_panel(b, rows, *first, neurons, h)) return false;
      }
      *first += neurons;
    }
    return true;
  }
#endif

  // The lower bound of I in a row; NaN, which lets everything pass, where it is not finite: there every h may be NaN.
  T low_of(int64_t r) const { return is_finite(limits_[r]) ? limits_[r] : static_cast<T>(__builtin_nan("")); }

  // Makes every neuron a candidate of row r.
  bool keep_all(int64_t r) {
    ActiveRows::List& list = candidates_[r];
    if (list.count == p_.neurons) return true;
    list.count = 0;
    if (!reserve<T>(&list, p_.neurons)) return false;
    for (int64_t first = 0; first < p_.neurons; first += panel_) {
      const int64_t neurons = clamp(p_.neurons - first, 1, panel_);
      ptrdiff_t w_stride;
      const T* w = load_panel(first, neurons, &w_stride);
      score_panel(x_ + r * p_.inputs, p_.inputs, 1, w, w_stride, neurons, static_cast<T*>(list.values) + first, 0);
    }
    for (int64_t j = 0; j < p_.neurons; ++j) list.indices[j] = static_cast<int32_t>(j);
    list.count = p_.neurons;
    return true;
  }

  const T* load_panel(int64_t first, int64_t neurons, ptrdiff_t* stride) {
    const S* weight = static_cast<const S*>(p_.weight) + first * p_.weight_stride;
    if constexpr (kWidened) {
      for (int64_t j = 0; j < neurons; ++j) widen_row(weight + j * p_.weight_stride, w_ + j * p_.inputs, p_.inputs);
      *stride = p_.inputs;
      return w_;
    } else {
      *stride = p_.weight_stride;
      return weight;
    }
  }

  // Where the scores of a row wait for I: in h itself where it has the accumulation type.
  T* dense_row(int64_t b, int64_t r, S* h) {
    if constexpr (kWidened)
      return kept_ + r * p_.neurons;
    else
      return h + (b + r) * p_.neurons;
  }

  void raise_limit(int64_t r, int64_t first, int64_t neurons) {
    using V = Vec<T>;
    const T* scores = scores_ + r * stride_;
    for (int64_t j = 0; j < neurons; j += V::kWidth) {
      const int lanes = neurons - j < V::kWidth ? static_cast<int>(neurons - j) : V::kWidth;
      uint32_t passed = not_le_mask(V::load_partial(scores + j, lanes), V::set1(limits_[r]));
      if (lanes < V::kWidth) passed &= (1u << lanes) - 1u;
      for (; passed; passed &= passed - 1) {
        const int lane = __builtin_ctz(passed);
        enter(r, first + j + lane, scores[j + lane]);
      }
    }
  }

  void enter(int64_t r, int64_t neuron, T score) {
    if (score <= limits_[r]) return;  // it may have risen since the comparison
    if (!top_[r].push(score, static_cast<uint32_t>(neuron))) return;
    const T limit = top_[r].limit();
    limits_[r] = limit != limit ? static_cast<T>(__builtin_inf()) : limit;  // beside NaN only NaN is large
  }

  bool keep_candidates(int64_t r, int64_t first, int64_t neurons) {
    using V = Vec<T>;
    ActiveRows::List& list = candidates_[r];
    if (!reserve<T>(&list, neurons)) return false;
    const T* scores = scores_ + r * stride_;
    T* const values = static_cast<T*>(list.values);
    int64_t count = list.count;
    const V low = V::set1(low_of(r));
    for (int64_t j = 0; j < neurons; j += V::kWidth) {
      const int lanes = neurons - j < V::kWidth ? static_cast<int>(neurons - j) : V::kWidth;
      uint32_t passed = not_le_mask(V::load_partial(scores + j, lanes), V::load_partial(cut_ + j, lanes) * low);
      if (lanes < V::kWidth) passed &= (1u << lanes) - 1u;
      if (passed == kAllLanes) {  // where nearly all neurons are active
        V::load(scores + j).store(values + count);
        for (int l = 0; l < V::kWidth; ++l) list.indices[count + l] = static_cast<int32_t>(first + j) + l;
        count += V::kWidth;
        continue;
      }
      for (; passed; passed &= passed - 1) {
        const int lane = __builtin_ctz(passed);
        values[count] = scores[j + lane];
        list.indices[count++] = static_cast<int32_t>(first + j + lane);
      }
    }
    list.count = count;
    return true;
  }

  void finish_dense(const T* scores, S* h, T threshold) {
    using V = Vec<T>;
    const V limit = V::set1(threshold);
    for (int64_t j = 0; j < p_.neurons; j += V::kWidth) {
      const int lanes = p_.neurons - j < V::kWidth ? static_cast<int>(p_.neurons - j) : V::kWidth;
      const V a = vmax(V::zero(), V::load_partial(scores + j, lanes));  // of a NaN the second operand stays
      narrow(vmax(V::zero(), a - V::load_partial(g_ + j, lanes) * limit), h + j, lanes);
    }
  }

  T activation(T score, int32_t neuron, T threshold) const {
    return (score <= 0 ? T{0} : score) - g_[neuron] * threshold;
  }

  void scatter(const ActiveRows::List& from, T threshold, S* h) {
    std::memset(h, 0, static_cast<size_t>(p_.neurons) * sizeof(S));
    const T* scores = static_cast<const T*>(from.values);
    for (int64_t i = 0; i < from.count; ++i) {
      const T value = activation(scores[i], from.indices[i], threshold);
      from_acc(value <= 0 ? T{0} : value, h + from.indices[i]);
    }
  }

  // Finishes a row's first entries by vectors while they are neighbours and all active; how many those are.
  int64_t finish_runs(const ActiveRows::List& from, T threshold, T* values, int32_t* indices, int64_t* at) {
    using V = Vec<T>;
    const T* scores = static_cast<const T*>(from.values);
    int64_t i = 0;
    for (; i + V::kWidth <= from.count; i += V::kWidth) {
      const int32_t first = from.indices[i];
      if (from.indices[i + V::kWidth - 1] - first != V::kWidth - 1) break;
      const V h = vmax(V::zero(), V::load(scores + i)) - V::load(g_ + first) * V::set1(threshold);
      if (gt_mask(h, V::zero()) != kAllLanes) break;
      h.store(values + *at);
      std::memcpy(indices + *at, from.indices + i, V::kWidth * sizeof(int32_t));
      *at += V::kWidth;
    }
    return i;
  }

  bool finish_rows(const ActiveRows::List& from, T threshold, ActiveRows::List* to, int64_t* count) {
    if (!reserve<S>(to, from.count)) return false;
    const T* scores = static_cast<const T*>(from.values);
    S* const values = static_cast<S*>(to->values);
    int64_t at = to->count, i = 0;
    if constexpr (!kWidened) i = finish_runs(from, threshold, values, to->indices, &at);
    for (; i < from.count; ++i) {
      S stored;
      from_acc(activation(scores[i], from.indices[i], threshold), &stored);
      values[at] = stored;
      to->indices[at] = from.indices[i];
      at += !(to_acc(stored) <= 0);
    }
    *count = at - to->count;
    to->count = at;
    return true;
  }

  const GabaLinearParams& p_;
  const T* g_;
  const bool dense_;
  bool preselect_ = false;  // bf16 scores first, while that pays
  bool listed_ = false;     // whether this block keeps candidates rather than all scores
  const int64_t need_, capacity_;
  int64_t block_, sub_, panel_, stride_;
  T *x_, *w_, *scores_, *cut_, *limits_, *lows_, *kept_;
  TopKeys<T>* top_;
  Key<T>* keys_;
  ActiveRows::List* candidates_;
};

template <class S, class T>
bool run_part(const GabaLinearParams& params, const void* g, int64_t begin, int64_t end, void* h,
              ActiveRows::List* list, int64_t* counts) {
  GabaPart<S, T> part(params, static_cast<const T*>(g), end - begin, h != nullptr);
  return part.run(begin, end, static_cast<S*>(h), list, counts);
}

bool gaba_linear_part(const GabaLinearParams& params, const void* g, int64_t begin, int64_t end, void* h,
                      ActiveRows::List* list, int64_t* counts) {
  switch (params.dtype) {
    case Dtype::kFloat32:
      return run_part<float, float>(params, g, begin, end, h, list, counts);
    case Dtype::kFloat64:
      return run_part<double, double>(params, g, begin, end, h, list, counts);
    case Dtype::kBFloat16:
      return run_part<BFloat16, float>(params, g, begin, end, h, list, counts);
    case Dtype::kHalf:
      return run_part<Half, float>(params, g, begin, end, h, list, counts);
  }
  return false;
}

}  // namespace ssd::cpu::SSD_LEVEL

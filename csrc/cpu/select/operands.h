// The operands of a scan: a block of x in the accumulation type, and panels of W where they lie or as copies, with the
// factor and the shift of each neuron. A weight that is transposed, or of which some rows take part, is copied panel by
// panel; one in a 16-bit type is widened.
// Params holds dtype, inputs, x, x_stride, weight, weight_stride, weight_transposed, rows, bias, scale, normalize_input
// and normalize_weight, as TopkLinearParams does.
#pragma once

#include "rows/rows.h"
#include "simd/simd.h"

namespace ssd::cpu::SSD_LEVEL {

constexpr int64_t kMostPanel = 2048;  // neurons per scan

template <class S, class T, class Params>
class Operands {
 public:
  // Room for `rows` rows of x and `panel` <= kMostPanel neurons at a time.
  Operands(const Params& params, int64_t rows, int64_t panel) : p_(params), rows_(rows), panel_size_(panel) {}

  size_t bytes() const {
    using A = Arena;
    return A::size_of<T>(rows_ * p_.inputs) + A::size_of<T>(kWidened ? panel_size_ * p_.inputs : 0) +
           A::size_of<S>(gathers() ? gathered_rows() * p_.inputs : 0) + 2 * A::size_of<T>(kMostPanel);
  }
  void place(Arena& arena) {
    x_ = arena.take<T>(rows_ * p_.inputs);
    panel_ = arena.take<T>(kWidened ? panel_size_ * p_.inputs : 0);
    gathered_ = arena.take<S>(gathers() ? gathered_rows() * p_.inputs : 0);
    scale_ = arena.take<T>(kMostPanel);  // of a panel, whichever scan it belongs to
    shift_ = arena.take<T>(kMostPanel);
  }

  const T* x() const { return x_; }
  const T* scale() const { return p_.normalize_weight || p_.scale ? scale_ : nullptr; }
  const T* shift() const { return p_.bias ? shift_ : nullptr; }
  bool gathers() const { return p_.rows || p_.weight_transposed; }
  int64_t gathered_rows() const { return (panel_size_ + 63) / 64 * 64; }  // whole blocks of a preselection

  void load_block(int64_t row, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) {
      T* to = x_ + r * p_.inputs;
      widen_row(static_cast<const S*>(p_.x) + (row + r) * p_.x_stride, to, p_.inputs);
      if (p_.normalize_input) {
        const T norm = guarded_norm(to, p_.inputs);
        for (int64_t d = 0; d < p_.inputs; ++d) to[d] /= norm;
      }
    }
  }

  // Rows of the weight, where they lie or, at most gathered_rows() of them, as a copy; their scales and shifts too.
  const S* stored_panel(int64_t first, int64_t neurons, ptrdiff_t* stride) {
    const S* const stored = rows_of_weight(first, neurons, stride);
    load_affine(stored, *stride, first, neurons);
    return stored;
  }

  // The panel in the accumulation type, likewise.
  const T* load_panel(int64_t first, int64_t neurons, ptrdiff_t* stride) {
    const S* const stored = stored_panel(first, neurons, stride);
    if constexpr (kWidened) {
      for (int64_t j = 0; j < neurons; ++j) widen_row(stored + j * *stride, panel_ + j * p_.inputs, p_.inputs);
      *stride = p_.inputs;
      return panel_;
    } else {
      return stored;
    }
  }

 private:
  static constexpr bool kWidened = sizeof(S) != sizeof(T);

  int64_t row_of(int64_t neuron) const { return p_.rows ? p_.rows[neuron] : neuron; }

  const S* rows_of_weight(int64_t first, int64_t neurons, ptrdiff_t* stride) {
    const S* const weight = static_cast<const S*>(p_.weight);
    *stride = gathers() ? p_.inputs : p_.weight_stride;
    if (!gathers()) return weight + first * p_.weight_stride;
    if (!p_.weight_transposed) {
      for (int64_t j = 0; j < neurons; ++j)
        std::memcpy(gathered_ + j * p_.inputs, weight + row_of(first + j) * p_.weight_stride,
                    static_cast<size_t>(p_.inputs) * sizeof(S));
      return gathered_;
    }
    constexpr int64_t kTogether = 16;  // neurons: about a cache line of the transposed weight
    for (int64_t begin = 0; begin < neurons; begin += kTogether) {
      const int64_t end = begin + clamp(neurons - begin, 1, kTogether);
      for (int64_t d = 0; d < p_.inputs; ++d)
        for (int64_t j = begin; j < end; ++j)
          gathered_[j * p_.inputs + d] = weight[d * p_.weight_stride + row_of(first + j)];
    }
    return gathered_;
  }

  void load_affine(const S* stored, ptrdiff_t stride, int64_t first, int64_t neurons) {
    for (int64_t j = 0; j < neurons; ++j) {
      const int64_t row = row_of(first + j);
      const T factor = p_.scale ? to_acc(static_cast<const S*>(p_.scale)[row]) : T{1};
      if (p_.normalize_weight)
        scale_[j] = factor / guarded_norm(stored + j * stride, p_.inputs);
      else if (p_.scale)
        scale_[j] = factor;
      if (p_.bias) shift_[j] = factor * to_acc(static_cast<const S*>(p_.bias)[row]);
    }
  }

  const Params& p_;
  const int64_t rows_, panel_size_;
  T *x_ = nullptr, *panel_ = nullptr, *scale_ = nullptr, *shift_ = nullptr;
  S* gathered_ = nullptr;
};

}  // namespace ssd::cpu::SSD_LEVEL

// Gradients of topk_linear from its winners: grad_x = G W and grad_W = G^T x, G (B, R) having K entries per row.
//
// Work: O(B K D); nothing depends on R. Pairs (sample, slot) come grouped by neuron, samples ascending; one part owns
// each neuron and each sample, so there are no atomics and the order of every sum is fixed.
// Traffic: a row of W and a row of x per pair (mostly from cache), and each gradient row once.
#pragma once

#include "ops/topk_linear/topk_linear_levels.h"
#include "rows/rows.h"
#include "rows/weighted_sum.h"
#include "ssd/topk_linear.h"

namespace ssd::cpu::SSD_LEVEL {

template <class S, class T>
class Backward {
 public:
  explicit Backward(const TopkLinearBackwardParams& params) : p_(params) {}

  void norms_x(int64_t begin, int64_t end, T* inverse_x) const {
    for (int64_t b = begin; b < end; ++b) inverse_x[b] = 1 / guarded_norm(x_row(b), p_.inputs);
  }

  void norms_w(int64_t begin, int64_t end, T* inverse_w) const {
    for (int64_t u = begin; u < end; ++u) {
      const T inverse = 1 / guarded_norm(w_row(p_.rows[u]), p_.inputs);
      for (int64_t i = p_.starts[u]; i < p_.starts[u + 1]; ++i) inverse_w[p_.order[i]] = inverse;
    }
  }

  bool grad_x(int64_t begin, int64_t end, const T* inverse_x, const T* inverse_w) const {
    if (p_.transposed) return grad_x_transposed(begin, end);
    Scratch scratch(p_, p_.k);
    if (!scratch.ok()) return false;
    for (int64_t b = begin; b < end; ++b) {
      int64_t count = 0;
      for (int64_t pair = b * p_.k; pair < (b + 1) * p_.k; ++pair) {
        if (p_.masked && to_acc(static_cast<const S*>(p_.values)[pair]) <= 0) continue;
        scratch.rows[count] = w_row(p_.indices[pair]);
        scratch.factors[count++] = gradient(pair) * (inverse_w ? inverse_w[pair] : T{1});
      }
      write(scratch, count, x_row(b), inverse_x ? inverse_x + b : nullptr, static_cast<S*>(p_.grad_x) + b * p_.inputs);
    }
    return true;
  }

  bool grad_w(int64_t begin, int64_t end, const T* inverse_x, const T* inverse_w) const {
    Scratch scratch(p_, p_.batch);
    // Columns of a transposed gradient are written together: neighbours share cache lines.
    Arena columns(Arena::size_of<S>(p_.transposed && p_.grad_weight ? kColumns * p_.inputs : 0));
    if (!scratch.ok() || !columns.ok()) return false;
    S* const block = columns.take<S>(p_.transposed && p_.grad_weight ? kColumns * p_.inputs : 0);
    for (int64_t u = begin; u < end; ++u) {
      int64_t count = 0;
      T bias = 0;
      for (int64_t i = p_.starts[u]; i < p_.starts[u + 1]; ++i) {
        const int64_t pair = p_.order[i], b = pair / p_.k;
        scratch.rows[count] = x_row(b);
        scratch.factors[count++] = gradient(pair) * (inverse_x ? inverse_x[b] : T{1});
        bias = bias + gradient(pair);
      }
      const int64_t neuron = p_.rows[u];
      if (p_.grad_bias) from_acc(bias, static_cast<S*>(p_.grad_bias) + neuron);
      if (p_.transposed) {
        if (!p_.grad_weight) continue;
        const int64_t at = (u - begin) % kColumns;
        weighted_sum(scratch.rows, scratch.factors, count, p_.inputs, block + at * p_.inputs);
        if (at + 1 == kColumns || u + 1 == end) write_columns(block, u - at, at + 1);
        continue;
      }
      S* const to = p_.grad_rows ? static_cast<S*>(p_.grad_rows) + u * p_.inputs
                                 : static_cast<S*>(p_.grad_weight) + neuron * p_.inputs;
      if (p_.grad_rows || p_.grad_weight)
        write(scratch, count, w_row(neuron), inverse_w ? inverse_w + p_.order[p_.starts[u]] : nullptr, to);
    }
    return true;
  }

 private:
  static constexpr int64_t kColumns = 16;

  // The active neurons first_row .. + count of grad_weight (D, R), from their sums (count, D).
  void write_columns(const S* sums, int64_t first_row, int64_t count) const {
    S* const to = static_cast<S*>(p_.grad_weight);
    for (int64_t d = 0; d < p_.inputs; ++d)
      for (int64_t i = 0; i < count; ++i) to[d * p_.neurons + p_.rows[first_row + i]] = sums[i * p_.inputs + d];
  }

  // The sums of grad_x in their usual order, lanes across inputs, from a weight (D, R): a few of its rows at a time,
  // which stay in the cache for all samples.
  bool grad_x_transposed(int64_t begin, int64_t end) const {
    using V = Vec<T>;
    const S* const weight = static_cast<const S*>(p_.weight);
    for (int64_t d = 0; d < p_.inputs; d += V::kWidth) {
      const int lanes = p_.inputs - d < V::kWidth ? static_cast<int>(p_.inputs - d) : V::kWidth;
      for (int64_t b = begin; b < end; ++b) {
        V sum = V::zero();
        for (int64_t pair = b * p_.k; pair < (b + 1) * p_.k; ++pair) {
          if (p_.masked && to_acc(static_cast<const S*>(p_.values)[pair]) <= 0) continue;
          alignas(64) T column[V::kWidth] = {};
          for (int i = 0; i < lanes; ++i) column[i] = to_acc(weight[(d + i) * p_.weight_stride + p_.indices[pair]]);
          sum = fma(V::set1(gradient(pair)), V::load(column), sum);
        }
        narrow(sum, static_cast<S*>(p_.grad_x) + b * p_.inputs + d, lanes);
      }
    }
    return true;
  }

  struct Scratch {
    Arena arena;
    const S** rows;
    T *factors, *sum;
    Scratch(const TopkLinearBackwardParams& p, int64_t pairs)
        : arena(Arena::size_of<const S*>(pairs) + Arena::size_of<T>(pairs) + Arena::size_of<T>(p.inputs)) {
      if (!ok()) return;
      rows = arena.template take<const S*>(pairs);
      factors = arena.template take<T>(pairs);
      sum = arena.template take<T>(p.inputs);
    }
    bool ok() const { return arena.ok(); }
  };

  const S* x_row(int64_t b) const { return static_cast<const S*>(p_.x) + b * p_.x_stride; }
  const S* w_row(int64_t j) const { return static_cast<const S*>(p_.weight) + j * p_.weight_stride; }
  T gradient(int64_t pair) const { return to_acc(static_cast<const S*>(p_.grad_values)[pair]); }

  // The weighted sum, which is the gradient of `row`, or of row / max(||row||, eps) where `inverse` is given.
  void write(const Scratch& scratch, int64_t count, const S* row, const T* inverse, S* to) const {
    using V = Vec<T>;
    if (!inverse) {
      weighted_sum(scratch.rows, scratch.factors, count, p_.inputs, to);
      return;
    }
    weighted_sum(scratch.rows, scratch.factors, count, p_.inputs, scratch.sum);
    // (sum - (unit . sum) unit) / norm with unit = row / norm; below eps the norm is a constant.
    const bool constant = *inverse >= 1 / static_cast<T>(kNormEps);
    const T along = constant ? T{0} : dot(static_cast<const T*>(scratch.sum), row, p_.inputs) * *inverse * *inverse;
    for (ptrdiff_t d = 0; d < p_.inputs; d += V::kWidth) {
      const int lanes = p_.inputs - d < V::kWidth ? static_cast<int>(p_.inputs - d) : V::kWidth;
      V value = V::load_partial(scratch.sum + d, lanes);
      if (!constant) value = fma(V::set1(-along), V::load_partial(row + d, lanes), value);
      narrow(value * V::set1(*inverse), to + d, lanes);
    }
  }

  const TopkLinearBackwardParams& p_;
};

// Runs `call` on the Backward of the storage type in hand.
#define SSD_TOPK_BACKWARD(call)                  \
  switch (params.dtype) {                        \
    case Dtype::kFloat32: {                      \
      using T = float;                           \
      return Backward<float, T>(params).call;    \
    }                                            \
    case Dtype::kFloat64: {                      \
      using T = double;                          \
      return Backward<double, T>(params).call;   \
    }                                            \
    case Dtype::kBFloat16: {                     \
      using T = float;                           \
      return Backward<BFloat16, T>(params).call; \
    }                                            \
    default: {                                   \
      using T = float;                           \
      return Backward<Half, T>(params).call;     \
    }                                            \
  }

void topk_linear_norms_x(const TopkLinearBackwardParams& params, int64_t begin, int64_t end, void* inverse_x) {
  SSD_TOPK_BACKWARD(norms_x(begin, end, static_cast<T*>(inverse_x)))
}
void topk_linear_norms_w(const TopkLinearBackwardParams& params, int64_t begin, int64_t end, void* inverse_w) {
  SSD_TOPK_BACKWARD(norms_w(begin, end, static_cast<T*>(inverse_w)))
}
bool topk_linear_grad_x(const TopkLinearBackwardParams& params, int64_t begin, int64_t end, const void* inverse_x,
                        const void* inverse_w) {
  SSD_TOPK_BACKWARD(grad_x(begin, end, static_cast<const T*>(inverse_x), static_cast<const T*>(inverse_w)))
}
bool topk_linear_grad_w(const TopkLinearBackwardParams& params, int64_t begin, int64_t end, const void* inverse_x,
                        const void* inverse_w) {
  SSD_TOPK_BACKWARD(grad_w(begin, end, static_cast<const T*>(inverse_x), static_cast<const T*>(inverse_w)))
}
#undef SSD_TOPK_BACKWARD

}  // namespace ssd::cpu::SSD_LEVEL

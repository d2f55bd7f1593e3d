// w - step * grad, clamped at 0, divided by its norm, for the touched rows; and how far each row moved.
//
// Work: two passes over a row that stays in L1, the second computing the new numbers again rather than keeping them.
// Traffic: each touched row of W read and written once, its gradient read once, and once more where its norm is asked
// for. Determinism: a row has one owner; sums run in fixed lanes and blocks, blocks are added in fp64, and a sum near
// the ends of the range of fp32 is taken again in fp64: tiny rows are normalised, tiny moves are seen.
#include "ops/sparse_update/sparse_update_levels.h"
#include "rows/row_update.h"
#include "rows/rows.h"
#include "simd/simd.h"

namespace ssd::cpu::SSD_LEVEL {

constexpr double kSmallestNorm = 1e-12;  // as torch.nn.functional.normalize has it

// Asks for a row that comes next and will be written: the rows are scattered, so the processor cannot guess it.
template <class S>
SSD_INLINE void prefetch_row(const S* row, int64_t size) {
  for (int64_t d = 0; d < size; d += 64 / static_cast<int64_t>(sizeof(S))) __builtin_prefetch(row + d, 1);
}

template <bool kClamp, class S, class T>
void update_rows(const SparseUpdateParams& p, int64_t begin, int64_t end, T* old) {
  constexpr int64_t kAhead = 8;
  S* const weight = static_cast<S*>(p.weight);
  const S* const grad = static_cast<const S*>(p.grad);
  for (int64_t m = begin; m < end; ++m) {
    if (m + kAhead < end) prefetch_row(weight + p.indices[m + kAhead] * p.weight_stride, p.inputs);
    S* const row = weight + p.indices[m] * p.weight_stride;
    p.movement[m] = update_weight_row<kClamp, 4, true>(row, grad + m * p.grad_stride, static_cast<T>(p.step),
                                                       p.renormalise, kSmallestNorm, row, old, p.inputs);
  }
}

template <class S>
void run_rows(const SparseUpdateParams& p, int64_t begin, int64_t end, void* scratch) {
  Acc<S>* const old = static_cast<Acc<S>*>(scratch);
  if (p.clamp)
    update_rows<true, S>(p, begin, end, old);
  else
    update_rows<false, S>(p, begin, end, old);
}

template <class S>
void square_rows(const SparseUpdateParams& p, int64_t begin, int64_t end, double* squares) {
  using V = Vec<Acc<S>>;
  for (int64_t m = begin; m < end; ++m) {
    const S* const grad = static_cast<const S*>(p.grad) + m * p.grad_stride;
    squares[m] =
        sum_of_squares<V, 4, true>(p.inputs, [&](int64_t d, int lanes) { return load_lanes<V>(grad + d, lanes); });
    if (is_extreme(squares[m]))
      squares[m] = sum_of_squares_fp64(p.inputs, [&](int64_t d) { return static_cast<double>(to_acc(grad[d])); });
  }
}

void sparse_update_rows(const SparseUpdateParams& params, int64_t begin, int64_t end, void* scratch) {
  switch (params.dtype) {
    case Dtype::kFloat32:
      return run_rows<float>(params, begin, end, scratch);
    case Dtype::kFloat64:
      return run_rows<double>(params, begin, end, scratch);
    case Dtype::kBFloat16:
      return run_rows<BFloat16>(params, begin, end, scratch);
    case Dtype::kHalf:
      return run_rows<Half>(params, begin, end, scratch);
  }
}

void sparse_update_squares(const SparseUpdateParams& params, int64_t begin, int64_t end, double* squares) {
  switch (params.dtype) {
    case Dtype::kFloat32:
      return square_rows<float>(params, begin, end, squares);
    case Dtype::kFloat64:
      return square_rows<double>(params, begin, end, squares);
    case Dtype::kBFloat16:
      return square_rows<BFloat16>(params, begin, end, squares);
    case Dtype::kHalf:
      return square_rows<Half>(params, begin, end, squares);
  }
}

}  // namespace ssd::cpu::SSD_LEVEL

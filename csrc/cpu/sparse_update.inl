// w - step * grad, clamped at 0, divided by its norm, for the touched rows; and how far each row moved.
//
// Work: three passes over a row that stays in L1. Traffic: each touched row of W read and written once, its gradient
// read once. Determinism: a row has one owner, and its sums run in kLanes fixed lanes, added in order; sums are fp64,
// so tiny rows do not underflow and the movement is that of the stored numbers.
#include "simd.h"
#include "sparse_update_levels.h"

namespace ssd::cpu::SSD_LEVEL {

constexpr int kLanes = 16;

SSD_INLINE double add_lanes(const double (&lanes)[kLanes]) {
  double sum = 0;
  for (int l = 0; l < kLanes; ++l) sum += lanes[l];
  return sum;
}

template <class S, class T>
void update_row(const SparseUpdateParams& p, S* weight, const S* grad, T* fresh, double* movement) {
  const T step = static_cast<T>(p.step);
  const int64_t size = p.inputs;
  for (int64_t d = 0; d < size; ++d) fresh[d] = to_acc(weight[d]) - step * to_acc(grad[d]);
  if (p.clamp)
    for (int64_t d = 0; d < size; ++d) fresh[d] = fresh[d] < 0 ? T{0} : fresh[d];  // NaN stays
  if (p.renormalise) {
    double lanes[kLanes] = {};
    int64_t d = 0;
    for (; d + kLanes <= size; d += kLanes)
      for (int l = 0; l < kLanes; ++l) {
        const double value = static_cast<double>(fresh[d + l]);
        lanes[l] += value * value;
      }
    for (int l = 0; d + l < size; ++l)
      lanes[l] += static_cast<double>(fresh[d + l]) * static_cast<double>(fresh[d + l]);
    const double norm = __builtin_sqrt(add_lanes(lanes));
    const T inverse = static_cast<T>(1 / (norm < 1e-12 ? 1e-12 : norm));
    for (d = 0; d < size; ++d) fresh[d] = fresh[d] * inverse;
  }
  double lanes[kLanes] = {};
  const auto store = [&](int64_t d, int lane) {
    const double old = static_cast<double>(to_acc(weight[d]));
    from_acc(fresh[d], weight + d);
    const double moved = static_cast<double>(to_acc(weight[d])) - old;
    lanes[lane] += moved * moved;
  };
  int64_t d = 0;
  for (; d + kLanes <= size; d += kLanes)
    for (int l = 0; l < kLanes; ++l) store(d + l, l);
  for (int l = 0; d + l < size; ++l) store(d + l, l);
  *movement = __builtin_sqrt(add_lanes(lanes));
}

// Asks for a row that comes next: the rows are scattered, so the processor cannot guess it.
template <class S>
SSD_INLINE void prefetch_row(const S* row, int64_t size) {
  for (int64_t d = 0; d < size; d += 64 / static_cast<int64_t>(sizeof(S))) __builtin_prefetch(row + d, 1);
}

template <class S, class T>
void update_rows(const SparseUpdateParams& p, int64_t begin, int64_t end, T* fresh) {
  constexpr int64_t kAhead = 2;
  S* const weight = static_cast<S*>(p.weight);
  const S* const grad = static_cast<const S*>(p.grad);
  for (int64_t m = begin; m < end; ++m) {
    if (m + kAhead < end) {
      prefetch_row(weight + p.indices[m + kAhead] * p.weight_stride, p.inputs);
      prefetch_row(grad + (m + kAhead) * p.grad_stride, p.inputs);
    }
    update_row<S, T>(p, weight + p.indices[m] * p.weight_stride, grad + m * p.grad_stride, fresh, p.movement + m);
  }
}

void sparse_update_rows(const SparseUpdateParams& params, int64_t begin, int64_t end, void* scratch) {
  switch (params.dtype) {
    case Dtype::kFloat32:
      return update_rows<float, float>(params, begin, end, static_cast<float*>(scratch));
    case Dtype::kFloat64:
      return update_rows<double, double>(params, begin, end, static_cast<double*>(scratch));
    case Dtype::kBFloat16:
      return update_rows<BFloat16, float>(params, begin, end, static_cast<float*>(scratch));
    case Dtype::kHalf:
      return update_rows<Half, float>(params, begin, end, static_cast<float*>(scratch));
  }
}

}  // namespace ssd::cpu::SSD_LEVEL

// w - step * grad, clamped at 0, divided by its norm, for the touched rows; and how far each row moved.
//
// Work: two passes over a row that stays in L1. Traffic: each touched row of W read and written once, its gradient read
// once. Determinism: a row has one owner; sums run in fixed lanes and blocks, blocks are added in fp64, and a sum near
// the ends of the range of fp32 is taken again in fp64: tiny rows are normalised, tiny moves are seen.
#include "simd.h"
#include "sparse_update_levels.h"

namespace ssd::cpu::SSD_LEVEL {

constexpr int kLanes = 32;
constexpr int64_t kBlock = 8 * kLanes;  // sums of so many squares in the accumulation type, sums of those in fp64

template <class T>
SSD_INLINE double add_lanes(T (&lanes)[kLanes]) {
  for (int step = kLanes / 2; step > 0; step /= 2)
    for (int l = 0; l < step; ++l) lanes[l] += lanes[l + step];
  return static_cast<double>(lanes[0]);
}

// The sum over a row of value(d) squared, where value(d) is called once per d.
template <class T, class Value>
SSD_INLINE double sum_of_squares(int64_t size, Value value) {
  double sum = 0;
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    const int64_t end = size - begin < kBlock ? size : begin + kBlock;
    T lanes[kLanes] = {};
    int64_t d = begin;
    for (; d + kLanes <= end; d += kLanes)
      for (int l = 0; l < kLanes; ++l) {
        const T number = value(d + l);
        lanes[l] += number * number;
      }
    for (int l = 0; d + l < end; ++l) {
      const T number = value(d + l);
      lanes[l] += number * number;
    }
    sum += add_lanes(lanes);
  }
  return sum;
}

// Whether squares may have been lost below or above the range of fp32.
SSD_INLINE bool is_extreme(double sum) { return !(sum > 1e-30 && sum < 1e30); }

template <bool kClamp, class S, class T>
void update_row(const SparseUpdateParams& p, S* __restrict__ weight, const S* __restrict__ grad, T* __restrict__ fresh,
                T* __restrict__ old, double* movement) {
  const T step = static_cast<T>(p.step);
  const int64_t size = p.inputs;
  double squares = sum_of_squares<T>(size, [&](int64_t d) {
    old[d] = to_acc(weight[d]);
    T value = old[d] - step * to_acc(grad[d]);
    if (kClamp) value = value < 0 ? T{0} : value;  // NaN stays
    return fresh[d] = value;
  });
  T inverse = 1;
  if (p.renormalise) {
    if (is_extreme(squares))
      squares = sum_of_squares<double>(size, [&](int64_t d) { return static_cast<double>(fresh[d]); });
    const double norm = __builtin_sqrt(squares);
    inverse = static_cast<T>(1 / (norm < 1e-12 ? 1e-12 : norm));
  }
  double moved = sum_of_squares<T>(size, [&](int64_t d) {
    from_acc(fresh[d] * inverse, weight + d);
    fresh[d] = to_acc(weight[d]);
    return fresh[d] - old[d];
  });
  if (is_extreme(moved))
    moved = sum_of_squares<double>(
        size, [&](int64_t d) { return static_cast<double>(fresh[d]) - static_cast<double>(old[d]); });
  *movement = __builtin_sqrt(moved);
}

// Asks for a row that comes next: the rows are scattered, so the processor cannot guess it.
template <class S>
SSD_INLINE void prefetch_row(const S* row, int64_t size) {
  for (int64_t d = 0; d < size; d += 64 / static_cast<int64_t>(sizeof(S))) __builtin_prefetch(row + d);
}

template <bool kClamp, class S, class T>
void update_rows(const SparseUpdateParams& p, int64_t begin, int64_t end, T* fresh) {
  constexpr int64_t kAhead = 4;
  S* const weight = static_cast<S*>(p.weight);
  const S* const grad = static_cast<const S*>(p.grad);
  for (int64_t m = begin; m < end; ++m) {
    if (m + kAhead < end) {
      prefetch_row(weight + p.indices[m + kAhead] * p.weight_stride, p.inputs);
      prefetch_row(grad + (m + kAhead) * p.grad_stride, p.inputs);
    }
    update_row<kClamp, S>(p, weight + p.indices[m] * p.weight_stride, grad + m * p.grad_stride, fresh, fresh + p.inputs,
                          p.movement + m);
  }
}

template <class S, class T>
void run_rows(const SparseUpdateParams& p, int64_t begin, int64_t end, void* scratch) {
  T* const fresh = static_cast<T*>(scratch);
  if (p.clamp)
    update_rows<true, S>(p, begin, end, fresh);
  else
    update_rows<false, S>(p, begin, end, fresh);
}

void sparse_update_rows(const SparseUpdateParams& params, int64_t begin, int64_t end, void* scratch) {
  switch (params.dtype) {
    case Dtype::kFloat32:
      return run_rows<float, float>(params, begin, end, scratch);
    case Dtype::kFloat64:
      return run_rows<double, double>(params, begin, end, scratch);
    case Dtype::kBFloat16:
      return run_rows<BFloat16, float>(params, begin, end, scratch);
    case Dtype::kHalf:
      return run_rows<Half, float>(params, begin, end, scratch);
  }
}

}  // namespace ssd::cpu::SSD_LEVEL

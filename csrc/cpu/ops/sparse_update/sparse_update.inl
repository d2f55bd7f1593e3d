// w - step * grad, clamped at 0, divided by its norm, for the touched rows; and how far each row moved.
//
// Work: two passes over a row that stays in L1, the second computing the new numbers again rather than keeping them.
// Traffic: each touched row of W read and written once, its gradient read once, and once more where its norm is asked
// for. Determinism: a row has one owner; sums run in fixed lanes and blocks, blocks are added in fp64, and a sum near
// the ends of the range of fp32 is taken again in fp64: tiny rows are normalised, tiny moves are seen.
#include "ops/sparse_update/sparse_update_levels.h"
#include "rows/rows.h"
#include "simd/simd.h"

namespace ssd::cpu::SSD_LEVEL {

template <class V, class S>
SSD_INLINE V load_lanes(const S* from, int lanes) {
  return lanes == V::kWidth ? V::load(from) : V::load_partial(from, lanes);
}

// The sum over a row of take(d, lanes) squared, the vector of the numbers from d on, whose lanes beyond `lanes` are 0.
template <class V, class Take>
SSD_INLINE double sum_of_squares(int64_t size, Take take) {
  constexpr int kSums = 4, kWidth = V::kWidth;
  constexpr int64_t kBlock = 8 * kSums * kWidth;  // a lane adds at most 8 squares before fp64 takes over
  double sum = 0;
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    const int64_t end = size - begin < kBlock ? size : begin + kBlock;
    V sums[kSums] = {V::zero(), V::zero(), V::zero(), V::zero()};
    int64_t d = begin;
    for (; d + kSums * kWidth <= end; d += kSums * kWidth)
      for (int s = 0; s < kSums; ++s) {
        const V numbers = take(d + s * kWidth, kWidth);
        sums[s] = fma(numbers, numbers, sums[s]);
      }
    for (int s = 0; d < end; d += kWidth, ++s) {
      const V numbers = take(d, end - d < kWidth ? static_cast<int>(end - d) : kWidth);
      sums[s] = fma(numbers, numbers, sums[s]);
    }
    sum += static_cast<double>(reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3])));
  }
  return sum;
}

// The same one by one in fp64, for squares outside the range of fp32.
template <class Take>
double sum_of_squares_fp64(int64_t size, Take take) {
  double sum = 0;
  for (int64_t d = 0; d < size; ++d) {
    const double number = take(d);
    sum += number * number;
  }
  return sum;
}

// Whether squares may have been lost below or above the range of fp32.
SSD_INLINE bool is_extreme(double sum) { return !(sum > 1e-30 && sum < 1e30); }

// Stores numbers, and returns what has been stored.
template <class S, class T>
SSD_INLINE Vec<T> put(Vec<T> numbers, S* to, int lanes) {
  if constexpr (sizeof(S) == sizeof(T)) {
    narrow(numbers, to, lanes);
    return numbers;
  } else {
    T wide[Vec<T>::kWidth];
    S narrowed[Vec<T>::kWidth];
    numbers.store(wide);
    for (int l = 0; l < Vec<T>::kWidth; ++l) {
      from_acc(wide[l], narrowed + l);
      wide[l] = to_acc(narrowed[l]);
    }
    std::memcpy(to, narrowed, static_cast<size_t>(lanes) * sizeof(S));
    return load_lanes<Vec<T>>(wide, lanes);
  }
}

template <bool kClamp, class S, class T>
void update_row(const SparseUpdateParams& p, S* weight, const S* grad, T* old, double* movement) {
  using V = Vec<T>;
  const V step = V::set1(static_cast<T>(-p.step)), zero = V::zero();
  const int64_t size = p.inputs;
  const auto fresh = [&](int64_t d, int lanes) {
    const V value = fma(step, load_lanes<V>(grad + d, lanes), load_lanes<V>(weight + d, lanes));
    return kClamp ? vmax(zero, value) : value;  // NaN stays: it is the second operand
  };
  T inverse = 1;
  if (p.renormalise) {
    double squares = sum_of_squares<V>(size, fresh);
    if (is_extreme(squares))
      squares = sum_of_squares_fp64(size, [&](int64_t d) {
        const double value = static_cast<double>(to_acc(weight[d])) -
                             static_cast<double>(static_cast<T>(p.step)) * static_cast<double>(to_acc(grad[d]));
        return kClamp && value < 0 ? 0.0 : value;
      });
    const double norm = __builtin_sqrt(squares);
    inverse = static_cast<T>(1 / (norm < 1e-12 ? 1e-12 : norm));
  }
  const V scale = V::set1(inverse);
  double moved = sum_of_squares<V>(size, [&](int64_t d, int lanes) {
    const V before = load_lanes<V>(weight + d, lanes), after = fresh(d, lanes) * scale;
    narrow(before, old + d, lanes);
    return put(after, weight + d, lanes) - before;
  });
  if (is_extreme(moved))
    moved = sum_of_squares_fp64(
        size, [&](int64_t d) { return static_cast<double>(to_acc(weight[d])) - static_cast<double>(old[d]); });
  *movement = __builtin_sqrt(moved);
}

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
    update_row<kClamp, S>(p, weight + p.indices[m] * p.weight_stride, grad + m * p.grad_stride, old, p.movement + m);
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
    squares[m] = sum_of_squares<V>(p.inputs, [&](int64_t d, int lanes) { return load_lanes<V>(grad + d, lanes); });
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

// The end of every row's step, for the operation and the engine alike: its norm, the row scaled to it, and how far the
// row has moved. A sum of squares near the ends of the range of fp32 is taken again in fp64, so tiny and huge rows are
// normalised and tiny moves are seen.
//
// Two orders of a sum: kSums vectors take turns, and with kBlocks fp64 takes over after 8 squares of a lane. The engine
// keeps its own, without blocks, so that its published runs repeat bit by bit.
#pragma once

#include <cstring>

#include "rows/rows.h"

namespace ssd::cpu::SSD_LEVEL {

template <class V, class S>
SSD_INLINE V load_lanes(const S* from, int lanes) {
  return lanes == V::kWidth ? V::load(from) : V::load_partial(from, lanes);
}

// The sum over a row of take(d, lanes) squared, the vector of the numbers from d on, whose lanes beyond `lanes` are 0.
template <class V, int kSums, bool kBlocks, class Take>
SSD_INLINE double sum_of_squares(int64_t size, Take take) {
  constexpr int kWidth = V::kWidth;
  const int64_t block = kBlocks ? 8 * kSums * kWidth : size;
  double total = 0;
  for (int64_t begin = 0; begin < size; begin += block) {
    const int64_t end = size - begin < block ? size : begin + block;
    V sums[kSums];
    for (int s = 0; s < kSums; ++s) sums[s] = V::zero();
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
    for (int left = kSums; left > 1; left /= 2)
      for (int s = 0; s < left / 2; ++s) sums[s] = sums[2 * s] + sums[2 * s + 1];
    total += static_cast<double>(reduce_add(sums[0]));
  }
  return total;
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

// Whether every number of the row a - b is 0: rows that did not move need no second sum.
template <class T, class S>
bool equal_rows(const S* a, const T* b, int64_t size) {
  using V = Vec<T>;
  V most = V::zero();
  for (int64_t d = 0; d < size; d += V::kWidth) {
    const int lanes = size - d < V::kWidth ? static_cast<int>(size - d) : V::kWidth;
    const V change = load_lanes<V>(a + d, lanes) - load_lanes<V>(b + d, lanes);
    most = vmax(vmax(change, V::zero() - change), most);
  }
  T lanes[V::kWidth];
  most.store(lanes);
  for (int l = 0; l < V::kWidth; ++l)
    if (!(lanes[l] == 0)) return false;
  return true;
}

// 1 / max(norm, smallest): a row of zeros stays.
SSD_INLINE double inverse_norm(double squares, double smallest) {
  const double norm = __builtin_sqrt(squares);
  return 1 / (norm < smallest ? smallest : norm);
}

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

// row = fresh(d, lanes) * inverse; returns ||row - from||, where from may be the row itself, as it was. from is copied
// to old, which may hold the numbers that fresh reads.
template <int kSums, bool kBlocks, class S, class T, class Fresh>
SSD_INLINE double replace_row(S* row, const S* from, T* old, int64_t size, T inverse, Fresh fresh) {
  using V = Vec<T>;
  const V scale = V::set1(inverse);
  double moved = sum_of_squares<V, kSums, kBlocks>(size, [&](int64_t d, int lanes) {
    const V before = load_lanes<V>(from + d, lanes), after = fresh(d, lanes) * scale;
    narrow(before, old + d, lanes);
    return put(after, row + d, lanes) - before;
  });
  if (is_extreme(moved))
    moved = moved == 0 && equal_rows(row, old, size) ? 0 : sum_of_squares_fp64(size, [&](int64_t d) {
      return static_cast<double>(to_acc(row[d])) - static_cast<double>(old[d]);
    });
  return __builtin_sqrt(moved);
}

// w - step * grad, clamped at 0 where kClamp says so, scaled to norm 1 where `renormalise` says so (a norm below
// `smallest` counts as that); returns ||w - from||, as replace_row does.
template <bool kClamp, int kSums, bool kBlocks, class S, class T>
SSD_INLINE double update_weight_row(S* w, const S* grad, T step, bool renormalise, double smallest, const S* from,
                                    T* old, int64_t size) {
  using V = Vec<T>;
  const V minus = V::set1(-step), zero = V::zero();
  const auto fresh = [&](int64_t d, int lanes) {
    const V value = fma(minus, load_lanes<V>(grad + d, lanes), load_lanes<V>(w + d, lanes));
    return kClamp ? vmax(zero, value) : value;  // NaN stays: it is the second operand
  };
  T inverse = 1;
  if (renormalise) {
    double squares = sum_of_squares<V, kSums, kBlocks>(size, fresh);
    if (is_extreme(squares))
      squares = sum_of_squares_fp64(size, [&](int64_t d) {
        const double value =
            static_cast<double>(to_acc(w[d])) - static_cast<double>(step) * static_cast<double>(to_acc(grad[d]));
        return kClamp && value < 0 ? 0.0 : value;
      });
    inverse = static_cast<T>(inverse_norm(squares, smallest));
  }
  return replace_row<kSums, kBlocks>(w, from, old, size, inverse, fresh);
}

}  // namespace ssd::cpu::SSD_LEVEL

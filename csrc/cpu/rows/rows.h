// Rows of storage types in the accumulation type: widening, rounding, norms; and the workspace of a part.
#pragma once

#include <cstdlib>

#include "simd/simd.h"

namespace ssd::cpu::SSD_LEVEL {

constexpr double kNormEps = 1e-12;

SSD_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
SSD_INLINE double square_root(double x) { return __builtin_sqrt(x); }

// max(||row||, eps) of a row in the accumulation type; NaN stays NaN.
template <class S>
SSD_INLINE Acc<S> guarded_norm(const S* row, ptrdiff_t size) {
  using T = Acc<S>;
  const T norm = square_root(dot(row, row, size)), eps = static_cast<T>(kNormEps);
  return norm < eps ? eps : norm;
}

template <class S, class T>
SSD_INLINE void widen_row(const S* from, T* to, ptrdiff_t size) {
  ptrdiff_t d = 0;
  for (; d + Vec<T>::kWidth <= size; d += Vec<T>::kWidth) Vec<T>::load(from + d).store(to + d);
  if (const int rest = static_cast<int>(size - d)) Vec<T>::load_partial(from + d, rest).store_partial(to + d, rest);
}

template <class S, class T>
SSD_INLINE void narrow(Vec<T> from, S* to, int lanes) {
  T values[Vec<T>::kWidth];
  from.store(values);
  for (int l = 0; l < lanes; ++l) from_acc(values[l], to + l);
}
template <class T>
SSD_INLINE void narrow(Vec<T> from, T* to, int lanes) {
  if (lanes == Vec<T>::kWidth)
    from.store(to);
  else
    from.store_partial(to, lanes);
}

// One allocation, handed out in aligned pieces.
class Arena {
 public:
  explicit Arena(size_t bytes) : start_(static_cast<char*>(std::malloc(bytes + 64))) {
    next_ = start_ ? start_ + (64 - reinterpret_cast<uintptr_t>(start_) % 64) : nullptr;
  }
  ~Arena() { std::free(start_); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  bool ok() const { return start_ != nullptr; }
  template <class A>
  A* take(size_t count) {
    A* piece = reinterpret_cast<A*>(next_);
    next_ += size_of<A>(count);
    return piece;
  }
  template <class A>
  static size_t size_of(size_t count) {
    return (count * sizeof(A) + 63) / 64 * 64;
  }

 private:
  char* start_;
  char* next_;
};

SSD_INLINE int64_t clamp(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

}  // namespace ssd::cpu::SSD_LEVEL

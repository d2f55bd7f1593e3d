// What the tests of CUDA kernels share: how many cases, tensors of their exact size, the canonical dot product.
#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "../check.h"
#include "emulator.h"

namespace ssd::test {

// Every case runs in four schedules: fewer of them where each access is checked.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kCases = 10;
#else
constexpr int kCases = 100;
#endif

// The sum of a[d] b[d] in the canonical order of the avx512 level.
template <class T>
T canonical_dot(const T* a, const T* b, long long size) {
  constexpr int kLanes = sizeof(T) == 8 ? 8 : 16;
  T lanes[kLanes] = {};
  for (long long d = 0; d < size; ++d) lanes[d % kLanes] = std::fma(a[d], b[d], lanes[d % kLanes]);
  for (int step = kLanes / 2; step > 0; step /= 2)
    for (int l = 0; l < step; ++l) lanes[l] = lanes[l] + lanes[l + step];
  return lanes[0];
}

// Equal bits, or NaN both.
inline bool same(float a, float b) { return (a != a && b != b) || same_bits(a, b); }
inline bool same(double a, double b) { return (a != a && b != b) || same_bits(a, b); }

// A tensor to be written: NaN before each run.
template <class T>
std::vector<T> unwritten(long long size) {
  std::vector<T> values(static_cast<size_t>(size));
  if (size) std::memset(static_cast<void*>(values.data()), 0xff, values.size() * sizeof(T));
  return values;
}

}  // namespace ssd::test

// simd/simd.h at one level: storage types, partial loads, the canonical dot product and its tiles.
#include "simd/simd.h"

#include <cmath>
#include <vector>

#include "check.h"

using namespace ssd::cpu;
using namespace ssd::cpu::SSD_LEVEL;
using ssd::test::Random;
using ssd::test::same_bits;

namespace {

// Every 16-bit pattern widens as its definition says, in scalars and in vectors, and rounds back to itself.
template <class S>
void test_storage(int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1, top = (1 << exponent_bits) - 1;
  std::vector<S> all(65536);
  for (int bits = 0; bits < 65536; ++bits) {
    all[bits].bits = static_cast<uint16_t>(bits);
    const int exponent = bits >> mantissa_bits & top, mantissa = bits & ((1 << mantissa_bits) - 1);
    const double fraction = std::ldexp(static_cast<double>(mantissa), -mantissa_bits);
    double expected = exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias);
    if (exponent == top) expected = mantissa ? NAN : INFINITY;
    if (bits >> 15) expected = -expected;
    const float value = to_acc(all[bits]);
    CHECK(exponent == top && mantissa ? std::isnan(value) : same_bits(value, static_cast<float>(expected)), "%04x",
          bits);
    S back;
    from_acc(value, &back);
    if (!std::isnan(value)) CHECK(back.bits == bits, "%04x became %04x", bits, back.bits);
  }
  using V = Vec<float>;
  for (int i = 0; i + V::kWidth <= 65536; i += V::kWidth) {
    float lanes[V::kWidth];
    V::load(&all[i]).store(lanes);
    for (int l = 0; l < V::kWidth; ++l) {
      const float value = to_acc(all[i + l]);
      CHECK(std::isnan(value) ? std::isnan(lanes[l]) : same_bits(lanes[l], value), "%04x", i + l);
    }
  }
}

// from_acc rounds to the nearest representable number, to even at a tie.
template <class S>
void test_rounding() {
  Random random(3);
  for (int i = 0; i < 200000; ++i) {
    const float value = std::ldexp(static_cast<float>(random.uniform()), random.below(60) - 40);
    S rounded, below, above;
    from_acc(value, &rounded);
    below.bits = static_cast<uint16_t>(rounded.bits - 1);
    above.bits = static_cast<uint16_t>(rounded.bits + 1);
    const double error = std::fabs(static_cast<double>(to_acc(rounded)) - value);
    if ((rounded.bits & 0x7fff) == 0 || std::isinf(to_acc(rounded))) continue;
    for (const S neighbour : {below, above}) {
      const double other = std::fabs(static_cast<double>(to_acc(neighbour)) - value);
      CHECK(error < other || (error == other && rounded.bits % 2 == 0), "%a", static_cast<double>(value));
    }
  }
}

template <class T>
std::vector<T> random_vector(Random& random, size_t size) {
  std::vector<T> v(size);
  for (T& x : v) x = static_cast<T>(random.uniform());
  return v;
}

// The definition of the canonical dot product, one lane at a time.
template <class T>
T dot_by_definition(const T* x, const T* w, int size) {
  constexpr int kWidth = Vec<T>::kWidth;
  T lanes[kWidth] = {};
  for (int l = 0; l < kWidth; ++l)
    for (int d = l; d < (size + kWidth - 1) / kWidth * kWidth; d += kWidth) {
      const T a = d < size ? x[d] : 0, b = d < size ? w[d] : 0;
#if defined(__AVX2__)
      lanes[l] = std::fma(a, b, lanes[l]);
#else
      lanes[l] = a * b + lanes[l];
#endif
    }
  for (int step = kWidth / 2; step > 0; step /= 2)
    for (int l = 0; l < step; ++l) lanes[l] = lanes[l] + lanes[l + step];
  return lanes[0];
}

template <class T, int NX, int NW>
void test_tile(Random& random, int size) {
  const std::vector<T> x = random_vector<T>(random, static_cast<size_t>(NX) * size);
  const std::vector<T> w = random_vector<T>(random, static_cast<size_t>(NW) * size);
  const T *xs[NX], *ws[NW];
  for (int i = 0; i < NX; ++i) xs[i] = x.data() + i * size;
  for (int j = 0; j < NW; ++j) ws[j] = w.data() + j * size;
  T out[NX * NW];
  dot_tile<NX, NW>(xs, ws, size, out);
  for (int i = 0; i < NX; ++i)
    for (int j = 0; j < NW; ++j) {
      CHECK(same_bits(out[i * NW + j], dot(xs[i], ws[j], size)), "tile %dx%d size %d at %d,%d", NX, NW, size, i, j);
      CHECK(same_bits(out[i * NW + j], dot_by_definition(xs[i], ws[j], size)), "size %d", size);
    }
}

template <class T>
void test_dots() {
  Random random(1);
  for (const int size : {1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 255, 256, 257}) {
    test_tile<T, 1, 1>(random, size);
    test_tile<T, 1, 4>(random, size);
    test_tile<T, 2, 4>(random, size);
    test_tile<T, 4, 4>(random, size);
    test_tile<T, 3, 5>(random, size);
    test_tile<T, 4, 6>(random, size);
    test_tile<T, 5, 7>(random, size);
  }
}

template <class T, int N>
void test_reduction(Random& random) {
  Vec<T> vectors[N];
  T lanes[Vec<T>::kWidth], out[N];
  for (auto& v : vectors) {
    for (T& lane : lanes) lane = static_cast<T>(random.uniform());
    v = Vec<T>::load(lanes);
  }
  reduce_add_all<N>(vectors, out);
  for (int i = 0; i < N; ++i) CHECK(same_bits(out[i], reduce_add(vectors[i])), "%d of %d", i, N);
}

template <class T>
void test_partial() {
  using V = Vec<T>;
  // A heap block of exactly n entries: AddressSanitizer sees a load or a store beyond it.
  for (int n = 1; n < V::kWidth; ++n) {
    std::vector<T> from(n), to(n, T{7});
    for (int l = 0; l < n; ++l) from[l] = static_cast<T>(l + 1);
    const V v = V::load_partial(from.data(), n);
    T lanes[V::kWidth];
    v.store(lanes);
    for (int l = 0; l < V::kWidth; ++l) CHECK(lanes[l] == (l < n ? l + 1 : 0), "lane %d of %d", l, n);
    v.store_partial(to.data(), n);
    CHECK(to == from);
  }
}

template <class T>
void test_masks() {
  using V = Vec<T>;
  const T nan = static_cast<T>(NAN), values[] = {1, 2, nan, -1, 0, static_cast<T>(-0.0), static_cast<T>(INFINITY)};
  for (const T a : values)
    for (const T b : values) {
      const uint32_t all = V::kWidth == 32 ? ~0u : (1u << V::kWidth) - 1u;
      CHECK(not_le_mask(V::set1(a), V::set1(b)) == (!(a <= b) ? all : 0));
      CHECK(gt_mask(V::set1(a), V::set1(b)) == (a > b ? all : 0));
    }
}

}  // namespace

int main() {
  ssd::test::require_level(SSD_STRING(SSD_LEVEL));
  test_storage<BFloat16>(8, 7);
  test_storage<Half>(5, 10);
  test_rounding<BFloat16>();
  test_rounding<Half>();
  test_dots<float>();
  test_dots<double>();
  Random random(2);
  test_reduction<float, 4>(random);
  test_reduction<float, 7>(random);
  test_reduction<float, 16>(random);
  test_reduction<float, 31>(random);
  test_reduction<double, 4>(random);
  test_reduction<double, 15>(random);
  test_partial<float>();
  test_partial<double>();
  test_masks<float>();
  test_masks<double>();
  std::printf("simd.h at %s: passed\n", SSD_STRING(SSD_LEVEL));
}

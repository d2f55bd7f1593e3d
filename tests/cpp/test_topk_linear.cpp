// topk_linear through its C++ interface: every level, type and thread count against a naive computation.
#include "ssd/topk_linear.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "check.h"

using namespace ssd::cpu;
using ssd::test::Random;

namespace {

// Storage: whole numbers up to 8 are exact in each type, so every result is, too.
template <class S>
S from_double(double x);
template <>
float from_double(double x) {
  return static_cast<float>(x);
}
template <>
double from_double(double x) {
  return x;
}
struct Bf16 {
  uint16_t bits;
};
template <>
Bf16 from_double(double x) {
  const float f = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return {static_cast<uint16_t>(bits >> 16)};
}
double to_double(float x) { return x; }
double to_double(double x) { return x; }
double to_double(Bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

struct Case {
  int64_t b, d, r, k;
  bool relu, inhibition, bias, odd;  // odd: NaN and Inf among the weights
};

// Long because a case is followed from its inputs to every output and back in one place.
template <class S>
void run(Dtype dtype, const Case& c, SimdLevel level, int threads, Random& random) {
  const int64_t x_stride = c.d + 3, w_stride = c.d + 1;
  std::vector<S> x(c.b * x_stride, from_double<S>(NAN)), w(c.r * w_stride, from_double<S>(NAN)), bias(c.r);
  for (int64_t b = 0; b < c.b; ++b)
    for (int64_t d = 0; d < c.d; ++d) x[b * x_stride + d] = from_double<S>(random.below(5) - 2);
  for (int64_t j = 0; j < c.r; ++j)
    for (int64_t d = 0; d < c.d; ++d) {
      const int kind = c.odd ? random.below(60) : 1;
      w[j * w_stride + d] = from_double<S>(kind == 0 ? NAN : kind == 2 ? INFINITY : random.below(5) - 2);
    }
  for (S& value : bias) value = from_double<S>(random.below(5) - 2);
  std::vector<S> values(c.b * c.k), threshold(c.b);
  std::vector<int32_t> indices(c.b * c.k);
  const TopkLinearParams params{dtype,
                                c.b,
                                c.d,
                                c.r,
                                c.k,
                                x.data(),
                                x_stride,
                                w.data(),
                                w_stride,
                                c.bias ? bias.data() : nullptr,
                                c.relu,
                                false,
                                false,
                                c.inhibition,
                                values.data(),
                                indices.data(),
                                threshold.data(),
                                threads};
  CHECK(topk_linear_forward(params, level));

  std::vector<double> scores(c.r);
  std::vector<int> order(c.r);
  for (int64_t b = 0; b < c.b; ++b) {
    for (int64_t j = 0; j < c.r; ++j) {
      double score = c.bias ? to_double(bias[j]) : 0;
      for (int64_t d = 0; d < c.d; ++d) score += to_double(x[b * x_stride + d]) * to_double(w[j * w_stride + d]);
      scores[j] = c.relu && score <= 0 ? 0 : score;
      order[j] = static_cast<int>(j);
    }
    std::stable_sort(order.begin(), order.end(), [&](int i, int j) {
      return std::isnan(scores[i]) ? !std::isnan(scores[j]) : scores[i] > scores[j];
    });
    const double limit = c.k < c.r ? scores[order[c.k]] : 0;
    const auto same = [](double a, double e) { return std::isnan(e) ? std::isnan(a) : a == e; };
    CHECK(same(to_double(threshold[b]), limit));
    for (int64_t i = 0; i < c.k; ++i) {
      CHECK(indices[b * c.k + i] == order[i], "row %d slot %d: %d, not %d", int(b), int(i), indices[b * c.k + i],
            order[i]);
      double expected = scores[order[i]];
      if (c.inhibition) expected = expected - limit <= 0 ? 0 : expected - limit;
      CHECK(same(to_double(values[b * c.k + i]), expected));
    }
  }
  if (c.odd) return;

  // Backward: sums of whole numbers, exact in any order.
  const int64_t pairs = c.b * c.k;
  const bool masked = c.relu || c.inhibition;
  std::vector<S> grad(pairs), grad_x(c.b * c.d), grad_w(c.r * c.d, from_double<S>(0)),
      grad_bias(c.r, from_double<S>(0));
  for (S& value : grad) value = from_double<S>(random.below(3) - 1);
  std::vector<int64_t> list(pairs), rows(pairs), starts(pairs + 1);
  const int64_t active = topk_linear_pairs(
      {dtype, pairs, c.r, values.data(), indices.data(), masked, list.data(), rows.data(), starts.data()});
  CHECK(active >= 0);
  std::vector<S> grad_rows(active * c.d);
  TopkLinearBackwardParams backward{dtype,
                                    c.b,
                                    c.d,
                                    c.r,
                                    c.k,
                                    active,
                                    grad.data(),
                                    x.data(),
                                    x_stride,
                                    w.data(),
                                    w_stride,
                                    values.data(),
                                    indices.data(),
                                    masked,
                                    list.data(),
                                    rows.data(),
                                    starts.data(),
                                    false,
                                    false,
                                    grad_x.data(),
                                    grad_w.data(),
                                    nullptr,
                                    grad_bias.data(),
                                    threads};
  CHECK(topk_linear_backward(backward, level));
  backward.grad_weight = nullptr;
  backward.grad_x = nullptr;
  backward.grad_bias = nullptr;
  backward.grad_rows = grad_rows.data();
  CHECK(topk_linear_backward(backward, level));
  std::vector<double> expected_w(c.r * c.d), expected_x(c.b * c.d), expected_bias(c.r);
  std::vector<char> touched(c.r);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    if (masked && to_double(values[pair]) <= 0) continue;
    const int64_t b = pair / c.k, j = indices[pair];
    touched[j] = 1;
    expected_bias[j] += to_double(grad[pair]);
    for (int64_t d = 0; d < c.d; ++d) {
      expected_x[b * c.d + d] += to_double(grad[pair]) * to_double(w[j * w_stride + d]);
      expected_w[j * c.d + d] += to_double(grad[pair]) * to_double(x[b * x_stride + d]);
    }
  }
  for (int64_t i = 0; i < c.b * c.d; ++i) CHECK(to_double(grad_x[i]) == expected_x[i]);
  for (int64_t i = 0; i < c.r * c.d; ++i) CHECK(to_double(grad_w[i]) == expected_w[i]);
  for (int64_t i = 0; i < c.r; ++i) CHECK(to_double(grad_bias[i]) == expected_bias[i]);
  int64_t u = 0;
  for (int64_t j = 0; j < c.r; ++j) {
    if (!touched[j]) continue;
    CHECK(u < active && rows[u] == j);
    for (int64_t d = 0; d < c.d; ++d) CHECK(to_double(grad_rows[u * c.d + d]) == expected_w[j * c.d + d]);
    ++u;
  }
  CHECK(u == active);
}

}  // namespace

int main() {
  const Case cases[] = {
      {1, 1, 1, 1, true, false, false, false},      {1, 17, 500, 10, true, false, false, false},
      {2, 5, 33, 32, false, false, true, false},    {3, 16, 40, 40, true, true, false, false},
      {9, 33, 700, 7, true, true, true, false},     {5, 9, 900, 3, false, true, false, true},
      {40, 20, 130, 12, true, false, true, true},   {70, 7, 3000, 1, false, false, false, false},
      {6, 3, 2500, 2000, true, false, true, false}, {13, 64, 64, 63, false, true, true, false},
      {129, 12, 300, 5, true, false, false, true},  {4, 700, 50, 5, true, false, false, false},
  };
  const int best = static_cast<int>(best_simd_level());
  for (int level = 0; level <= best; ++level) {
    for (const int threads : {1, 2, 3}) {
      Random random(static_cast<uint64_t>(threads));
      for (const Case& c : cases) {
        run<float>(Dtype::kFloat32, c, static_cast<SimdLevel>(level), threads, random);
        run<double>(Dtype::kFloat64, c, static_cast<SimdLevel>(level), threads, random);
        if (c.d < 30) run<Bf16>(Dtype::kBFloat16, c, static_cast<SimdLevel>(level), threads, random);
      }
    }
    std::printf("topk_linear at %s: passed\n", simd_level_name(static_cast<SimdLevel>(level)));
  }
}

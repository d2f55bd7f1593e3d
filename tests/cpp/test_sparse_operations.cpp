// gaba_linear, sparse_linear, sparse_update, distill and activation_counts through their C++ interfaces: every level
// and thread count against naive fp64. Buffers end where the data end, so that the sanitizers see a stray access.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "ssd/activation_counts.h"
#include "ssd/distill.h"
#include "ssd/gaba_linear.h"
#include "ssd/sparse_linear.h"
#include "ssd/sparse_update.h"
#include "ssd/topk_linear.h"

using namespace ssd::cpu;
using ssd::test::Random;

namespace {

std::vector<float> numbers(int64_t count, Random& random, double low = -1) {
  std::vector<float> out(static_cast<size_t>(count));
  for (float& x : out) x = static_cast<float>(std::max(low, random.uniform()));
  return out;
}

bool close(double a, double b, double tolerance = 1e-4) { return std::fabs(a - b) <= tolerance * (1 + std::fabs(b)); }

// h, and from it the rows, their gradients by pairs and by tiles: long because each is checked against the one before.
void test_gaba(int64_t b, int64_t d, int64_t r, int64_t k, double lowest_g, SimdLevel level, int threads,
               Random& random) {
  const std::vector<float> x = numbers(b * d, random), w = numbers(r * d, random);
  std::vector<double> g(static_cast<size_t>(r));
  for (double& value : g) value = std::max(lowest_g, std::fabs(random.uniform()));
  std::vector<float> h(static_cast<size_t>(b * r)), threshold(static_cast<size_t>(b));
  const GabaLinearParams params{Dtype::kFloat32,  b,      d, r, k, x.data(), d, w.data(), d, g.data(),
                                threshold.data(), threads};
  CHECK(gaba_linear_dense(params, h.data(), level));
  for (int64_t i = 0; i < b; ++i) {
    std::vector<double> a(static_cast<size_t>(r));
    for (int64_t j = 0; j < r; ++j) {
      double s = 0;
      for (int64_t e = 0; e < d; ++e) s += static_cast<double>(x[i * d + e]) * w[j * d + e];
      a[j] = std::max(s, 0.0);
    }
    std::vector<double> sorted = a;
    std::sort(sorted.rbegin(), sorted.rend());
    CHECK(close(threshold[i], sorted[k]));
    for (int64_t j = 0; j < r; ++j) CHECK(close(h[i * r + j], std::max(a[j] - g[j] * sorted[k], 0.0)));
  }
  ActiveRows rows;
  std::vector<int64_t> offsets(static_cast<size_t>(b + 1));
  CHECK(gaba_linear_rows(params, offsets.data(), &rows, level));
  const int64_t pairs = rows.count();
  CHECK(offsets[b] == pairs);
  std::vector<float> values(static_cast<size_t>(pairs)), grad_h(static_cast<size_t>(b * r));
  std::vector<int32_t> indices(static_cast<size_t>(pairs));
  rows.copy(values.data(), indices.data());
  std::vector<float> ds = numbers(pairs, random);
  std::vector<bool> seen(static_cast<size_t>(b * r));
  for (int64_t i = 0; i < b; ++i)
    for (int64_t pair = offsets[i]; pair < offsets[i + 1]; ++pair) {
      const int64_t at = i * r + indices[pair];
      CHECK(h[at] == values[pair] && values[pair] > 0);
      grad_h[at] = ds[pair];
      seen[at] = true;
    }
  for (int64_t at = 0; at < b * r; ++at) CHECK(seen[at] == (h[at] > 0));
  std::vector<int64_t> order(pairs), active(pairs), starts(pairs + 1);
  const int64_t neurons = topk_linear_pairs(
      {Dtype::kFloat32, pairs, r, values.data(), indices.data(), true, order.data(), active.data(), starts.data()});
  std::vector<double> dx(b * d), dw(r * d);
  for (int64_t i = 0; i < b; ++i)
    for (int64_t j = 0; j < r; ++j)
      for (int64_t e = 0; e < d; ++e) {
        dx[i * d + e] += static_cast<double>(grad_h[i * r + j]) * w[j * d + e];
        dw[j * d + e] += static_cast<double>(grad_h[i * r + j]) * x[i * d + e];
      }
  for (const bool by_tiles : {false, true}) {
    std::vector<float> grad_x(b * d, NAN), grad_w(r * d, NAN);
    CHECK(pairs_backward({Dtype::kFloat32,
                          b,
                          d,
                          r,
                          neurons,
                          ds.data(),
                          indices.data(),
                          offsets.data(),
                          nullptr,
                          x.data(),
                          d,
                          w.data(),
                          d,
                          order.data(),
                          active.data(),
                          starts.data(),
                          grad_x.data(),
                          grad_w.data(),
                          nullptr,
                          by_tiles,
                          threads},
                         level));
    for (int64_t i = 0; i < b * d; ++i) CHECK(close(grad_x[i], dx[i]));
    for (int64_t i = 0; i < r * d; ++i) CHECK(close(grad_w[i], dw[i]));
  }
  std::vector<float> grad_x(b * d, NAN), grad_w(r * d, NAN);
  CHECK(gaba_linear_dense_backward({Dtype::kFloat32, b, d, r, grad_h.data(), h.data(), x.data(), d, w.data(), d,
                                    grad_x.data(), grad_w.data(), threads},
                                   level));
  for (int64_t i = 0; i < b * d; ++i) CHECK(close(grad_x[i], dx[i]));
  for (int64_t i = 0; i < r * d; ++i) CHECK(close(grad_w[i], dw[i]));
}

void test_sparse_linear(int64_t b, int64_t c, int64_t r, int64_t k, bool columns, SimdLevel level, int threads,
                        Random& random) {
  const int64_t entries = b * k;
  const std::vector<float> values = numbers(entries, random), w = numbers(c * r, random), dy = numbers(b * c, random);
  std::vector<int32_t> indices(static_cast<size_t>(entries));
  std::vector<int64_t> offsets(static_cast<size_t>(b + 1));
  for (int64_t i = 0; i < b; ++i) {
    offsets[i + 1] = offsets[i] + k;
    const int64_t first = random.below(static_cast<int>(r));
    for (int64_t n = 0; n < k; ++n) indices[i * k + n] = static_cast<int32_t>((first + n) % r);
  }
  const int64_t output_stride = columns ? 1 : r, neuron_stride = columns ? c : 1;
  const SparseLinearParams params{
      Dtype::kFloat32, b,      c, r, entries, values.data(), indices.data(), offsets.data(), w.data(), output_stride,
      neuron_stride,   threads};
  std::vector<float> y(b * c, NAN), dv(entries, NAN), dw(c * r, NAN);
  CHECK(sparse_linear(params, y.data(), level).status == SparseLinearStatus::kDone);
  CHECK(sparse_linear_grad_values(params, dy.data(), dv.data(), level));
  CHECK(sparse_linear_grad_weight(params, dy.data(), dw.data(), level));
  std::vector<double> expected(c * r);
  for (int64_t i = 0; i < b; ++i)
    for (int64_t o = 0; o < c; ++o) {
      double sum = 0;
      for (int64_t e = offsets[i]; e < offsets[i + 1]; ++e) {
        const int64_t at = o * output_stride + indices[e] * neuron_stride;
        sum += static_cast<double>(values[e]) * w[at];
        expected[at] += static_cast<double>(values[e]) * dy[i * c + o];
      }
      CHECK(close(y[i * c + o], sum));
    }
  for (int64_t i = 0; i < c * r; ++i) CHECK(close(dw[i], expected[i]));
  for (int64_t e = 0; e < entries; ++e) {
    double sum = 0;
    for (int64_t o = 0; o < c; ++o)
      sum += static_cast<double>(dy[e / k * c + o]) * w[o * output_stride + indices[e] * neuron_stride];
    CHECK(close(dv[e], sum));
  }
  indices[0] = static_cast<int32_t>(r);
  CHECK(sparse_linear(params, y.data(), level).status == SparseLinearStatus::kBadIndex);
}

void test_update(int64_t r, int64_t d, int64_t m, bool clip, SimdLevel level, int threads, Random& random) {
  std::vector<float> w = numbers(r * d, random, 0), grad = numbers(m * d, random);
  const std::vector<float> before = w;
  double all = 0;
  for (const float number : grad) all += static_cast<double>(number) * number;
  const double max_norm = clip ? 0.5 : std::numeric_limits<double>::infinity();
  const double step = 0.05 * std::min(1.0, max_norm / (std::sqrt(all) + 1e-6));
  std::vector<int64_t> rows(static_cast<size_t>(m));
  for (int64_t i = 0; i < m; ++i) rows[i] = i * r / m;
  std::vector<double> movement(static_cast<size_t>(m));
  const SparseUpdateParams params{Dtype::kFloat32, r, d,    m,        w.data(), d,    rows.data(),
                                  grad.data(),     d, 0.05, max_norm, true,     true, movement.data(),
                                  threads};
  CHECK(sparse_update(params, level) == SparseUpdateResult::kDone);
  for (int64_t i = 0; i < m; ++i) {
    std::vector<double> fresh(static_cast<size_t>(d));
    double squares = 0, moved = 0;
    for (int64_t e = 0; e < d; ++e) {
      fresh[e] = std::max(before[rows[i] * d + e] - step * grad[i * d + e], 0.0);
      squares += fresh[e] * fresh[e];
    }
    for (int64_t e = 0; e < d; ++e) {
      const double now = w[rows[i] * d + e], change = now - before[rows[i] * d + e];
      CHECK(close(now, fresh[e] / std::max(std::sqrt(squares), 1e-12)));
      moved += change * change;
    }
    CHECK(close(movement[i], std::sqrt(moved)));
  }
  if (m > 1) {
    std::swap(rows[0], rows[1]);
    CHECK(sparse_update(params, level) == SparseUpdateResult::kBadRows);
  }
}

void test_distill(int64_t b, int64_t r, int64_t k, int64_t n, bool reverse, SimdLevel level, int threads,
                  Random& random) {
  const std::vector<float> z = numbers(b * k, random, 0), q = numbers(b * k, random, 0);
  std::vector<int32_t> at_z(static_cast<size_t>(b * k)), at_q(static_cast<size_t>(b * k));
  for (int64_t i = 0; i < b; ++i)
    for (int64_t e = 0; e < k; ++e) {
      at_z[i * k + e] = static_cast<int32_t>((i + 2 * e) % r);
      at_q[i * k + e] = static_cast<int32_t>((i + 3 * e) % r);
    }
  std::vector<int64_t> units(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) units[i] = r - 1 - i;
  std::vector<float> grad(b * k, 0);
  float kd = NAN;
  const Activations student{Form::kTopK, Dtype::kFloat32, z.data(), 0, at_z.data(), nullptr, k};
  const Activations teacher{Form::kTopK, Dtype::kFloat32, q.data(), 0, at_q.data(), nullptr, k};
  const DistillHiddenParams params{b,       n,   int64_t{1} << 31, student, teacher, units.data(), 2.0,
                                   reverse, &kd, grad.data(),      threads};
  CHECK(distill_hidden(params, level).status == DistillStatus::kDone);
  double sum = 0;
  for (int64_t i = 0; i < b; ++i) {
    std::vector<double> hs(static_cast<size_t>(r)), ht(static_cast<size_t>(r));
    for (int64_t e = 0; e < k; ++e) {
      hs[at_z[i * k + e]] = z[i * k + e] / 2.0;
      ht[at_q[i * k + e]] = q[i * k + e] / 2.0;
    }
    double total_s = 0, total_t = 0;
    for (const int64_t u : units) {
      total_s += std::exp(hs[u]);
      total_t += std::exp(ht[u]);
    }
    for (const int64_t u : units) {
      const double ps = std::exp(hs[u]) / total_s, pt = std::exp(ht[u]) / total_t;
      sum += 4 * (reverse ? ps * std::log(ps / pt) : pt * std::log(pt / ps));
    }
    if (!reverse)
      for (int64_t e = 0; e < k; ++e) {
        const int64_t u = at_z[i * k + e];
        const bool chosen = u >= r - n;
        const double gradient = chosen ? 2 * (std::exp(hs[u]) / total_s - std::exp(ht[u]) / total_t) / b : 0;
        CHECK(close(grad[i * k + e], gradient));
      }
  }
  CHECK(close(kd, sum / b));
  if (n > 1) {
    units[1] = units[0];
    CHECK(distill_hidden(params, level).status == DistillStatus::kRepeated);
  }
}

void test_counts(int64_t b, int64_t r, SimdLevel level, int threads, Random& random) {
  const std::vector<float> h = numbers(b * r, random);
  std::vector<int64_t> counts(r, -1), selected(r);
  activation_counts_dense({Dtype::kFloat32, b, r, h.data(), r, counts.data(), threads}, level);
  for (int64_t j = 0; j < r; ++j) {
    int64_t count = 0;
    for (int64_t i = 0; i < b; ++i) count += h[i * r + j] > 0;
    CHECK(counts[j] == count);
  }
  CHECK(top_n(counts.data(), r, r, selected.data()));
  for (int64_t j = 1; j < r; ++j) {
    const int64_t a = selected[j - 1], c = selected[j];
    CHECK(counts[a] > counts[c] || (counts[a] == counts[c] && a < c));
  }
}

}  // namespace

int main() {
  Random random(7);
  for (int level = 0; level <= static_cast<int>(best_simd_level()); ++level)
    for (const int threads : {1, 2, 3}) {
      const SimdLevel simd = static_cast<SimdLevel>(level);
      for (const double lowest_g : {-1.0, 0.5, 1.0}) {
        test_gaba(1, 1, 2, 1, lowest_g, simd, threads, random);
        test_gaba(7, 33, 101, 10, lowest_g, simd, threads, random);
        test_gaba(70, 17, 1100, 5, lowest_g, simd, threads, random);
        test_gaba(150, 64, 300, 8, lowest_g, simd, threads, random);
      }
      for (const bool either : {false, true}) {
        test_sparse_linear(1, 1, 1, 1, false, simd, threads, random);
        test_sparse_linear(33, 13, 57, 5, either, simd, threads, random);
        test_sparse_linear(128, 40, 500, 20, either, simd, threads, random);
        test_distill(5, 31, 4, 31, either, simd, threads, random);
        test_distill(300, 90, 9, 40, either, simd, threads, random);
      }
      for (const bool clip : {false, true}) {
        test_update(1, 1, 1, clip, simd, threads, random);
        test_update(40, 33, 17, clip, simd, threads, random);
        test_update(900, 300, 450, clip, simd, threads, random);
      }
      test_counts(3, 5, simd, threads, random);
      test_counts(400, 1300, simd, threads, random);
    }
  std::puts("ok");
  return 0;
}

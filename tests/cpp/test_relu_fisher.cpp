// relu_mlp and relu_fisher through their C++ interface: every level, thread count and dtype against naive fp64, sums
// bitwise the same for any number of threads. Buffers end where the data end, so that the sanitizers see a stray
// access.
#include <cmath>
#include <vector>

#include "check.h"
#include "ssd/relu_fisher.h"

using namespace ssd::cpu;
using ssd::test::Random;

namespace {

struct Size {
  int64_t b, d, r, c;
};

template <class T>
std::vector<T> numbers(int64_t count, Random& random, double scale = 1) {
  std::vector<T> out(static_cast<size_t>(count));
  for (T& x : out) x = static_cast<T>(random.uniform() * scale);
  return out;
}

template <class T>
struct Result {
  std::vector<T> hidden, logits, weight, bias, output, output_bias;
};

template <class T>
struct Problem {
  Size s;
  std::vector<T> x, w, bias, v, output_bias, p;
  std::vector<int64_t> labels;

  Problem(Size size, Random& random)
      : s(size),
        x(numbers<T>(s.b * s.d, random)),
        w(numbers<T>(s.r * s.d, random, 0.3)),
        bias(numbers<T>(s.r, random)),
        v(numbers<T>(s.c * s.r, random)),
        output_bias(numbers<T>(s.c, random)) {
    for (int64_t b = 0; b < s.b; ++b) labels.push_back(random.below(static_cast<int>(s.c)));
    for (int64_t i = 0; i < s.b * s.c; ++i)
      p.push_back(static_cast<T>((random.uniform() + 1) / static_cast<double>(s.c)));
  }

  Result<T> run(bool expected, SimdLevel level, int threads) const {
    constexpr Dtype kDtype = sizeof(T) == 8 ? Dtype::kFloat64 : Dtype::kFloat32;
    Result<T> out{std::vector<T>(s.r * s.b, NAN), std::vector<T>(s.b * s.c, NAN),
                  std::vector<T>(s.r * s.d),      std::vector<T>(s.r),
                  std::vector<T>(s.c * s.r),      std::vector<T>(s.c)};
    CHECK(relu_mlp({kDtype, s.b, s.d, s.r, s.c, x.data(), s.d, w.data(), s.d, bias.data(), v.data(), s.r,
                    output_bias.data(), out.hidden.data(), out.logits.data(), threads},
                   level));
    const ReluFisherResult result =
        relu_fisher({kDtype, s.b, s.d, s.r, s.c, x.data(), s.d, out.hidden.data(), s.b, v.data(), s.r, p.data(),
                     expected ? nullptr : labels.data(), 0.7, out.weight.data(), out.bias.data(), out.output.data(),
                     out.output_bias.data(), threads},
                    level);
    CHECK(result.status == ReluFisherStatus::kDone);
    return out;
  }

  // The same sample by sample, from the hidden activations that were found.
  Result<double> naive(bool expected, const std::vector<T>& found) const {
    Result<double> out{std::vector<double>(s.r * s.b), std::vector<double>(s.b * s.c), std::vector<double>(s.r * s.d),
                       std::vector<double>(s.r),       std::vector<double>(s.c * s.r), std::vector<double>(s.c)};
    for (int64_t b = 0; b < s.b; ++b) {
      std::vector<double> d(s.c), square(s.c);
      for (int64_t c = 0; c < s.c; ++c) {
        const double share = p[b * s.c + c];
        d[c] = expected ? share : 0.7 * (share - (c == labels[b]));
        square[c] = expected ? 0.49 * share * (1 - share) : d[c] * d[c];
        out.logits[b * s.c + c] = output_bias[c];
        out.output_bias[c] += square[c];
      }
      for (int64_t j = 0; j < s.r; ++j) {
        double z = bias[j], g = 0, second = 0;
        for (int64_t i = 0; i < s.d; ++i) z += static_cast<double>(w[j * s.d + i]) * x[b * s.d + i];
        const double h = found[j * s.b + b];
        out.hidden[j * s.b + b] = z > 0 ? z : 0;
        for (int64_t c = 0; c < s.c; ++c) {
          const double weight = v[c * s.r + j];
          g += d[c] * weight;
          second += d[c] * weight * weight;
          out.logits[b * s.c + c] += weight * h;
          out.output[c * s.r + j] += square[c] * h * h;
        }
        g = expected ? 0.49 * std::fmax(second - g * g, 0.0) : g * g;
        if (!(h > 0)) continue;
        out.bias[j] += g;
        for (int64_t i = 0; i < s.d; ++i) out.weight[j * s.d + i] += g * x[b * s.d + i] * x[b * s.d + i];
      }
    }
    return out;
  }
};

template <class T>
void close(const std::vector<T>& found, const std::vector<double>& wanted) {
  double largest = 0;
  for (const double x : wanted) largest = std::fmax(largest, std::fabs(x));
  for (size_t i = 0; i < wanted.size(); ++i)
    CHECK(std::fabs(found[i] - wanted[i]) <= (sizeof(T) == 8 ? 1e-12 : 1e-5) * (largest + 1), "%g %g",
          static_cast<double>(found[i]), wanted[i]);
}

template <class T>
void test(Size size, bool expected, SimdLevel level, Random& random) {
  const Problem<T> problem(size, random);
  const Result<T> one = problem.run(expected, level, 1);
  const Result<double> wanted = problem.naive(expected, one.hidden);
  close(one.hidden, wanted.hidden);
  close(one.logits, wanted.logits);
  close(one.weight, wanted.weight);
  close(one.bias, wanted.bias);
  close(one.output, wanted.output);
  close(one.output_bias, wanted.output_bias);
  for (const int threads : {2, 3}) {
    const Result<T> more = problem.run(expected, level, threads);
    CHECK(more.hidden == one.hidden && more.logits == one.logits && more.weight == one.weight);
    CHECK(more.bias == one.bias && more.output == one.output && more.output_bias == one.output_bias);
  }
}

}  // namespace

int main() {
  Random random(11);
  for (int level = 0; level <= static_cast<int>(best_simd_level()); ++level)
    for (const Size size :
         {Size{1, 1, 1, 1}, Size{3, 40, 15, 2}, Size{33, 129, 57, 10}, Size{150, 20, 40, 140}, Size{140, 65, 230, 33}})
      for (const bool expected : {false, true}) {
        test<float>(size, expected, static_cast<SimdLevel>(level), random);
        test<double>(size, expected, static_cast<SimdLevel>(level), random);
      }
  std::puts("ok");
  return 0;
}

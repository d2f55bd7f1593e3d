// Selection from scores against a stable sort, bitwise: dtypes, strides, epilogues, adversarial rows.
#include <algorithm>
#include <numeric>

#include "cases.h"
#include "numbers.cuh"
#include "ssd/threshold_select_cuda.h"

namespace {

using namespace ssd;
using cuda::Acc;

struct Shape {
  int batch, neurons, k, extra, column_stride;
  bool relu, inhibition, scaled, biased;
};

// Kinds of rows: random, ascending, descending, all equal, few values (ties), NaN among them, all NaN, all negative.
template <class S>
void fill_row(int kind, S* row, int neurons, int stride, test::Random& random) {
  for (int j = 0; j < neurons; ++j) {
    double value = random.uniform() * 8;
    if (kind == 1) value = j * 0.25;
    if (kind == 2) value = -j * 0.25;
    if (kind == 3) value = 1.5;
    if (kind == 4) value = random.below(3) - 1;
    if (kind == 5 && random.below(4) == 0) value = NAN;
    if (kind == 6) value = NAN;
    if (kind == 7) value = -1 - random.below(5);
    if (kind == 8) value = random.below(2) ? 0.0 : -0.0;
    cuda::from_acc(static_cast<Acc<S>>(value), row + static_cast<size_t>(j) * static_cast<size_t>(stride));
  }
}

template <class T>
T finish(T score, T x_scale, T weight_scale, T bias, const Shape& shape) {
  if (shape.scaled) score = score * x_scale * weight_scale;
  if (shape.biased) score = score + bias;
  return shape.relu && score <= 0 ? T(0) : score;
}

template <class T>
bool precedes(T a, T b) {  // in a stable descending sort, NaN first
  if (a != a) return b == b;
  return a > b;
}

// Long because a case is followed from its inputs to every output and back in one place.
template <class S, class O>
void run_case(int number, cpu::Dtype score_dtype, cpu::Dtype dtype, const Shape& shape) {
  using T = Acc<S>;
  test::Random random(static_cast<uint64_t>(number));
  const int row_stride = shape.column_stride == 1 ? shape.neurons + shape.extra : 1;
  const int column_stride = shape.column_stride == 1 ? 1 : shape.batch + shape.extra;
  const size_t size = static_cast<size_t>(shape.neurons) * static_cast<size_t>(shape.batch + shape.extra + 1) +
                      static_cast<size_t>(shape.extra * shape.batch);
  std::vector<S> scores = test::unwritten<S>(static_cast<long long>(size));
  for (int b = 0; b < shape.batch; ++b)
    fill_row((number + b) % 9, scores.data() + b * row_stride, shape.neurons, column_stride, random);
  std::vector<T> x_scale(static_cast<size_t>(shape.batch)), weight_scale(static_cast<size_t>(shape.neurons));
  std::vector<O> bias(static_cast<size_t>(shape.neurons));
  for (T& v : x_scale) v = static_cast<T>(random.uniform());
  for (T& v : weight_scale) v = static_cast<T>(random.uniform());
  for (O& v : bias) cuda::from_acc(static_cast<Acc<O>>(random.uniform()), &v);
  for (cuda::emulator::Schedule schedule : cuda::emulator::kSchedules) {
    cuda::emulator::use(schedule);
    std::vector<O> values = test::unwritten<O>(shape.batch * shape.k), threshold = test::unwritten<O>(shape.batch);
    std::vector<int32_t> indices = test::unwritten<int32_t>(shape.batch * shape.k);
    const cuda::ThresholdSelectParams params = {
        score_dtype,
        dtype,
        shape.batch,
        shape.neurons,
        shape.k,
        scores.data(),
        row_stride,
        column_stride,
        {shape.scaled ? x_scale.data() : nullptr, shape.scaled ? weight_scale.data() : nullptr,
         shape.biased ? bias.data() : nullptr, shape.relu},
        shape.inhibition,
        values.data(),
        indices.data(),
        threshold.data(),
        0,
        nullptr};
    const char* error = cuda::threshold_select(params);
    CHECK(!error, "case %d: %s", number, error);
    for (int b = 0; b < shape.batch; ++b) {
      std::vector<T> row(static_cast<size_t>(shape.neurons));
      for (int j = 0; j < shape.neurons; ++j)
        row[j] = finish<T>(cuda::to_acc(scores[static_cast<size_t>(b * row_stride) +
                                               static_cast<size_t>(j) * static_cast<size_t>(column_stride)]),
                           x_scale[b], weight_scale[j], cuda::to_acc(bias[j]), shape);
      std::vector<int> order(row.size());
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int i, int j) { return precedes(row[i], row[j]); });
      const T limit = shape.k < shape.neurons ? row[order[shape.k]] + T(0) : T(0);
      O stored;
      cuda::from_acc(limit, &stored);
      CHECK(test::same(cuda::to_acc(threshold[b]), cuda::to_acc(stored)), "case %d row %d threshold", number, b);
      for (int i = 0; i < shape.k; ++i) {
        T value = row[order[i]] + T(0);  // a key knows no -0
        if (shape.inhibition) value = value - limit <= 0 ? T(0) : value - limit;
        cuda::from_acc(value, &stored);
        CHECK(indices[b * shape.k + i] == order[i], "case %d row %d winner %d: %d for %d", number, b, i,
              indices[b * shape.k + i], order[i]);
        CHECK(test::same(cuda::to_acc(values[b * shape.k + i]), cuda::to_acc(stored)), "case %d row %d value %d",
              number, b, i);
      }
    }
  }
}

void run(int number) {
  test::Random random(static_cast<uint64_t>(number) + 1000);
  Shape shape;
  shape.batch = number % 10 == 9 ? 0 : 1 + random.below(2);
  // One tile, a part of it, several tiles with a rest; now and then so many winners that every tile is cut.
  shape.neurons = number % 3 == 0 ? 1 + random.below(70) : 1 + random.below(number % 3 == 1 ? 2500 : 9000);
  shape.k = 1 + random.below(number % 4 == 1 ? 300 : 20);
  if (number % 11 == 5) shape.k = shape.neurons;
  if (shape.k > shape.neurons) shape.k = shape.neurons;
  if (shape.k > 600) shape.k = 600;
  shape.extra = random.below(5);
  shape.column_stride = number % 7 == 3 ? 0 : 1;
  shape.relu = random.below(2);
  shape.inhibition = random.below(2);
  shape.scaled = random.below(2);
  shape.biased = random.below(2);
  using cpu::Dtype;
  switch (number % 6) {
    case 0:
    case 1:
      return run_case<float, float>(number, Dtype::kFloat32, Dtype::kFloat32, shape);
    case 2:
      return run_case<cuda::Bf16, cuda::Bf16>(number, Dtype::kBFloat16, Dtype::kBFloat16, shape);
    case 3:
      return run_case<double, double>(number, Dtype::kFloat64, Dtype::kFloat64, shape);
    case 4:
      return run_case<float, cuda::Bf16>(number, Dtype::kFloat32, Dtype::kBFloat16, shape);
    default:
      return run_case<float, cuda::Half>(number, Dtype::kFloat32, Dtype::kHalf, shape);
  }
}

}  // namespace

int main() {
  for (int i = 0; i < test::kCases; ++i) run(i);
}

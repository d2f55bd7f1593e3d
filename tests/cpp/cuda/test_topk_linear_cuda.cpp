// The fused forward against canonical scores and a stable sort, bitwise: dtypes, alignments, scales, bias, relu,
// inhibition; equal rows, planted ties, near ties within the preselection's bound, NaN, infinities, tiny and huge rows,
// ascending scores, lists that overflow.
#include <algorithm>
#include <numeric>

#include "cases.h"
#include "numbers.cuh"
#include "ssd/topk_linear_cuda.h"

namespace {

using namespace ssd;

struct Shape {
  int batch, inputs, neurons, k, pad;
  bool relu, inhibition, scaled, biased;
};

template <class S>
void put(double value, S* to) {
  cuda::from_acc(static_cast<float>(value), to);
}

template <class S>
void fill(int kind, const Shape& shape, std::vector<S>& x, std::vector<S>& weight, test::Random& random) {
  const int pitch = shape.inputs + shape.pad;
  for (int i = 0; i < shape.batch * pitch; ++i) put(kind == 1 ? random.uniform() + 1 : random.uniform(), &x[i]);
  for (int j = 0; j < shape.neurons; ++j)
    for (int d = 0; d < shape.inputs; ++d) {
      double value = random.uniform();
      if (kind == 1) value = (1.0 + j) / shape.neurons;                       // ascending for positive x
      if (kind == 2) value = ((d * 37) % 11 - 5) / 4.0;                       // all rows equal
      if (kind == 3) value = ((d * 37 + j % 3) % 11 - 5) / 4.0;               // three kinds of rows
      if (kind == 4) value = 0.5 + (d == 0 ? random.below(9) * 0x1p-20 : 0);  // nearer than the bound
      if (kind == 5) value = -1;                                              // hardly any positive score
      if (kind == 6) value *= 1e-30;
      if (kind == 7) value *= 1e25;
      put(value, &weight[j * pitch + d]);
    }
  if (kind == 8) {
    put(NAN, &x[(shape.batch - 1) * pitch]);
    put(NAN, &weight[shape.neurons / 2 * pitch]);
    put(INFINITY, &weight[shape.neurons / 3 * pitch]);
  }
}

// Long because a case is followed from its inputs to every output and back in one place.
template <class S>
void run(int number, cpu::Dtype dtype) {
  test::Random random(static_cast<uint64_t>(number) + 40);
  const int kind = number / 3 % 9;
  Shape shape;
  shape.batch = number % 13 == 12 ? 0 : number % 5 == 0 ? 33 + random.below(40) : 1 + random.below(6);
  shape.inputs = number % 4 == 0 ? 8 * (1 + random.below(6)) : 1 + random.below(70);
  shape.neurons = 1 + random.below(number % 5 == 0 ? 200 : 900);
  shape.k = 1 + random.below(std::min(shape.neurons, number % 7 == 2 ? 127 : 12));
  shape.pad = number % 4 == 0 ? 8 * random.below(2) : random.below(3);
  shape.relu = random.below(2);
  shape.inhibition = random.below(2);
  shape.scaled = random.below(2);
  shape.biased = random.below(3) == 0;
  const int pitch = shape.inputs + shape.pad;
  std::vector<S> x(static_cast<size_t>(shape.batch * pitch) + 8),
      weight(static_cast<size_t>(shape.neurons * pitch) + 8);
  std::vector<S> bias(static_cast<size_t>(shape.neurons));
  if (shape.batch) fill(kind, shape, x, weight, random);
  for (S& value : bias) put(random.below(4) * 100 + random.uniform(), &value);
  std::vector<float> x_scale(static_cast<size_t>(shape.batch)), w_scale(static_cast<size_t>(shape.neurons)), norms;
  for (float& value : x_scale) value = static_cast<float>(0.5 + std::fabs(random.uniform()));
  for (float& value : w_scale) value = static_cast<float>(0.5 + std::fabs(random.uniform()));
  std::vector<float> wide_x(x.size()), wide_w(weight.size());
  for (size_t i = 0; i < x.size(); ++i) wide_x[i] = cuda::to_acc(x[i]);
  for (size_t i = 0; i < weight.size(); ++i) wide_w[i] = cuda::to_acc(weight[i]);
  for (int b = 0; b < shape.batch; ++b) {
    const float* row = wide_x.data() + b * pitch;
    norms.push_back(std::sqrt(test::canonical_dot(row, row, shape.inputs)));
  }
  float most = 0;
  for (int j = 0; j < shape.neurons; ++j) {
    const float* row = wide_w.data() + j * pitch;
    const float norm =
        (std::sqrt(test::canonical_dot(row, row, shape.inputs)) + 0x1p-50f) * (shape.scaled ? w_scale[j] : 1);
    most = most != most || norm != norm ? NAN : std::max(most, norm);
  }
  const int keep = std::min(shape.k + 1, shape.neurons);
  int64_t parts = 0;
  CHECK(!cuda::topk_linear_parts(shape.batch, shape.neurons, shape.k, 0, &parts));
  for (cuda::emulator::Schedule schedule : cuda::emulator::kSchedules) {
    cuda::emulator::use(schedule);
    std::vector<S> values = test::unwritten<S>(shape.batch * shape.k), threshold = test::unwritten<S>(shape.batch);
    std::vector<int32_t> indices = test::unwritten<int32_t>(shape.batch * shape.k);
    std::vector<uint64_t> lists = test::unwritten<uint64_t>(shape.batch * parts * keep);
    cuda::TopkLinearParams params = {};
    params.dtype = dtype;
    params.batch = shape.batch;
    params.inputs = shape.inputs;
    params.neurons = shape.neurons;
    params.k = shape.k;
    params.x = x.data();
    params.x_stride = params.weight_stride = pitch;
    params.weight = weight.data();
    params.bias = shape.biased ? bias.data() : nullptr;
    params.x_scale = shape.scaled ? x_scale.data() : nullptr;
    params.weight_scale = shape.scaled ? w_scale.data() : nullptr;
    params.x_norms = norms.data();
    params.weight_norm_most = &most;
    params.relu = shape.relu;
    params.inhibition = shape.inhibition;
    params.parts = parts;
    params.lists = lists.data();
    params.values = values.data();
    params.indices = indices.data();
    params.threshold = threshold.data();
    const char* error = cuda::topk_linear(params);
    CHECK(!error, "case %d: %s", number, error);
    for (int b = 0; b < shape.batch; ++b) {
      std::vector<float> row(static_cast<size_t>(shape.neurons));
      for (int j = 0; j < shape.neurons; ++j) {
        float score = test::canonical_dot(wide_x.data() + b * pitch, wide_w.data() + j * pitch, shape.inputs);
        if (shape.scaled) score = score * x_scale[b] * w_scale[j];
        if (shape.biased) score = score + cuda::to_acc(bias[j]);
        row[j] = shape.relu && score <= 0 ? 0.f : score;
      }
      std::vector<int> order(row.size());
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(),
                       [&](int i, int j) { return row[i] != row[i] ? row[j] == row[j] : row[i] > row[j]; });
      const float limit = shape.k < shape.neurons ? row[order[shape.k]] + 0.f : 0.f;
      S stored;
      cuda::from_acc(limit, &stored);
      CHECK(test::same(cuda::to_acc(threshold[b]), cuda::to_acc(stored)),
            "case %d (%d) row %d threshold: %.9g for %.9g", number, kind, b,
            static_cast<double>(cuda::to_acc(threshold[b])), static_cast<double>(limit));
      for (int i = 0; i < shape.k; ++i) {
        float value = row[order[i]] + 0.f;
        if (shape.inhibition) value = value - limit <= 0 ? 0.f : value - limit;
        cuda::from_acc(value, &stored);
        CHECK(indices[b * shape.k + i] == order[i], "case %d (%d) row %d winner %d: %d for %d", number, kind, b, i,
              indices[b * shape.k + i], order[i]);
        CHECK(test::same(cuda::to_acc(values[b * shape.k + i]), cuda::to_acc(stored)), "case %d (%d) row %d value %d",
              number, kind, b, i);
      }
    }
  }
}

}  // namespace

int main() {
  for (int i = 0; i < test::kCases; ++i) {
    if (i % 3 == 0) run<float>(i, cpu::Dtype::kFloat32);
    if (i % 3 == 1) run<cuda::Bf16>(i, cpu::Dtype::kBFloat16);
    if (i % 3 == 2) run<cuda::Half>(i, cpu::Dtype::kHalf);
  }
}

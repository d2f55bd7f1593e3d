// Weighted sums of rows and dots of entries, bitwise, against plain loops: fixed K, row offsets, and pairs sorted by
// neuron; masks, scales, strides, places; NaN; empty sums.
#include <algorithm>
#include <numeric>

#include "cases.h"
#include "numbers.cuh"
#include "ssd/entry_dots_cuda.h"
#include "ssd/weighted_sums_cuda.h"

namespace {

using namespace ssd;

struct Pairs {
  int batch, neurons, k;
  std::vector<int64_t> offsets, samples;
  std::vector<int32_t> indices;
};

// Rows of a varying number of entries, some empty, or K each.
Pairs make_pairs(int number, test::Random& random) {
  Pairs p;
  p.batch = number % 9 == 0 ? number / 9 % 2 : 1 + random.below(20);
  p.neurons = 1 + random.below(40);
  p.k = 1 + random.below(std::min(p.neurons, 9));
  p.offsets.push_back(0);
  for (int b = 0; b < p.batch; ++b) {
    const int count = number % 2 ? p.k : random.below(9);
    for (int i = 0; i < count; ++i) {
      p.indices.push_back(random.below(p.neurons));
      p.samples.push_back(b);
    }
    p.offsets.push_back(static_cast<int64_t>(p.indices.size()));
  }
  return p;
}

template <class S>
std::vector<S> numbers(size_t size, test::Random& random, bool nan) {
  std::vector<S> values(size);
  for (S& value : values) cuda::from_acc(static_cast<cuda::Acc<S>>(random.uniform()), &value);
  if (nan && size) cuda::from_acc(static_cast<cuda::Acc<S>>(NAN), &values[size / 2]);
  return values;
}

// Long because a case is followed from its inputs to every output and back in one place.
template <class S>
void run(int number, cpu::Dtype dtype) {
  using T = cuda::Acc<S>;
  test::Random random(static_cast<uint64_t>(number) + 77);
  const Pairs p = make_pairs(number, random);
  const int columns = 1 + random.below(number % 3 ? 20 : 150), pairs = static_cast<int>(p.indices.size());
  const bool adjacent = number % 4 < 2, fixed = number % 2;
  const int row_stride = adjacent ? columns + number % 3 : 1, column_stride = adjacent ? 1 : p.neurons;
  const auto factors = numbers<S>(static_cast<size_t>(pairs), random, number % 5 == 1);
  const auto mask = numbers<S>(static_cast<size_t>(pairs), random, number % 5 == 2);
  const auto matrix = numbers<S>(static_cast<size_t>(p.neurons * (columns + 3)), random, number % 5 == 3);
  const auto inputs = numbers<S>(static_cast<size_t>(p.batch * columns), random, false);
  const auto scale = numbers<T>(static_cast<size_t>(std::max(p.neurons, p.batch)), random, false);
  const bool masked = number % 3 == 0, scaled = number % 3 == 1, wide = number % 7 < 3;
  // Pairs grouped by neuron, stable.
  std::vector<int64_t> order(static_cast<size_t>(pairs)), starts;
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return p.indices[a] < p.indices[b]; });
  std::vector<int64_t> places(static_cast<size_t>(p.neurons));
  std::iota(places.rbegin(), places.rend(), 0);
  for (int j = 0, at = 0; j <= p.neurons; ++j) {
    while (at < pairs && p.indices[order[at]] < j) ++at;
    starts.push_back(at);
  }
  const auto term = [&](int64_t pair, int64_t row, T value, T sum) {
    if (masked && cuda::to_acc(mask[pair]) <= 0) return sum;
    T factor = cuda::to_acc(factors[pair]);
    if (scaled) factor = factor * scale[row];
    return std::fma(factor, value, sum);
  };
  const auto check = [&](T sum, const std::vector<S>& narrow, const std::vector<T>& broad, size_t at,
                         const char* what) {
    S stored;
    cuda::from_acc(sum, &stored);
    CHECK(wide ? test::same(broad[at], sum) : test::same(cuda::to_acc(narrow[at]), cuda::to_acc(stored)),
          "case %d: %s at %zu", number, what, at);
  };
  for (cuda::emulator::Schedule schedule : cuda::emulator::kSchedules) {
    cuda::emulator::use(schedule);
    // Per sample: rows of the matrix.
    std::vector<S> out = test::unwritten<S>(p.batch * columns);
    std::vector<T> broad = test::unwritten<T>(p.batch * columns);
    cuda::WeightedSumsParams params = {};
    params.dtype = dtype;
    params.wide_out = wide;
    params.sums = p.batch;
    params.columns = columns;
    params.starts = fixed ? nullptr : p.offsets.data();
    params.per_sum = p.k;
    params.factors = factors.data();
    params.mask = masked ? mask.data() : nullptr;
    params.indices = p.indices.data();
    params.row_scale = scaled ? scale.data() : nullptr;
    params.rows = matrix.data();
    params.row_stride = row_stride;
    params.column_stride = column_stride;
    params.out = wide ? static_cast<void*>(broad.data()) : out.data();
    params.out_row_stride = columns;
    params.out_column_stride = 1;
    CHECK(!cuda::weighted_sums(params));
    for (int b = 0; b < p.batch; ++b)
      for (int c = 0; c < columns; ++c) {
        T sum = 0;
        for (int64_t i = p.offsets[b]; i < p.offsets[b + 1]; ++i) {
          const int64_t j = p.indices[i];
          sum = term(i, j, cuda::to_acc(matrix[j * row_stride + c * column_stride]), sum);
        }
        check(sum, out, broad, static_cast<size_t>(b * columns + c), "sum of a sample");
      }
    // Per neuron: rows of the inputs, or ones; into a transposed output, at places of its own.
    const bool ones = number % 8 == 7;
    const int width = ones ? 1 : columns;
    out = test::unwritten<S>(p.neurons * width);
    broad = test::unwritten<T>(p.neurons * width);
    params.sums = p.neurons;
    params.columns = width;
    params.starts = starts.data();
    params.order = order.data();
    params.indices = nullptr;
    params.samples = fixed ? nullptr : p.samples.data();
    params.per_row = p.k;
    params.rows = ones ? nullptr : inputs.data();
    params.row_stride = columns;
    params.column_stride = 1;
    params.places = places.data();
    params.out = wide ? static_cast<void*>(broad.data()) : out.data();
    params.out_row_stride = 1;
    params.out_column_stride = p.neurons;
    CHECK(!cuda::weighted_sums(params));
    for (int j = 0; j < p.neurons; ++j)
      for (int c = 0; c < width; ++c) {
        T sum = 0;
        for (int64_t i = starts[j]; i < starts[j + 1]; ++i) {
          const int64_t b = p.samples[order[i]];
          sum = term(order[i], b, ones ? T(1) : cuda::to_acc(inputs[b * columns + c]), sum);
        }
        check(sum, out, broad, static_cast<size_t>(places[j] + c * p.neurons), "sum of a neuron");
      }
    // Dots of entries.
    out = test::unwritten<S>(pairs);
    CHECK(!cuda::entry_dots({dtype, pairs, columns, inputs.data(), columns, p.indices.data(),
                             fixed ? nullptr : p.samples.data(), p.k, matrix.data(), column_stride, row_stride,
                             out.data(), 0, nullptr}));
    for (int i = 0; i < pairs; ++i) {
      std::vector<T> grad(static_cast<size_t>(columns)), column(grad.size());
      for (int c = 0; c < columns; ++c) {
        grad[c] = cuda::to_acc(inputs[p.samples[i] * columns + c]);
        column[c] = cuda::to_acc(matrix[p.indices[i] * row_stride + c * column_stride]);
      }
      S stored;
      cuda::from_acc(test::canonical_dot(grad.data(), column.data(), columns), &stored);
      CHECK(test::same(cuda::to_acc(out[i]), cuda::to_acc(stored)), "case %d: entry %d", number, i);
    }
  }
}

}  // namespace

int main() {
  for (int i = 0; i < test::kCases; ++i) {
    if (i % 4 == 0) run<float>(i, cpu::Dtype::kFloat32);
    if (i % 4 == 1) run<cuda::Bf16>(i, cpu::Dtype::kBFloat16);
    if (i % 4 == 2) run<double>(i, cpu::Dtype::kFloat64);
    if (i % 4 == 3) run<cuda::Half>(i, cpu::Dtype::kHalf);
  }
}

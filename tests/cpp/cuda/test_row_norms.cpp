// Norms of rows, and the gradient through them, bitwise, for sizes that divide nothing.
#include "cases.h"
#include "numbers.cuh"
#include "ssd/row_norms_cuda.h"

namespace {

using namespace ssd;

template <class S>
void run(int number, cpu::Dtype dtype) {
  using T = cuda::Acc<S>;
  test::Random random(static_cast<uint64_t>(number));
  const int rows = number % 7 == 0 ? number / 7 % 2 : 1 + random.below(40), cols = random.below(70);
  const int stride = cols + number % 3, picked = rows ? 1 + random.below(rows) : 0;
  std::vector<S> x(static_cast<size_t>(rows * stride));
  std::vector<T> wide(x.size()), sums(static_cast<size_t>(picked * cols));
  const bool tiny = number % 5 == 2;  // below eps a norm is a constant
  for (size_t i = 0; i < x.size(); ++i) {
    cuda::from_acc(static_cast<T>(tiny ? 0 : random.uniform()), &x[i]);
    if (number % 5 == 1 && i == x.size() / 2) cuda::from_acc(static_cast<T>(NAN), &x[i]);
    wide[i] = cuda::to_acc(x[i]);
  }
  for (T& value : sums) value = static_cast<T>(random.uniform());
  std::vector<int64_t> numbers(static_cast<size_t>(picked));
  for (int64_t& n : numbers) n = random.below(rows);
  for (cuda::emulator::Schedule schedule : cuda::emulator::kSchedules) {
    cuda::emulator::use(schedule);
    std::vector<T> norms = test::unwritten<T>(rows), inverse = test::unwritten<T>(rows);
    CHECK(!cuda::row_norms({dtype, x.data(), rows, cols, stride, false, norms.data(), 0, nullptr}));
    CHECK(!cuda::row_norms({dtype, x.data(), rows, cols, stride, true, inverse.data(), 0, nullptr}));
    for (int r = 0; r < rows; ++r) {
      const T* row = wide.data() + r * stride;
      const T norm = std::sqrt(test::canonical_dot(row, row, cols)), eps = static_cast<T>(1e-12);
      CHECK(test::same(norms[r], norm), "case %d row %d", number, r);
      CHECK(test::same(inverse[r], 1 / (norm < eps ? eps : norm)), "case %d row %d inverse", number, r);
    }
    std::vector<S> out = test::unwritten<S>(picked * cols);
    const bool all = number % 2 && picked == rows;
    CHECK(!cuda::through_norm({dtype, picked, cols, sums.data(), x.data(), stride, all ? nullptr : numbers.data(),
                               inverse.data(), out.data(), 0, nullptr}));
    for (int r = 0; r < picked; ++r) {
      const int64_t n = all ? r : numbers[r];
      const T *row = wide.data() + n * stride, *sum = sums.data() + r * cols, scale = inverse[n];
      const bool constant = scale >= 1 / static_cast<T>(1e-12);
      const T along = constant ? 0 : test::canonical_dot(sum, row, cols) * scale * scale;
      for (int d = 0; d < cols; ++d) {
        const T value = (constant ? sum[d] : std::fma(-along, row[d], sum[d])) * scale;
        S stored;
        cuda::from_acc(value, &stored);
        CHECK(test::same(cuda::to_acc(out[r * cols + d]), cuda::to_acc(stored)), "case %d row %d gradient %d", number,
              r, d);
      }
    }
  }
}

}  // namespace

int main() {
  for (int i = 0; i < test::kCases; ++i) {
    if (i % 4 == 0) run<float>(i, cpu::Dtype::kFloat32);
    if (i % 4 == 1) run<double>(i, cpu::Dtype::kFloat64);
    if (i % 4 == 2) run<cuda::Bf16>(i, cpu::Dtype::kBFloat16);
    if (i % 4 == 3) run<cuda::Half>(i, cpu::Dtype::kHalf);
  }
}

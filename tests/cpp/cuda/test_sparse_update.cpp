// The update of touched rows, bitwise the avx512 level of the CPU kernel: NaN, zero rows, rows so small or large that
// their squares leave fp32, sizes that divide nothing. Skipped where the processor has no AVX-512.
#include "cases.h"
#include "numbers.cuh"
#include "ssd/sparse_update.h"
#include "ssd/sparse_update_cuda.h"

namespace {

using namespace ssd;

template <class S>
void run(int number, cpu::Dtype dtype) {
  using T = cuda::Acc<S>;
  test::Random random(static_cast<uint64_t>(number) + 5);
  const int neurons = 1 + random.below(30), inputs = 1 + random.below(number % 3 ? 80 : 1300);
  const int stride = inputs + number % 2, grad_stride = inputs + number % 3;
  const double scales[] = {1, 1e-20, 1e18, 0, 1e-3};
  const double scale = dtype == cpu::Dtype::kHalf ? 1 : scales[number / 4 % 5];
  std::vector<S> weight(static_cast<size_t>(neurons * stride)), grad(static_cast<size_t>(neurons * grad_stride));
  for (S& value : weight) cuda::from_acc(static_cast<T>(scale * (random.uniform() + 0.5)), &value);
  for (S& value : grad) cuda::from_acc(static_cast<T>(scale * random.uniform()), &value);
  if (number % 6 == 1) cuda::from_acc(static_cast<T>(NAN), &weight[weight.size() / 2]);
  std::vector<int64_t> rows;
  for (int j = 0; j < neurons; ++j)
    if (number % 10 != 9 && random.below(3)) rows.push_back(j);
  const size_t count = rows.size();
  const bool clamp = number % 5 != 0, renormalise = number % 7 != 0;
  const double step = 0.05, factor = 0.75;
  std::vector<S> gold = weight;
  std::vector<double> gold_movement(count);
  cpu::SparseUpdateParams reference = {};
  reference.dtype = dtype;
  reference.neurons = neurons;
  reference.inputs = inputs;
  reference.rows = static_cast<int64_t>(count);
  reference.weight = gold.data();
  reference.weight_stride = stride;
  reference.indices = rows.data();
  reference.grad = grad.data();
  reference.grad_stride = grad_stride;
  reference.step = number % 2 ? step * factor : step;
  reference.max_norm = INFINITY;
  reference.clamp = clamp;
  reference.renormalise = renormalise;
  reference.movement = gold_movement.data();
  reference.threads = 1;
  CHECK(cpu::sparse_update(reference, cpu::SimdLevel::kAvx512) == cpu::SparseUpdateResult::kDone);
  for (cuda::emulator::Schedule schedule : cuda::emulator::kSchedules) {
    cuda::emulator::use(schedule);
    std::vector<S> updated = weight;
    std::vector<double> movement = test::unwritten<double>(static_cast<long long>(count));
    const char* error = cuda::sparse_update(
        {dtype, inputs, static_cast<int64_t>(count), updated.data(), stride, rows.data(), grad.data(), grad_stride,
         step, number % 2 ? &factor : nullptr, clamp, renormalise, movement.data(), 0, nullptr});
    CHECK(!error, "%s", error);
    for (size_t i = 0; i < weight.size(); ++i)
      CHECK(test::same(cuda::to_acc(updated[i]), cuda::to_acc(gold[i])), "case %d: weight %zu: %g for %g", number, i,
            static_cast<double>(cuda::to_acc(updated[i])), static_cast<double>(cuda::to_acc(gold[i])));
    for (size_t m = 0; m < count; ++m)
      CHECK(test::same(movement[m], gold_movement[m]), "case %d: movement %zu: %g for %g", number, m, movement[m],
            gold_movement[m]);
  }
}

}  // namespace

int main() {
  test::require_level("avx512");
  for (int i = 0; i < test::kCases; ++i) {
    if (i % 4 == 0) run<float>(i, cpu::Dtype::kFloat32);
    if (i % 4 == 1) run<cuda::Bf16>(i, cpu::Dtype::kBFloat16);
    if (i % 4 == 2) run<double>(i, cpu::Dtype::kFloat64);
    if (i % 4 == 3) run<cuda::Half>(i, cpu::Dtype::kHalf);
  }
}

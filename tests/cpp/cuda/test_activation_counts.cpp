// Counts of active neurons, dense and by entries, and the most frequent ones with ties.
#include <algorithm>
#include <numeric>

#include "cases.h"
#include "numbers.cuh"
#include "ssd/activation_counts_cuda.h"

namespace {

using namespace ssd;

template <class S>
void run(int number, cpu::Dtype dtype) {
  test::Random random(static_cast<uint64_t>(number) + 3);
  const int batch = number % 8 == 0 ? number / 8 % 2 : 1 + random.below(150), neurons = 1 + random.below(300);
  const int entries = batch * (1 + random.below(5)), n = random.below(neurons + 1);
  const bool transposed = number % 5 == 1;
  std::vector<S> dense(static_cast<size_t>(batch * neurons)), values(static_cast<size_t>(entries));
  std::vector<int32_t> indices(values.size());
  std::vector<int64_t> gold(static_cast<size_t>(neurons)), gold_entries(gold.size());
  const auto draw = [&](S* value) {
    const double number = random.below(7) == 0 ? NAN : random.below(5) ? random.uniform() : 0;
    cuda::from_acc(static_cast<cuda::Acc<S>>(number), value);
    return number > 0;
  };
  for (int b = 0; b < batch; ++b)
    for (int j = 0; j < neurons; ++j) gold[j] += draw(&dense[transposed ? j * batch + b : b * neurons + j]);
  for (int i = 0; i < entries; ++i) {
    indices[i] = random.below(neurons);
    gold_entries[indices[i]] += draw(&values[i]);
  }
  std::vector<int64_t> order(gold.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return gold_entries[a] > gold_entries[b]; });
  for (cuda::emulator::Schedule schedule : cuda::emulator::kSchedules) {
    cuda::emulator::use(schedule);
    std::vector<int64_t> counts(gold.size()), selected = test::unwritten<int64_t>(n);
    CHECK(!cuda::activation_counts({dtype, batch, neurons, dense.data(), transposed ? 1 : neurons,
                                    transposed ? batch : 1, nullptr, counts.data(), 0, nullptr}));
    CHECK(counts == gold, "case %d: dense", number);
    std::fill(counts.begin(), counts.end(), 0);
    CHECK(!cuda::activation_counts(
        {dtype, entries, neurons, values.data(), 1, 1, indices.data(), counts.data(), 0, nullptr}));
    CHECK(counts == gold_entries, "case %d: entries", number);
    CHECK(!cuda::top_n({neurons, n, counts.data(), 1, selected.data(), 0, nullptr}));
    CHECK(std::equal(selected.begin(), selected.end(), order.begin()), "case %d: top %d", number, n);
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

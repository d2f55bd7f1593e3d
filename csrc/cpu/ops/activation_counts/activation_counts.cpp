// activation_counts: splits the columns by index, picks the SIMD level; and the selection of the largest counts.
#include "ssd/activation_counts.h"

#include <algorithm>
#include <memory>
#include <new>

#include "ops/activation_counts/activation_counts_levels.h"
#include "select/positive.h"
#include "ssd/check_rows.h"
#include "ssd/parallel.h"
#include "threads/work.h"

namespace ssd::cpu {
namespace {

#define SSD_LEVEL_OF(level) level::activation_counts_columns
constexpr double kWorthThread = 100000;  // values that pay for waking a thread

}  // namespace

void activation_counts_dense(const ActivationCountsParams& params, SimdLevel level) {
  const auto run = SSD_AT_LEVEL(level, SSD_LEVEL_OF);
  const int threads =
      worthwhile_threads(params.threads, static_cast<double>(params.batch) * params.neurons, kWorthThread);
  parallel(threads, [&](int part) {
    const Range columns = split_range(params.neurons, threads, part, 64);
    run(params, columns.begin, columns.end);
  });
}

bool activation_counts_sparse(Dtype dtype, int64_t entries, int64_t neurons, const void* values, const int32_t* indices,
                              int64_t* counts, int32_t* bad) {
  const RowsFinding found = check_rows(nullptr, 0, indices, entries, neurons, false);
  if (found.fault != RowsFault::kNone) {
    *bad = static_cast<int32_t>(found.value);
    return false;
  }
  std::fill(counts, counts + neurons, 0);
  for (int64_t i = 0; i < entries; ++i) counts[indices[i]] += is_positive(dtype, values, i);
  return true;
}

bool top_n(const int64_t* counts, int64_t neurons, int64_t n, int64_t* selected) {
  const std::unique_ptr<int64_t[]> order(new (std::nothrow) int64_t[neurons]);
  if (!order) return false;
  for (int64_t j = 0; j < neurons; ++j) order[j] = j;
  const auto before = [counts](int64_t a, int64_t b) { return counts[a] != counts[b] ? counts[a] > counts[b] : a < b; };
  if (n < neurons) std::nth_element(order.get(), order.get() + n, order.get() + neurons, before);
  std::sort(order.get(), order.get() + n, before);
  std::copy(order.get(), order.get() + n, selected);
  return true;
}

}  // namespace ssd::cpu

// sparse_update: checks the rows, splits them by index, picks the SIMD level.
#include "ssd/sparse_update.h"

#include <atomic>

#include "sparse_update_levels.h"
#include "ssd/parallel.h"
#include "work.h"

namespace ssd::cpu {
namespace {

auto pick(SimdLevel level) {
  switch (level) {
#ifdef SSD_X86
    case SimdLevel::kAvx512Bf16:
    case SimdLevel::kAvx512:
      return avx512::sparse_update_rows;
    case SimdLevel::kAvx2:
      return avx2::sparse_update_rows;
#endif
    default:
      return generic::sparse_update_rows;
  }
}

constexpr double kWorthThread = 20000;  // numbers that pay for waking a thread

}  // namespace

SparseUpdateResult sparse_update(const SparseUpdateParams& params, SimdLevel level) {
  int64_t before = -1;
  for (int64_t m = 0; m < params.rows; ++m) {
    if (params.indices[m] <= before) return SparseUpdateResult::kBadRows;
    before = params.indices[m];
  }
  if (before >= params.neurons) return SparseUpdateResult::kBadRows;
  const auto run = pick(level);
  const int threads =
      worthwhile_threads(params.threads, static_cast<double>(params.rows) * params.inputs, kWorthThread);
  std::atomic<bool> ok{true};
  parallel(threads, [&](int part) {
    const Range rows = split_range(params.rows, threads, part);
    const Memory scratch(std::malloc(static_cast<size_t>(params.inputs + 1) * 2 * sizeof(double)));
    if (scratch)
      run(params, rows.begin, rows.end, scratch.get());
    else
      ok = false;
  });
  return ok ? SparseUpdateResult::kDone : SparseUpdateResult::kNoMemory;
}

}  // namespace ssd::cpu

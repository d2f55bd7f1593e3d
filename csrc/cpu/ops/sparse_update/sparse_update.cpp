// sparse_update: checks the rows and their norm, clips by it, splits them by index, picks the SIMD level.
#include "ssd/sparse_update.h"

#include <atomic>
#include <cmath>
#include <limits>

#include "ops/sparse_update/sparse_update_levels.h"
#include "ssd/parallel.h"
#include "threads/work.h"

namespace ssd::cpu {
namespace {

struct Level {
  decltype(&generic::sparse_update_rows) rows;
  decltype(&generic::sparse_update_squares) squares;
};

#define SSD_LEVEL_OF(level) \
  Level { level::sparse_update_rows, level::sparse_update_squares }
constexpr double kLongestStep = 1e38;   // beyond it a weight may leave fp32
constexpr double kWorthThread = 20000;  // numbers that pay for waking a thread

// The norm of rows whose squares are added in a fixed order.
double norm_of(const double* squares, int64_t rows) {
  constexpr int kLanes = 8;
  double sums[kLanes] = {};
  int64_t m = 0;
  for (; m + kLanes <= rows; m += kLanes)
    for (int l = 0; l < kLanes; ++l) sums[l] += squares[m + l];
  for (int l = 0; m < rows; ++m, ++l) sums[l] += squares[m];
  double total = 0;
  for (const double sum : sums) total += sum;
  return std::sqrt(total);
}

}  // namespace

SparseUpdateResult sparse_update(const SparseUpdateParams& given, SimdLevel level) {
  SparseUpdateParams params = given;
  int64_t before = -1;
  for (int64_t m = 0; m < params.rows; ++m) {
    if (params.indices[m] <= before) return SparseUpdateResult::kBadRows;
    before = params.indices[m];
  }
  if (before >= params.neurons) return SparseUpdateResult::kBadRows;
  const Level run = SSD_AT_LEVEL(level, SSD_LEVEL_OF);
  const int threads =
      worthwhile_threads(params.threads, static_cast<double>(params.rows) * params.inputs, kWorthThread);
  const Memory memory(std::malloc(static_cast<size_t>(params.rows + 1) * sizeof(double)));
  if (!memory) return SparseUpdateResult::kNoMemory;
  double* const squares = static_cast<double*>(memory.get());
  parallel(threads, [&](int part) {
    const Range rows = split_range(params.rows, threads, part);
    run.squares(params, rows.begin, rows.end, squares);
  });
  const double norm = norm_of(squares, params.rows), coefficient = params.max_norm / (norm + 1e-6);
  if (coefficient < 1) params.step *= coefficient;
  const double most = params.dtype == Dtype::kFloat64 ? std::numeric_limits<double>::max() : kLongestStep;
  if (!(std::fabs(params.step) * norm <= most)) return SparseUpdateResult::kNotFinite;
  std::atomic<bool> ok{true};
  parallel(threads, [&](int part) {
    const Range rows = split_range(params.rows, threads, part);
    const Memory scratch(std::malloc(static_cast<size_t>(params.inputs + 1) * sizeof(double)));
    if (scratch)
      run.rows(params, rows.begin, rows.end, scratch.get());
    else
      ok = false;
  });
  return ok ? SparseUpdateResult::kDone : SparseUpdateResult::kNoMemory;
}

}  // namespace ssd::cpu

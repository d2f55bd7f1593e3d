// sparse_linear: checks the entries, splits the samples by index, picks the SIMD level.
#include "ssd/sparse_linear.h"

#include <atomic>
#include <cstring>

#include "ops/sparse_linear/sparse_linear_levels.h"
#include "ssd/check_rows.h"
#include "ssd/gaba_linear.h"
#include "ssd/parallel.h"
#include "ssd/topk_linear.h"
#include "threads/work.h"

namespace ssd::cpu {
namespace {

struct Level {
  decltype(&generic::sparse_linear_by_rows) by_rows;
  decltype(&generic::sparse_linear_values) values;
};

#define SSD_LEVEL_OF(level) \
  Level { level::sparse_linear_by_rows, level::sparse_linear_values }
constexpr double kWorthThread = 30000;  // multiplications that pay for waking a thread

size_t storage_size(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2; }

SparseLinearResult check(const SparseLinearParams& p) {
  const RowsFinding found = check_rows(p.offsets, p.batch, p.indices, p.entries, p.neurons, false);
  if (found.fault == RowsFault::kNone) return {SparseLinearStatus::kDone, 0};
  return {found.fault == RowsFault::kOffsets ? SparseLinearStatus::kBadOffsets : SparseLinearStatus::kBadIndex,
          static_cast<int32_t>(found.value)};
}

int useful_threads(const SparseLinearParams& p) {
  return worthwhile_threads(p.threads, static_cast<double>(p.entries) * p.outputs, kWorthThread);
}

// The pair kernels on this problem: y in the place of grad_x, values as ds, columns of the weight as rows.
PairsBackwardParams as_pairs(const SparseLinearParams& p) {
  PairsBackwardParams pairs{};
  pairs.dtype = p.dtype;
  pairs.batch = p.batch;
  pairs.inputs = p.outputs;
  pairs.neurons = p.neurons;
  pairs.grad = p.values;
  pairs.indices = p.indices;
  pairs.offsets = p.offsets;
  pairs.threads = p.threads;
  return pairs;
}

}  // namespace

SparseLinearResult sparse_linear(const SparseLinearParams& params, void* y, SimdLevel level) {
  const SparseLinearResult checked = check(params);
  if (checked.status != SparseLinearStatus::kDone) return checked;
  std::atomic<bool> ok{true};
  if (params.output_stride == 1) {
    PairsBackwardParams pairs = as_pairs(params);
    pairs.weight = params.weight;
    pairs.weight_stride = params.neuron_stride;
    pairs.grad_x = y;
    ok = pairs_backward(pairs, level);
  } else {
    const auto run = SSD_AT_LEVEL(level, SSD_LEVEL_OF).by_rows;
    const int threads = useful_threads(params);
    parallel(threads, [&](int part) {
      const Range samples = split_range(params.batch, threads, part);
      if (!run(params, y, samples.begin, samples.end)) ok = false;
    });
  }
  return {ok ? SparseLinearStatus::kDone : SparseLinearStatus::kNoMemory, 0};
}

bool sparse_linear_grad_values(const SparseLinearParams& params, const void* grad_y, void* grad_values,
                               SimdLevel level) {
  const auto run = SSD_AT_LEVEL(level, SSD_LEVEL_OF).values;
  const int threads = useful_threads(params);
  parallel(threads, [&](int part) {
    const Range samples = split_range(params.batch, threads, part);
    run(params, grad_y, grad_values, samples.begin, samples.end);
  });
  return true;
}

bool sparse_linear_grad_weight(const SparseLinearParams& params, const void* grad_y, void* grad_weight,
                               SimdLevel level) {
  const size_t entries = static_cast<size_t>(params.entries), size = storage_size(params.dtype);
  const Memory groups(std::malloc((3 * entries + 1) * sizeof(int64_t)));
  if (!groups) return false;
  int64_t *const order = static_cast<int64_t*>(groups.get()), *const rows = order + entries,
                 *const starts = rows + entries;
  PairsBackwardParams pairs = as_pairs(params);
  pairs.active = topk_linear_pairs(
      {params.dtype, params.entries, params.neurons, nullptr, params.indices, false, order, rows, starts});
  if (pairs.active < 0) return false;
  pairs.x = grad_y;
  pairs.x_stride = params.outputs;
  pairs.order = order;
  pairs.rows = rows;
  pairs.starts = starts;
  if (params.output_stride == 1) {  // the columns of the gradient are contiguous too
    pairs.grad_weight = grad_weight;
    return pairs_backward(pairs, level);
  }
  const Memory columns(std::malloc(static_cast<size_t>(pairs.active * params.outputs + 1) * size));
  if (!columns) return false;
  pairs.grad_rows = columns.get();
  if (!pairs_backward(pairs, level)) return false;
  const char* const from = static_cast<const char*>(columns.get());
  char* const to = static_cast<char*>(grad_weight);
  const int threads = useful_threads(params);
  parallel(threads, [&](int part) {  // a part owns rows of the gradient
    const Range outputs = split_range(params.outputs, threads, part);
    const size_t row = static_cast<size_t>(params.neurons) * size;
    std::memset(to + row * outputs.begin, 0, row * static_cast<size_t>(outputs.end - outputs.begin));
    for (int64_t c = outputs.begin; c < outputs.end; ++c)
      for (int64_t u = 0; u < pairs.active; ++u)
        std::memcpy(to + row * c + size * rows[u], from + (u * params.outputs + c) * size, size);
  });
  return true;
}

}  // namespace ssd::cpu

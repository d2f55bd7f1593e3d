// threshold_linear and batch_topk_linear: split the samples, pick the SIMD level, run the parts, put them together.
#include "ssd/threshold_linear.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <vector>

#include "ops/threshold_linear/threshold_linear_levels.h"
#include "ssd/parallel.h"
#include "threads/work.h"

namespace ssd::cpu {
namespace {

struct Level {
  decltype(&generic::threshold_linear_part) threshold;
  decltype(&generic::batch_topk_part) batch;
  decltype(&generic::batch_topk_write) write;
  decltype(&generic::batch_topk_score) score;
};

#define SSD_LEVEL_OF(name) \
  Level { name::threshold_linear_part, name::batch_topk_part, name::batch_topk_write, name::batch_topk_score }

constexpr double kWorthThread = 100000;  // multiplications that pay for waking a thread
constexpr int kRowGrain = 4;             // samples are shared out in tiles

int parts_of(const ThresholdLinearParams& p) {
  return worthwhile_threads(p.threads, static_cast<double>(p.batch) * p.neurons * p.inputs, kWorthThread);
}

size_t storage_size(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2; }

void start(const ThresholdLinearParams& params, int lists, int64_t* offsets, ActiveRows* rows) {
  std::fill(offsets, offsets + params.batch + 1, int64_t{0});
  rows->lists = new ActiveRows::List[static_cast<size_t>(lists)]();
  rows->parts = lists;
  rows->value_size = storage_size(params.dtype);
}

void add_up(const ThresholdLinearParams& params, int64_t* offsets) {
  for (int64_t b = 0; b < params.batch; ++b) offsets[b + 1] += offsets[b];
}

template <class T>
Memory rounded(const double* thresholds, int64_t count) {
  Memory memory(std::malloc(static_cast<size_t>(count) * sizeof(T)));
  if (memory) std::copy(thresholds, thresholds + count, static_cast<T*>(memory.get()));
  return memory;
}

}  // namespace

bool threshold_linear(const ThresholdLinearParams& params, int64_t* offsets, ActiveRows* rows, SimdLevel simd) {
  const Level level = SSD_AT_LEVEL(simd, SSD_LEVEL_OF);
  const int parts = parts_of(params);
  start(params, parts, offsets, rows);
  const Memory thresholds = params.dtype == Dtype::kFloat64 ? rounded<double>(params.thresholds, params.neurons)
                                                            : rounded<float>(params.thresholds, params.neurons);
  if (!thresholds) return false;
  std::atomic<bool> ok{true};
  parallel(parts, [&](int part) {
    const Range samples = split_range(params.batch, parts, part, kRowGrain);
    if (samples.begin < samples.end &&
        !level.threshold(params, thresholds.get(), samples.begin, samples.end, rows->lists + part, offsets + 1))
      ok = false;
  });
  add_up(params, offsets);
  return ok;
}

bool batch_topk_linear(const ThresholdLinearParams& params, int64_t* offsets, double* next, ActiveRows* rows,
                       SimdLevel simd) {
  const Level level = SSD_AT_LEVEL(simd, SSD_LEVEL_OF);
  const int parts = parts_of(params);
  start(params, 1, offsets, rows);
  *next = 0;
  const bool beyond = params.most < params.batch * params.neurons;
  std::vector<Memory> found(static_cast<size_t>(parts));
  std::vector<int64_t> counts(static_cast<size_t>(parts));
  std::atomic<bool> ok{true};
  parallel(parts, [&](int part) {
    const Range samples = split_range(params.batch, parts, part, kRowGrain);
    PlaceKey* keys = nullptr;
    if (samples.begin < samples.end && !level.batch(params, params.most + beyond, samples.begin, samples.end, &keys,
                                                    &counts[static_cast<size_t>(part)]))
      ok = false;
    found[static_cast<size_t>(part)].reset(keys);
  });
  if (!ok) return false;
  std::vector<PlaceKey> keys;
  for (size_t part = 0; part < found.size(); ++part) {
    const PlaceKey* const first = static_cast<const PlaceKey*>(found[part].get());
    keys.insert(keys.end(), first, first + counts[part]);
  }
  if (static_cast<int64_t>(keys.size()) > params.most) {
    const auto border = keys.begin() + params.most;
    std::nth_element(keys.begin(), border, keys.end(), std::greater<PlaceKey>());
    *next = level.score(params.dtype, *border);
    keys.erase(border, keys.end());
  }
  std::sort(keys.begin(), keys.end(),
            [](PlaceKey a, PlaceKey b) { return static_cast<uint64_t>(a) > static_cast<uint64_t>(b); });
  if (!level.write(params, keys.data(), static_cast<int64_t>(keys.size()), rows->lists, offsets + 1)) return false;
  add_up(params, offsets);
  return true;
}

}  // namespace ssd::cpu

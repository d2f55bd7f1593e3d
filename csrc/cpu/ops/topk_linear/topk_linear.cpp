// topk_linear: splits the work by index, picks the SIMD level, runs the parts.
#include "ssd/topk_linear.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "ops/topk_linear/topk_linear_levels.h"
#include "ssd/parallel.h"

namespace ssd::cpu {
namespace {

struct Level {
  decltype(&generic::topk_linear_part) part;
  decltype(&generic::topk_linear_merge) merge;
  decltype(&generic::topk_linear_norms_x) norms_x;
  decltype(&generic::topk_linear_norms_w) norms_w;
  decltype(&generic::topk_linear_grad_x) grad_x;
  decltype(&generic::topk_linear_grad_w) grad_w;
};

#define SSD_LEVEL_OF(name)                                                                                 \
  Level {                                                                                                  \
    name::topk_linear_part, name::topk_linear_merge, name::topk_linear_norms_x, name::topk_linear_norms_w, \
        name::topk_linear_grad_x, name::topk_linear_grad_w                                                 \
  }

size_t accumulation_size(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : 4; }
size_t key_size(Dtype dtype) { return dtype == Dtype::kFloat64 ? 16 : 8; }

constexpr int kRowGrain = 4;  // rows of x are shared out in tiles
constexpr int64_t kNeuronGrain = 64;
constexpr int64_t kBatchOfOneBlock = 256;
constexpr double kWorthThread = 100000.0;  // multiplications that pay for waking a thread

int useful_threads(int threads, double work) {
  const int worth = work / kWorthThread < 1      ? 1
                    : work / kWorthThread > 1024 ? 1024
                                                 : static_cast<int>(work / kWorthThread);
  return threads < worth ? threads : worth;
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<void, Free>;

// Few rows: every part sees all of them and some of the neurons; the winners are merged by keys.
bool forward_by_neurons(const TopkLinearParams& params, const Level& level, int parts) {
  const size_t need = static_cast<size_t>(params.k < params.neurons ? params.k + 1 : params.k);
  const size_t part_bytes = need * static_cast<size_t>(params.batch) * key_size(params.dtype);
  const Memory keys(std::malloc(part_bytes * static_cast<size_t>(parts)));
  if (!keys) return false;
  std::atomic<bool> ok{true};
  parallel(parts, [&](int part) {
    const Range neurons = split_range(params.neurons, parts, part, kNeuronGrain);
    char* const to = static_cast<char*>(keys.get()) + part_bytes * static_cast<size_t>(part);
    if (!level.part(params, {0, params.batch, neurons.begin, neurons.end, to})) ok = false;
  });
  if (!ok) return false;
  parallel(parts, [&](int part) {
    const Range rows = split_range(params.batch, parts, part);
    if (!level.merge(params, parts, rows.begin, rows.end, keys.get())) ok = false;
  });
  return ok;
}

}  // namespace

bool topk_linear_forward(const TopkLinearParams& params, SimdLevel simd) {
  if (params.batch == 0) return true;
  const Level level = SSD_AT_LEVEL(simd, SSD_LEVEL_OF);
  const double work = static_cast<double>(params.batch) * params.neurons * params.inputs;
  const int threads = useful_threads(params.threads, work);
  const int64_t tiles = (params.batch + kRowGrain - 1) / kRowGrain;
  // By rows where the busiest thread has at most an eighth more than its share; else by neurons, if that is finer. The
  // preselection shares its rounding of W between rows, so it prefers to see all rows of a batch.
  const int64_t busiest = (tiles + threads - 1) / threads * threads;
  const int64_t need = params.k < params.neurons ? params.k + 1 : params.k;
  const bool by_rows =
      busiest * 8 <= tiles * 9 || params.neurons < 4 * threads * (need > kNeuronGrain ? need : kNeuronGrain);
  if (threads > 1 && !by_rows) return forward_by_neurons(params, level, threads);
  std::atomic<bool> ok{true};
  parallel(threads, [&](int part) {
    const Range rows = split_range(params.batch, threads, part, kRowGrain);
    if (rows.begin < rows.end && !level.part(params, {rows.begin, rows.end, 0, params.neurons, nullptr})) ok = false;
  });
  return ok;
}

int64_t topk_linear_pairs(const TopkPairsParams& params) {
  const auto active = [&params](int64_t pair) {
    if (!params.masked) return true;
    switch (params.dtype) {
      case Dtype::kFloat32:
        return !(static_cast<const float*>(params.values)[pair] <= 0);
      case Dtype::kFloat64:
        return !(static_cast<const double*>(params.values)[pair] <= 0);
      default: {  // bf16 and fp16 alike: positive, or a NaN of either sign
        const uint16_t bits = static_cast<const uint16_t*>(params.values)[pair];
        const uint16_t infinity = params.dtype == Dtype::kHalf ? 0x7c00 : 0x7f80;
        return (bits & 0x7fff) > infinity || (bits > 0 && bits < 0x8000);
      }
    }
  };
  int64_t count = 0;
  for (int64_t pair = 0; pair < params.pairs; ++pair)
    if (active(pair)) params.order[count++] = pair;
  // Radix sort by neuron, lowest digit first: stable, so pairs stay ascending within a neuron.
  constexpr int kBits = 11, kDigits = 1 << kBits;
  const Memory scratch(count ? std::malloc(static_cast<size_t>(count) * sizeof(int64_t)) : nullptr);
  if (count && !scratch) return -1;
  int64_t *from = params.order, *to = static_cast<int64_t*>(scratch.get());
  for (int shift = 0; count && ((params.neurons - 1) >> shift) > 0; shift += kBits) {
    int64_t place[kDigits + 1] = {};
    const auto digit = [&](int64_t pair) { return (params.indices[pair] >> shift) & (kDigits - 1); };
    for (int64_t i = 0; i < count; ++i) ++place[digit(from[i]) + 1];
    for (int d = 0; d < kDigits; ++d) place[d + 1] += place[d];
    for (int64_t i = 0; i < count; ++i) to[place[digit(from[i])]++] = from[i];
    int64_t* const kept = from;
    from = to;
    to = kept;
  }
  if (from != params.order && count) std::memcpy(params.order, from, static_cast<size_t>(count) * sizeof(int64_t));
  int64_t rows = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t neuron = params.indices[params.order[i]];
    if (rows && params.rows[rows - 1] == neuron) continue;
    params.starts[rows] = i;
    params.rows[rows++] = neuron;
  }
  params.starts[rows] = count;
  return rows;
}

bool topk_linear_backward(const TopkLinearBackwardParams& params, SimdLevel simd) {
  const Level level = SSD_AT_LEVEL(simd, SSD_LEVEL_OF);
  const int64_t pairs = params.starts[params.active];
  const int threads = useful_threads(params.threads, static_cast<double>(pairs) * params.inputs * 2);
  const size_t size = accumulation_size(params.dtype);
  Memory inverse_x, inverse_w;
  if (params.normalize_input && params.batch) {
    inverse_x.reset(std::malloc(static_cast<size_t>(params.batch) * size));
    if (!inverse_x) return false;
  }
  if (params.normalize_weight && pairs) {
    inverse_w.reset(std::malloc(static_cast<size_t>(params.batch * params.k) * size));
    if (!inverse_w) return false;
  }
  // Each part owns the neurons whose first pair lies in its share of the pairs.
  const auto first_row = [&](int part) {
    const int64_t pair = pairs * part / threads;
    int64_t low = 0, high = params.active;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (params.starts[middle] < pair)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  };
  const auto rows_of = [&](int part) {
    return Range{first_row(part), part + 1 == threads ? params.active : first_row(part + 1)};
  };
  if (inverse_x || inverse_w) {
    parallel(threads, [&](int part) {
      const Range samples = split_range(params.batch, threads, part), rows = rows_of(part);
      if (inverse_x) level.norms_x(params, samples.begin, samples.end, inverse_x.get());
      if (inverse_w) level.norms_w(params, rows.begin, rows.end, inverse_w.get());
    });
  }
  std::atomic<bool> ok{true};
  parallel(threads, [&](int part) {
    const Range samples = split_range(params.batch, threads, part), rows = rows_of(part);
    if (params.grad_x && !level.grad_x(params, samples.begin, samples.end, inverse_x.get(), inverse_w.get()))
      ok = false;
    if ((params.grad_weight || params.grad_rows || params.grad_bias) &&
        !level.grad_w(params, rows.begin, rows.end, inverse_x.get(), inverse_w.get()))
      ok = false;
  });
  return ok;
}

}  // namespace ssd::cpu

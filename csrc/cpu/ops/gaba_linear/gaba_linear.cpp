// gaba_linear: splits the work by index, picks the SIMD level, runs the parts.
#include "ssd/gaba_linear.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "ops/gaba_linear/gaba_linear_levels.h"
#include "select/positive.h"
#include "ssd/parallel.h"
#include "ssd/topk_linear.h"
#include "threads/work.h"

namespace ssd::cpu {
namespace {

struct Level {
  decltype(&generic::gaba_linear_part) part;
  decltype(&generic::pairs_grad_x) pairs_x;
  decltype(&generic::pairs_grad_w) pairs_w;
  decltype(&generic::gaba_dense_grad_x) dense_x;
  decltype(&generic::gaba_dense_grad_w) dense_w;
};

#define SSD_LEVEL_OF(name)                                                                                           \
  Level {                                                                                                            \
    name::gaba_linear_part, name::pairs_grad_x, name::pairs_grad_w, name::gaba_dense_grad_x, name::gaba_dense_grad_w \
  }

constexpr double kWorthThread = 100000;  // multiplications that pay for waking a thread
constexpr int kRowGrain = 4;             // samples are shared out in tiles
constexpr int kNeuronGrain = 16;

size_t storage_size(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2; }

template <class T>
Memory rounded(const double* g, int64_t count) {
  Memory memory(std::malloc(static_cast<size_t>(count) * sizeof(T)));
  if (memory) std::copy(g, g + count, static_cast<T*>(memory.get()));
  return memory;
}

int forward_parts(const GabaLinearParams& p) {
  return worthwhile_threads(p.threads, static_cast<double>(p.batch) * p.neurons * p.inputs, kWorthThread);
}

bool forward(const GabaLinearParams& params, char* h, ActiveRows* rows, int64_t* counts, int parts, SimdLevel simd) {
  const Level level = SSD_AT_LEVEL(simd, SSD_LEVEL_OF);
  const Memory g = params.dtype == Dtype::kFloat64 ? rounded<double>(params.g, params.neurons)
                                                   : rounded<float>(params.g, params.neurons);
  if (!g) return false;
  std::atomic<bool> ok{true};
  parallel(parts, [&](int part) {
    const Range samples = split_range(params.batch, parts, part, kRowGrain);
    if (samples.begin == samples.end) return;
    ActiveRows::List* const list = rows ? rows->lists + part : nullptr;
    if (!level.part(params, g.get(), samples.begin, samples.end, h, list, counts)) ok = false;
  });
  return ok;
}

// Whether entry i of h is active: not <= 0.
bool is_active(Dtype dtype, const void* h, int64_t i) {
  switch (dtype) {
    case Dtype::kFloat32:
      return !(static_cast<const float*>(h)[i] <= 0);
    case Dtype::kFloat64:
      return !(static_cast<const double*>(h)[i] <= 0);
    default: {  // a NaN of either sign, or positive
      const uint16_t bits = static_cast<const uint16_t*>(h)[i];
      return (bits & 0x7fff) > (dtype == Dtype::kHalf ? 0x7c00 : 0x7f80) || (bits > 0 && bits < 0x8000);
    }
  }
}

// The active entries of h as pairs: ds, indices, offsets.
struct Pairs {
  Memory grad, indices, offsets;
  int64_t count = 0;
};

bool to_pairs(const GabaBackwardParams& p, Pairs* pairs, int64_t limit, bool* sparse) {
  const size_t size = storage_size(p.dtype);
  pairs->offsets.reset(std::malloc(static_cast<size_t>(p.batch + 1) * sizeof(int64_t)));
  pairs->grad.reset(std::malloc(static_cast<size_t>(limit + 1) * size));
  pairs->indices.reset(std::malloc(static_cast<size_t>(limit + 1) * sizeof(int32_t)));
  if (!pairs->offsets || !pairs->grad || !pairs->indices) return false;
  int64_t* const offsets = static_cast<int64_t*>(pairs->offsets.get());
  int32_t* const indices = static_cast<int32_t*>(pairs->indices.get());
  char* const grad = static_cast<char*>(pairs->grad.get());
  int64_t count = offsets[0] = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t j = 0; j < p.neurons; ++j) {
      const int64_t at = b * p.neurons + j;
      if (!is_active(p.dtype, p.h, at)) continue;
      if (count == limit) {
        *sparse = false;
        return true;
      }
      std::memcpy(grad + count * size, static_cast<const char*>(p.grad_h) + at * size, size);
      indices[count++] = static_cast<int32_t>(j);
    }
    offsets[b + 1] = count;
  }
  pairs->count = count;
  *sparse = true;
  return true;
}

bool backward_by_pairs(const GabaBackwardParams& p, const Pairs& pairs, SimdLevel simd) {
  const Memory groups(std::malloc(static_cast<size_t>(3 * pairs.count + 1) * sizeof(int64_t)));
  if (!groups) return false;
  int64_t *const order = static_cast<int64_t*>(groups.get()), *const rows = order + pairs.count,
                 *const starts = rows + pairs.count;
  const int32_t* const indices = static_cast<const int32_t*>(pairs.indices.get());
  const int64_t active =
      topk_linear_pairs({p.dtype, pairs.count, p.neurons, nullptr, indices, false, order, rows, starts});
  if (active < 0) return false;
  return pairs_backward({p.dtype,
                         p.batch,
                         p.inputs,
                         p.neurons,
                         active,
                         pairs.grad.get(),
                         indices,
                         static_cast<const int64_t*>(pairs.offsets.get()),
                         nullptr,
                         p.x,
                         p.x_stride,
                         p.weight,
                         p.weight_stride,
                         order,
                         rows,
                         starts,
                         p.grad_x,
                         p.grad_weight,
                         nullptr,
                         false,
                         p.threads},
                        simd);
}

// ds as a dense (B, R) matrix: zeros, and the pairs.
Memory to_dense(const PairsBackwardParams& p) {
  const size_t size = storage_size(p.dtype);
  Memory dense(std::calloc(static_cast<size_t>(p.batch * p.neurons) + 1, size));
  if (!dense) return dense;
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t pair = p.offsets[b]; pair < p.offsets[b + 1]; ++pair)
      if (!p.masked || !p.masked[pair])
        std::memcpy(static_cast<char*>(dense.get()) + (b * p.neurons + p.indices[pair]) * size,
                    static_cast<const char*>(p.grad) + pair * size, size);
  return dense;
}

bool backward_by_tiles(const GabaBackwardParams& params, SimdLevel simd) {
  const Level level = SSD_AT_LEVEL(simd, SSD_LEVEL_OF);
  const double work = static_cast<double>(params.batch) * params.neurons * params.inputs * 2;
  const int threads = worthwhile_threads(params.threads, work, kWorthThread);
  std::atomic<bool> ok{true};
  parallel(threads, [&](int part) {
    const Range samples = split_range(params.batch, threads, part, kRowGrain);
    const Range neurons = split_range(params.neurons, threads, part, kNeuronGrain);
    if (params.grad_x && !level.dense_x(params, samples.begin, samples.end)) ok = false;
    if (params.grad_weight && !level.dense_w(params, neurons.begin, neurons.end)) ok = false;
  });
  return ok;
}

}  // namespace

int64_t most_pairs(int64_t batch, int64_t neurons) { return batch * neurons / 16; }

bool gaba_linear_dense(const GabaLinearParams& params, void* h, SimdLevel level) {
  if (params.batch == 0) return true;
  return forward(params, static_cast<char*>(h), nullptr, nullptr, forward_parts(params), level);
}

bool gaba_linear_rows(const GabaLinearParams& params, int64_t* offsets, ActiveRows* rows, SimdLevel level) {
  offsets[0] = 0;
  if (params.batch == 0) return true;
  const int parts = forward_parts(params);
  rows->lists = new ActiveRows::List[static_cast<size_t>(parts)]();
  rows->parts = parts;
  rows->value_size = storage_size(params.dtype);
  if (!forward(params, nullptr, rows, offsets + 1, parts, level)) return false;
  for (int64_t b = 0; b < params.batch; ++b) offsets[b + 1] += offsets[b];
  return true;
}

bool pairs_backward(const PairsBackwardParams& params, SimdLevel simd) {
  const Level level = SSD_AT_LEVEL(simd, SSD_LEVEL_OF);
  const int64_t pairs = params.offsets[params.batch];
  if (params.by_tiles) {
    const Memory dense = to_dense(params);
    if (!dense) return false;
    return backward_by_tiles(
        {params.dtype, params.batch, params.inputs, params.neurons, dense.get(), nullptr, params.x, params.x_stride,
         params.weight, params.weight_stride, params.grad_x, params.grad_weight, params.threads},
        simd);
  }
  const int threads = worthwhile_threads(params.threads, static_cast<double>(pairs) * params.inputs * 2, kWorthThread);
  const bool need_w = params.grad_weight || params.grad_rows;
  const Memory memory(std::malloc(static_cast<size_t>(pairs + 1) * sizeof(int32_t)));
  if (!memory) return false;
  int32_t* const samples = static_cast<int32_t*>(memory.get());
  for (int64_t b = 0; b < params.batch; ++b)
    std::fill(samples + params.offsets[b], samples + params.offsets[b + 1], static_cast<int32_t>(b));
  // Each part owns the samples, and the neurons, whose first pair lies in its share of the pairs.
  const auto share = [pairs, threads](const int64_t* starts, int64_t count, int64_t total, int part) {
    const auto first = [&](int index) {
      return index == 0 ? 0 : std::lower_bound(starts, starts + count, total * index / threads) - starts;
    };
    return Range{first(part), part + 1 == threads ? count : first(part + 1)};
  };
  std::atomic<bool> ok{true};
  parallel(threads, [&](int part) {
    if (params.grad_weight) {  // the rows of inactive neurons are 0
      const size_t row = static_cast<size_t>(params.inputs) * storage_size(params.dtype);
      const Range neurons = split_range(params.neurons, threads, part);
      char* const to = static_cast<char*>(params.grad_weight);
      std::memset(to + row * neurons.begin, 0, row * static_cast<size_t>(neurons.end - neurons.begin));
    }
    const Range samples_of_part = share(params.offsets, params.batch, pairs, part);
    if (params.grad_x && !level.pairs_x(params, samples_of_part.begin, samples_of_part.end)) ok = false;
  });
  if (!need_w) return ok;
  parallel(threads, [&](int part) {
    const Range rows = share(params.starts, params.active, params.starts[params.active], part);
    if (!level.pairs_w(params, samples, rows.begin, rows.end)) ok = false;
  });
  return ok;
}

bool gaba_linear_dense_backward(const GabaBackwardParams& params, SimdLevel simd) {
  Pairs pairs;
  bool sparse = false;
  if (!to_pairs(params, &pairs, most_pairs(params.batch, params.neurons), &sparse)) return false;
  return sparse ? backward_by_pairs(params, pairs, simd) : backward_by_tiles(params, simd);
}

}  // namespace ssd::cpu

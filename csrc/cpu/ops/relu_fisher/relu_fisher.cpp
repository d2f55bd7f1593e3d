// relu_fisher: checks the labels, shares out panels of samples and tiles of neurons, picks the SIMD level.
#include "ssd/relu_fisher.h"

#include <atomic>

#include "ops/relu_fisher/relu_fisher_levels.h"
#include "ssd/parallel.h"
#include "threads/work.h"

namespace ssd::cpu {
namespace {

struct Level {
  decltype(&generic::relu_mlp_panels) mlp;
  decltype(&generic::relu_fisher_pack) pack;
  decltype(&generic::relu_fisher_neurons) neurons;
};

#define SSD_LEVEL_OF(level) \
  Level { level::relu_mlp_panels, level::relu_fisher_pack, level::relu_fisher_neurons }
constexpr double kWorthThread = 400000;  // multiply-adds that pay for waking a thread
constexpr int64_t kNeurons = 28;         // a multiple of the widest tile of neurons

int64_t fisher_panels(int64_t columns) { return (columns + kFisherLanes - 1) / kFisherLanes; }

double products(int64_t batch, int64_t inputs, int64_t neurons, int64_t classes) {
  return static_cast<double>(batch) * static_cast<double>(neurons) * static_cast<double>(inputs + 2 * classes);
}

int64_t bad_label(const ReluFisherParams& params) {
  for (int64_t b = 0; params.labels && b < params.batch; ++b)
    if (params.labels[b] < 0 || params.labels[b] >= params.classes) return b;
  return -1;
}

}  // namespace

bool relu_mlp(const ReluMlpParams& params, SimdLevel level) {
  const auto run = SSD_AT_LEVEL(level, SSD_LEVEL_OF).mlp;
  const int64_t panels = fisher_panels(params.batch);
  const double work = products(params.batch, params.inputs, params.neurons, params.classes);
  const int useful = worthwhile_threads(params.threads, work, kWorthThread);
  const int threads = useful < panels ? useful : static_cast<int>(panels > 0 ? panels : 1);
  std::atomic<bool> ok{true};
  parallel(threads, [&](int part) {
    const Range range = split_range(panels, threads, part);
    if (!run(params, range.begin, range.end)) ok = false;
  });
  return ok;
}

ReluFisherResult relu_fisher(const ReluFisherParams& params, SimdLevel level) {
  if (const int64_t b = bad_label(params); b >= 0) return {ReluFisherStatus::kBadLabel, params.labels[b]};
  const Level run = SSD_AT_LEVEL(level, SSD_LEVEL_OF);
  const size_t size = params.dtype == Dtype::kFloat64 ? sizeof(double) : sizeof(float);
  const size_t panel = static_cast<size_t>(kFisherLanes) * size;
  const size_t inputs = static_cast<size_t>(fisher_panels(params.inputs) * params.batch) * panel;
  const size_t gradients = static_cast<size_t>(fisher_panels(params.batch) * params.classes) * panel;
  const size_t squares = static_cast<size_t>(fisher_panels(params.classes) * params.batch) * panel;
  const Memory memory(std::malloc(inputs + gradients + squares + 64));
  if (!memory) return {ReluFisherStatus::kNoMemory, 0};
  char* const base = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory.get()) + 63) & ~uintptr_t{63});
  const FisherPanels panels{base, base + inputs, base + inputs + gradients};
  const double work = products(params.batch, params.inputs, params.neurons, params.classes);
  const int threads = worthwhile_threads(params.threads, work, kWorthThread);
  parallel(threads, [&](int part) {
    const Range samples = split_range(params.batch, threads, part, kFisherLanes);
    run.pack(params, panels, samples.begin, samples.end);
  });
  std::atomic<bool> ok{true};
  parallel(threads, [&](int part) {
    const Range neurons = split_range(params.neurons, threads, part, kNeurons);
    if (!run.neurons(params, panels, neurons.begin, neurons.end)) ok = false;
  });
  return {ok ? ReluFisherStatus::kDone : ReluFisherStatus::kNoMemory, 0};
}

}  // namespace ssd::cpu

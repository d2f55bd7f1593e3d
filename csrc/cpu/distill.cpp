// The distillation losses: split the samples by index, pick the SIMD level.
#include "ssd/distill.h"

#include <algorithm>
#include <atomic>

#include "distill_levels.h"
#include "ssd/parallel.h"
#include "work.h"

namespace ssd::cpu {
namespace {

struct Level {
  decltype(&generic::distill_logits_samples) logits;
  decltype(&generic::distill_hidden_samples) hidden;
};

Level pick(SimdLevel level) {
  switch (level) {
#ifdef SSD_X86
    case SimdLevel::kAvx512Bf16:
    case SimdLevel::kAvx512:
      return {avx512::distill_logits_samples, avx512::distill_hidden_samples};
    case SimdLevel::kAvx2:
      return {avx2::distill_logits_samples, avx2::distill_hidden_samples};
#endif
    default:
      return {generic::distill_logits_samples, generic::distill_hidden_samples};
  }
}

constexpr double kWorthThread = 4000;  // exponentials that pay for waking a thread

// How many entries a batch of activations has.
double entries(const Activations& a, int64_t batch, int64_t units) {
  if (a.form == Form::kDense) return static_cast<double>(batch) * units;
  return static_cast<double>(a.form == Form::kRows ? a.offsets[batch] : batch * a.k);
}

}  // namespace

bool distill_logits(const DistillLogitsParams& params, SimdLevel level) {
  const Level run = pick(level);
  const double work = static_cast<double>(params.batch) * params.classes * (params.teacher ? 3 : 1);
  const int threads = worthwhile_threads(params.threads, work, kWorthThread);
  std::atomic<bool> ok{true};
  parallel(threads, [&](int part) {
    const Range samples = split_range(params.batch, threads, part);
    const Memory scratch(std::malloc(static_cast<size_t>(params.classes) * 4 * sizeof(double)));
    if (scratch)
      run.logits(params, samples.begin, samples.end, static_cast<double*>(scratch.get()));
    else
      ok = false;
  });
  return ok;
}

DistillResult distill_hidden(const DistillHiddenParams& params, SimdLevel level) {
  const Level run = pick(level);
  const size_t width = static_cast<size_t>(params.width), units = static_cast<size_t>(params.units);
  const double work =
      entries(params.student, params.batch, params.units) * 2 + entries(params.teacher, params.batch, params.units) * 2;
  const int threads = worthwhile_threads(params.threads, work, kWorthThread);
  const size_t map_bytes = width * sizeof(int32_t);
  const Memory first(std::malloc(map_bytes));
  if (!first) return DistillResult::kNoMemory;
  int32_t* const marks = static_cast<int32_t*>(first.get());
  std::fill(marks, marks + width, kNotSelected);
  for (size_t i = 0; i < units; ++i) {
    if (marks[params.selected[i]] == kAbsent) return DistillResult::kRepeated;
    marks[params.selected[i]] = kAbsent;
  }
  std::atomic<bool> ok{true};
  parallel(threads, [&](int part) {
    const Range samples = split_range(params.batch, threads, part);
    const Memory scratch(std::malloc(units * 5 * sizeof(double)));
    const Memory copy(part == 0 ? nullptr : std::malloc(map_bytes));
    if (!scratch || (part != 0 && !copy)) {
      ok = false;
      return;
    }
    int32_t* map = marks;
    if (part != 0) {
      map = static_cast<int32_t*>(copy.get());
      std::fill(map, map + width, kNotSelected);  // not copied: part 0 is changing its own
      for (size_t i = 0; i < units; ++i) map[params.selected[i]] = kAbsent;
    }
    run.hidden(params, samples.begin, samples.end, static_cast<double*>(scratch.get()), map);
  });
  return ok ? DistillResult::kDone : DistillResult::kNoMemory;
}

}  // namespace ssd::cpu

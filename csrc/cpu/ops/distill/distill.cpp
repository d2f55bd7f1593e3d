// The distillation losses: split the samples by index, pick the SIMD level.
#include "ssd/distill.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "ops/distill/distill_levels.h"
#include "ssd/parallel.h"
#include "threads/work.h"

namespace ssd::cpu {
namespace {

struct Level {
  decltype(&generic::distill_logits_samples) logits;
  decltype(&generic::distill_hidden_samples) hidden;
};

#define SSD_LEVEL_OF(level) \
  Level { level::distill_logits_samples, level::distill_hidden_samples }
constexpr int64_t kMostMap = int64_t{1} << 20;  // neurons whose map is made whatever the number of activations
constexpr double kWorthThread = 4000;           // exponentials that pay for waking a thread

// How many entries a batch of activations has.
double entries(const Activations& a, int64_t batch, int64_t units) {
  if (a.form == Form::kDense) return static_cast<double>(batch) * units;
  return static_cast<double>(a.form == Form::kRows ? a.offsets[batch] : batch * a.k);
}

// Writes the mean over the batch, added in order; 0 for an empty batch.
void store_mean(Dtype dtype, const double* per_sample, int64_t batch, void* to) {
  double sum = 0;
  for (int64_t b = 0; b < batch; ++b) sum += per_sample[b];
  if (batch) sum /= static_cast<double>(batch);
  if (dtype == Dtype::kFloat64)
    *static_cast<double*>(to) = sum;
  else
    *static_cast<float*>(to) = static_cast<float>(sum);
}

// The map of the selected neurons, (width,).
void mark(const DistillHiddenParams& params, int64_t width, int32_t* map) {
  std::fill(map, map + width, kNotSelected);
  for (int64_t i = 0; i < params.units; ++i) map[params.selected[i]] = kAbsent;
}

// A neuron that is selected twice, -1: there is none.
int64_t repeated(const DistillHiddenParams& params) {
  const int64_t* const begin = params.selected;
  const int64_t* const end = begin + params.units;
  const auto falls = [](int64_t a, int64_t b) { return b <= a; };
  if (std::adjacent_find(begin, end, falls) == end) return -1;
  std::vector<int64_t> sorted(begin, end);
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  return twice == sorted.end() ? -1 : *twice;
}

// Sparse activations with the selected neurons under new numbers, their places among the sorted ones; -1: not selected.
std::vector<int32_t> relabel(const Activations& a, int64_t count, const std::vector<int64_t>& sorted) {
  std::vector<int32_t> indices(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const auto at = std::lower_bound(sorted.begin(), sorted.end(), static_cast<int64_t>(a.indices[i]));
    const bool found = at != sorted.end() && *at == a.indices[i];
    indices[static_cast<size_t>(i)] = found ? static_cast<int32_t>(at - sorted.begin()) : -1;
  }
  return indices;
}

}  // namespace

DistillResult distill_logits(const DistillLogitsParams& params, SimdLevel level) {
  for (int64_t b = 0; b < params.batch; ++b)
    if (params.labels[b] < 0 || params.labels[b] >= params.classes)
      return {DistillStatus::kOutOfRange, params.labels[b]};
  const Level run = SSD_AT_LEVEL(level, SSD_LEVEL_OF);
  const size_t batch = static_cast<size_t>(params.batch);
  const double work = static_cast<double>(params.batch) * params.classes * (params.teacher ? 3 : 1);
  const int threads = worthwhile_threads(params.threads, work, kWorthThread);
  const Memory losses(std::malloc((2 * batch + 1) * sizeof(double)));
  if (!losses) return {DistillStatus::kNoMemory, 0};
  double *const ce = static_cast<double*>(losses.get()), *const kd = ce + batch;
  std::atomic<bool> ok{true};
  parallel(threads, [&](int part) {
    const Range samples = split_range(params.batch, threads, part);
    const Memory scratch(std::malloc(static_cast<size_t>(params.classes + 8) * 6 * sizeof(double)));
    if (scratch)
      run.logits(params, samples.begin, samples.end, ce, kd, static_cast<double*>(scratch.get()));
    else
      ok = false;
  });
  store_mean(params.dtype, ce, params.batch, params.ce);
  store_mean(params.dtype, kd, params.batch, params.kd);
  return {ok ? DistillStatus::kDone : DistillStatus::kNoMemory, 0};
}

DistillResult distill_hidden(const DistillHiddenParams& given, SimdLevel level) {
  int64_t width = 0;
  for (int64_t i = 0; i < given.units; ++i) {
    const int64_t unit = given.selected[i];
    if (unit < 0 || unit >= given.neurons) return {DistillStatus::kOutOfRange, unit};
    width = unit >= width ? unit + 1 : width;
  }
  const int64_t twice = repeated(given);
  if (twice >= 0) return {DistillStatus::kRepeated, twice};
  DistillHiddenParams params = given;
  // The map of neurons is as long as the greatest unit: where that is out of proportion, the units get new numbers.
  std::vector<int64_t> sorted;
  std::vector<int32_t> student, teacher;
  if (params.student.form != Form::kDense && params.teacher.form != Form::kDense) {
    const int64_t of_student = static_cast<int64_t>(entries(params.student, params.batch, 0));
    const int64_t of_teacher = static_cast<int64_t>(entries(params.teacher, params.batch, 0));
    if (width > kMostMap + 16 * (params.units + of_student + of_teacher)) {
      sorted.assign(params.selected, params.selected + params.units);
      std::sort(sorted.begin(), sorted.end());
      student = relabel(params.student, of_student, sorted);
      teacher = relabel(params.teacher, of_teacher, sorted);
      for (size_t i = 0; i < sorted.size(); ++i) sorted[i] = static_cast<int64_t>(i);
      params.selected = sorted.data();
      params.student.indices = student.data();
      params.teacher.indices = teacher.data();
      width = params.units;
    }
  }
  const Level run = SSD_AT_LEVEL(level, SSD_LEVEL_OF);
  const size_t units = static_cast<size_t>(params.units), map_bytes = static_cast<size_t>(width) * sizeof(int32_t);
  const double work =
      entries(params.student, params.batch, params.units) * 2 + entries(params.teacher, params.batch, params.units) * 2;
  const int threads = worthwhile_threads(params.threads, work, kWorthThread);
  const Memory losses(std::malloc(static_cast<size_t>(params.batch + 1) * sizeof(double)));
  const Memory first(std::malloc(map_bytes));
  if (!losses || !first) return {DistillStatus::kNoMemory, 0};
  double* const kd = static_cast<double*>(losses.get());
  int32_t* const marks = static_cast<int32_t*>(first.get());
  mark(params, width, marks);
  std::atomic<bool> ok{true};
  parallel(threads, [&](int part) {
    const Range samples = split_range(params.batch, threads, part);
    const Memory scratch(std::malloc((units + 8) * 6 * sizeof(double)));
    const Memory copy(part == 0 ? nullptr : std::malloc(map_bytes));
    if (!scratch || (part != 0 && !copy)) {
      ok = false;
      return;
    }
    int32_t* map = marks;
    if (part != 0) mark(params, width, map = static_cast<int32_t*>(copy.get()));  // part 0 is changing its own
    run.hidden(params, samples.begin, samples.end, width, kd, static_cast<double*>(scratch.get()), map);
  });
  store_mean(params.student.dtype, kd, params.batch, params.kd);
  return {ok ? DistillStatus::kDone : DistillStatus::kNoMemory, 0};
}

}  // namespace ssd::cpu

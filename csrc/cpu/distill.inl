// The SSD loss per sample, in fp64, with its gradient.
//
// Hidden distillation of a sample is over the union of the supports: the n - m units that are zero in student and
// teacher add n - m to each partition sum in closed form. With A = sum expm1(h / T) over the active units,
// log Z = log n + log1p(A / n), and log n cancels. Work: O(active) per sample for sparse activations, O(n) for dense.
// Determinism: a sample has one owner; per-sample losses are added in order by the caller.
#include "distill_levels.h"
#include "exponential.h"
#include "simd.h"

namespace ssd::cpu::SSD_LEVEL {

SSD_INLINE double load_as_double(Dtype dtype, const void* values, int64_t i) {
  switch (dtype) {
    case Dtype::kFloat32:
      return static_cast<double>(static_cast<const float*>(values)[i]);
    case Dtype::kFloat64:
      return static_cast<const double*>(values)[i];
    case Dtype::kBFloat16:
      return static_cast<double>(to_acc(static_cast<const BFloat16*>(values)[i]));
    default:
      return static_cast<double>(to_acc(static_cast<const Half*>(values)[i]));
  }
}
SSD_INLINE void store_double(Dtype dtype, double value, void* to, int64_t i) {
  switch (dtype) {
    case Dtype::kFloat32:
      static_cast<float*>(to)[i] = static_cast<float>(value);
      return;
    case Dtype::kFloat64:
      static_cast<double*>(to)[i] = value;
      return;
    case Dtype::kBFloat16:
      from_acc(static_cast<float>(value), static_cast<BFloat16*>(to) + i);
      return;
    default:
      from_acc(static_cast<float>(value), static_cast<Half*>(to) + i);
  }
}

// z becomes z - log sum exp(z); p becomes its exponential.
inline void log_softmax(double* z, int64_t count, double* p) {
  double largest = z[0];
  for (int64_t i = 1; i < count; ++i) largest = z[i] > largest ? z[i] : largest;
  for (int64_t i = 0; i < count; ++i) z[i] -= largest;
  exp_array(z, count, p);
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += p[i];
  const double log_sum = __builtin_log(sum), inverse = 1 / sum;
  for (int64_t i = 0; i < count; ++i) {
    z[i] -= log_sum;
    p[i] *= inverse;
  }
}

void distill_logits_samples(const DistillLogitsParams& p, int64_t begin, int64_t end, double* ce, double* kd,
                            double* scratch) {
  const int64_t classes = p.classes;
  double *const z = scratch, *const q = z + classes, *const ps = q + classes, *const pt = ps + classes;
  const double mean = 1.0 / static_cast<double>(p.batch), scale = p.temperature * mean;
  for (int64_t b = begin; b < end; ++b) {
    for (int64_t c = 0; c < classes; ++c) z[c] = load_as_double(p.dtype, p.logits, b * p.logits_stride + c);
    log_softmax(z, classes, ps);
    ce[b] = -z[p.labels[b]];
    ps[p.labels[b]] -= 1;
    for (int64_t c = 0; c < classes; ++c) store_double(p.dtype, ps[c] * mean, p.grad_ce, b * classes + c);
    kd[b] = 0;
    if (!p.teacher) continue;
    for (int64_t i = 0; i < p.old; ++i) {
      const int64_t c = p.old_classes ? p.old_classes[i] : i;
      z[i] = load_as_double(p.dtype, p.logits, b * p.logits_stride + c) / p.temperature;
      q[i] = load_as_double(p.teacher_dtype, p.teacher, b * p.teacher_stride + c) / p.temperature;
    }
    log_softmax(z, p.old, ps);
    log_softmax(q, p.old, pt);
    double kl = 0;
    for (int64_t i = 0; i < p.old; ++i) kl += p.reverse ? ps[i] * (z[i] - q[i]) : pt[i] * (q[i] - z[i]);
    kd[b] = p.temperature * p.temperature * kl;
    for (int64_t i = 0; i < p.old; ++i) {
      const int64_t c = p.old_classes ? p.old_classes[i] : i;
      const double gradient = p.reverse ? ps[i] * (z[i] - q[i] - kl) : ps[i] - pt[i];
      store_double(p.dtype, scale * gradient, p.grad_kd, b * classes + c);
    }
  }
}

// The units of one sample that are active in student or teacher: their activations divided by T.
struct Union {
  int64_t count;
  double *zs, *zt;  // (n,) student and teacher, 0 where absent
  double *ps, *pt;  // (n,) n times their probabilities
  int64_t* entry;   // (n,) the student's entry (dense: its unit), -1 where it has none
};

// Calls take(neuron, entry, value) for the sample's selected entries.
template <class Take>
SSD_INLINE void for_selected(const DistillHiddenParams& p, const Activations& a, int64_t b, int64_t width,
                             const int32_t* map, Take take) {
  if (a.form == Form::kDense) {
    for (int64_t i = 0; i < p.units; ++i)
      take(p.selected[i], i, load_as_double(a.dtype, a.values, b * a.stride + p.selected[i]));
    return;
  }
  const bool rows = a.form == Form::kRows;
  const int64_t first = rows ? a.offsets[b] : b * a.k, last = rows ? a.offsets[b + 1] : first + a.k;
  for (int64_t i = first; i < last; ++i) {
    const int32_t neuron = a.indices[i];
    if (neuron >= 0 && neuron < width && map[neuron] != kNotSelected)
      take(neuron, i, load_as_double(a.dtype, a.values, i));
  }
}

inline void unite(const DistillHiddenParams& p, int64_t b, int64_t width, int32_t* map, Union* u) {
  u->count = 0;
  const double inverse = 1 / p.temperature;
  for_selected(p, p.teacher, b, width, map, [&](int64_t neuron, int64_t, double value) {
    if (map[neuron] == kAbsent) map[neuron] = static_cast<int32_t>(u->count++);
    const int32_t at = map[neuron];
    u->zs[at] = 0;
    u->zt[at] = value * inverse;
    u->entry[at] = -1;
  });
  for_selected(p, p.student, b, width, map, [&](int64_t neuron, int64_t entry, double value) {
    if (map[neuron] == kAbsent) {
      map[neuron] = static_cast<int32_t>(u->count);
      u->zt[u->count++] = 0;
    }
    const int32_t at = map[neuron];
    u->zs[at] = value * inverse;
    u->entry[at] = entry;
  });
  for_selected(p, p.teacher, b, width, map, [&](int64_t neuron, int64_t, double) { map[neuron] = kAbsent; });
  for_selected(p, p.student, b, width, map, [&](int64_t neuron, int64_t, double) { map[neuron] = kAbsent; });
}

// log(Z / n) of n units of which `count` are h and the rest 0; shares become n times the probabilities.
inline double partition(int64_t units, const double* h, int64_t count, double* shares) {
  double largest = 0, sum = 0;
  for (int64_t i = 0; i < count; ++i) largest = h[i] > largest ? h[i] : largest;
  if (largest < 600) {
    expm1_array(h, count, shares);
    for (int64_t i = 0; i < count; ++i) sum += shares[i];
    const double log_mean = __builtin_log1p(sum / static_cast<double>(units)), inverse = __builtin_exp(-log_mean);
    for (int64_t i = 0; i < count; ++i) shares[i] = (1 + shares[i]) * inverse;
    return log_mean;
  }
  for (int64_t i = 0; i < count; ++i) sum += __builtin_exp(h[i] - largest);
  sum += static_cast<double>(units - count) * __builtin_exp(-largest);
  const double log_mean = largest + __builtin_log(sum / static_cast<double>(units));
  for (int64_t i = 0; i < count; ++i) shares[i] = __builtin_exp(h[i] - log_mean);
  return log_mean;
}

void distill_hidden_samples(const DistillHiddenParams& p, int64_t begin, int64_t end, int64_t width, double* kd,
                            double* scratch, int32_t* map) {
  const int64_t n = p.units;
  Union u{0, scratch, scratch + n, scratch + 2 * n, scratch + 3 * n, reinterpret_cast<int64_t*>(scratch + 4 * n)};
  const double share = 1 / static_cast<double>(n), scale = p.temperature / static_cast<double>(p.batch) * share;
  for (int64_t b = begin; b < end; ++b) {
    unite(p, b, width, map, &u);
    // log Z_s - log Z_t; log n has cancelled.
    const double gap = partition(n, u.zs, u.count, u.ps) - partition(n, u.zt, u.count, u.pt);
    double sum = 0;
    for (int64_t i = 0; i < u.count; ++i) sum += (p.reverse ? u.ps[i] : u.pt[i]) * (u.zs[i] - u.zt[i]);
    // The mean of the log-ratio z_s - z_t - gap under one of the two, with the sign of the direction.
    const double kl = p.reverse ? sum * share - gap : gap - sum * share;
    kd[b] = p.temperature * p.temperature * kl;
    const int64_t base = p.student.form == Form::kDense ? b * n : 0;
    for (int64_t i = 0; i < u.count; ++i) {
      if (u.entry[i] < 0) continue;
      const double gradient = p.reverse ? u.ps[i] * (u.zs[i] - u.zt[i] - gap - kl) : u.ps[i] - u.pt[i];
      store_double(p.student.dtype, scale * gradient, p.grad, base + u.entry[i]);
    }
  }
}

}  // namespace ssd::cpu::SSD_LEVEL

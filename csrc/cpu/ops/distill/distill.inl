// The SSD loss per sample, in fp64, with its gradient.
//
// Hidden distillation of a sample is over the union of the supports: the n - m units that are zero in student and
// teacher add n - m to each partition sum in closed form. With A = sum expm1(h / T) over the active units,
// log Z = log n + log1p(A / n), and log n cancels. Work: O(active) per sample for sparse activations, O(n) for dense.
// Determinism: a sample has one owner; per-sample losses are added in order by the caller.
#include "ops/distill/distill_levels.h"
#include "simd/exponential.h"
#include "simd/simd.h"

namespace ssd::cpu::SSD_LEVEL {

template <class S>
SSD_INLINE void load_row(const void* values, int64_t first, int64_t count, double* __restrict__ out) {
  const S* const from = static_cast<const S*>(values) + first;
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<double>(to_acc(from[i]));
}
inline void load_doubles(Dtype dtype, const void* values, int64_t first, int64_t count, double* out) {
  switch (dtype) {
    case Dtype::kFloat32:
      return load_row<float>(values, first, count, out);
    case Dtype::kFloat64:
      return load_row<double>(values, first, count, out);
    case Dtype::kBFloat16:
      return load_row<BFloat16>(values, first, count, out);
    case Dtype::kHalf:
      return load_row<Half>(values, first, count, out);
  }
}

template <class S>
SSD_INLINE void store_one(double value, S* to) {
  from_acc(static_cast<Acc<S>>(value), to);
}
template <class S>
SSD_INLINE void store_row(const double* __restrict__ from, int64_t count, void* values, int64_t first) {
  S* const to = static_cast<S*>(values) + first;
  for (int64_t i = 0; i < count; ++i) store_one(from[i], to + i);
}
inline void store_doubles(Dtype dtype, const double* from, int64_t count, void* values, int64_t first) {
  switch (dtype) {
    case Dtype::kFloat32:
      return store_row<float>(from, count, values, first);
    case Dtype::kFloat64:
      return store_row<double>(from, count, values, first);
    case Dtype::kBFloat16:
      return store_row<BFloat16>(from, count, values, first);
    case Dtype::kHalf:
      return store_row<Half>(from, count, values, first);
  }
}

// The sum over i < count, a multiple of kWhole, of the lanes of term(i), the vector of numbers from i on.
template <class Term>
SSD_INLINE double sum_whole(int64_t count, Term term) {
  using V = Vec<double>;
  V sums[kWhole / V::kWidth];
  for (V& sum : sums) sum = V::zero();
  for (int64_t i = 0; i < count; i += kWhole)
    for (int v = 0; v < kWhole / V::kWidth; ++v) sums[v] = sums[v] + term(i + v * V::kWidth);
  if constexpr (V::kWidth < kWhole) sums[0] = sums[0] + sums[1];
  return reduce_add(sums[0]);
}

// z becomes z - log sum exp(z); p becomes its exponential. Both have room for whole(count) numbers.
inline void log_softmax(double* __restrict__ z, int64_t count, double* __restrict__ p) {
  double largest = z[0];
  for (int64_t i = 1; i < count; ++i) largest = z[i] > largest ? z[i] : largest;
  const int64_t all = whole(count);
  for (int64_t i = 0; i < count; ++i) z[i] -= largest;
  for (int64_t i = count; i < all; ++i) z[i] = 0;
  exp_array(z, all, p);
  for (int64_t i = count; i < all; ++i) p[i] = 0;
  const double sum = sum_whole(all, [&](int64_t i) { return Vec<double>::load(p + i); });
  const double log_sum = __builtin_log(sum), inverse = 1 / sum;
  for (int64_t i = 0; i < all; ++i) {
    z[i] -= log_sum;
    p[i] *= inverse;
  }
}

void distill_logits_samples(const DistillLogitsParams& p, int64_t begin, int64_t end, double* ce, double* kd,
                            double* scratch) {
  const int64_t classes = p.classes, room = whole(classes);
  double *const z = scratch, *const q = z + room, *const ps = q + room, *const pt = ps + room;
  double *const student = pt + room, *const teacher = student + room;
  const double mean = 1.0 / static_cast<double>(p.batch), scale = p.temperature * mean;
  for (int64_t b = begin; b < end; ++b) {
    load_doubles(p.dtype, p.logits, b * p.logits_stride, classes, student);
    std::memcpy(z, student, static_cast<size_t>(classes) * sizeof(double));
    log_softmax(z, classes, ps);
    ce[b] = -z[p.labels[b]];
    ps[p.labels[b]] -= 1;
    for (int64_t c = 0; c < classes; ++c) ps[c] *= mean;
    store_doubles(p.dtype, ps, classes, p.grad_ce, b * classes);
    kd[b] = 0;
    if (!p.teacher) continue;
    load_doubles(p.teacher_dtype, p.teacher, b * p.teacher_stride, classes, teacher);
    for (int64_t i = 0; i < p.old; ++i) {
      const int64_t c = p.old_classes ? p.old_classes[i] : i;
      z[i] = student[c] / p.temperature;
      q[i] = teacher[c] / p.temperature;
    }
    log_softmax(z, p.old, ps);
    log_softmax(q, p.old, pt);
    double kl = 0;
    for (int64_t i = 0; i < p.old; ++i) kl += p.reverse ? ps[i] * (z[i] - q[i]) : pt[i] * (q[i] - z[i]);
    kd[b] = p.temperature * p.temperature * kl;
    double* const gradient = student;
    if (p.old_classes) std::memset(gradient, 0, static_cast<size_t>(classes) * sizeof(double));
    for (int64_t i = 0; i < p.old; ++i)
      gradient[p.old_classes ? p.old_classes[i] : i] = scale * (p.reverse ? ps[i] * (z[i] - q[i] - kl) : ps[i] - pt[i]);
    store_doubles(p.dtype, gradient, classes, p.grad_kd, b * classes);
  }
}

// The units of one sample that are active in student or teacher: their activations divided by T. Arrays have room for
// whole(n) numbers, and are 0 from count up to whole(count).
struct Union {
  int64_t count;
  double *zs, *zt;   // student and teacher, 0 where absent
  double *ps, *pt;   // n times their probabilities
  int64_t* entry;    // the student's entry (dense: its unit), -1 where it has none
  int64_t* neurons;  // which neuron
};

template <class S, class Take>
SSD_INLINE void for_entries(const DistillHiddenParams& p, const Activations& a, int64_t b, int64_t width,
                            const int32_t* map, Take take) {
  const S* const values = static_cast<const S*>(a.values);
  if (a.form == Form::kDense) {
    for (int64_t i = 0; i < p.units; ++i)
      take(p.selected[i], i, static_cast<double>(to_acc(values[b * a.stride + p.selected[i]])));
    return;
  }
  const bool rows = a.form == Form::kRows;
  const int64_t first = rows ? a.offsets[b] : b * a.k, last = rows ? a.offsets[b + 1] : first + a.k;
  for (int64_t i = first; i < last; ++i) {
    const int32_t neuron = a.indices[i];
    if (neuron >= 0 && neuron < width && map[neuron] != kNotSelected)
      take(neuron, i, static_cast<double>(to_acc(values[i])));
  }
}

// Calls take(neuron, entry, value) for the sample's selected entries.
template <class Take>
SSD_INLINE void for_selected(const DistillHiddenParams& p, const Activations& a, int64_t b, int64_t width,
                             const int32_t* map, Take take) {
  switch (a.dtype) {
    case Dtype::kFloat32:
      return for_entries<float>(p, a, b, width, map, take);
    case Dtype::kFloat64:
      return for_entries<double>(p, a, b, width, map, take);
    case Dtype::kBFloat16:
      return for_entries<BFloat16>(p, a, b, width, map, take);
    case Dtype::kHalf:
      return for_entries<Half>(p, a, b, width, map, take);
  }
}

inline void unite(const DistillHiddenParams& p, int64_t b, int64_t width, int32_t* map, Union* u) {
  int64_t count = 0;
  const double inverse = 1 / p.temperature;
  for_selected(p, p.teacher, b, width, map, [&](int64_t neuron, int64_t, double value) {
    if (map[neuron] == kAbsent) {
      u->neurons[count] = neuron;
      map[neuron] = static_cast<int32_t>(count++);
    }
    const int32_t at = map[neuron];
    u->zs[at] = 0;
    u->zt[at] = value * inverse;
    u->entry[at] = -1;
  });
  for_selected(p, p.student, b, width, map, [&](int64_t neuron, int64_t entry, double value) {
    if (map[neuron] == kAbsent) {
      u->neurons[count] = neuron;
      map[neuron] = static_cast<int32_t>(count);
      u->zt[count++] = 0;
    }
    const int32_t at = map[neuron];
    u->zs[at] = value * inverse;
    u->entry[at] = entry;
  });
  for (int64_t i = 0; i < count; ++i) map[u->neurons[i]] = kAbsent;
  for (int64_t i = count; i < whole(count); ++i) u->zs[i] = u->zt[i] = 0;
  u->count = count;
}

// The largest of n units of which `count` are h and the rest 0.
inline double largest_of(int64_t units, const double* h, int64_t count) {
  double largest = count < units ? 0 : h[0];
  for (int64_t i = 0; i < count; ++i) largest = h[i] > largest ? h[i] : largest;
  return largest;
}

// log(Z / n) of n units of which `count` are h and the rest 0; shares become n times the probabilities, then 0.
inline double shifted_partition(int64_t units, const double* h, int64_t count, double* shares) {
  const double largest = largest_of(units, h, count);
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += __builtin_exp(h[i] - largest);
  if (count < units) sum += static_cast<double>(units - count) * __builtin_exp(-largest);
  const double log_mean = largest + __builtin_log(sum / static_cast<double>(units));
  for (int64_t i = 0; i < count; ++i) shares[i] = __builtin_exp(h[i] - log_mean);
  for (int64_t i = count; i < whole(count); ++i) shares[i] = 0;
  return log_mean;
}

// log Z_s - log Z_t, where log n cancels; u->ps and u->pt become n times the probabilities.
inline double partitions(int64_t units, const Union& u) {
  using V = Vec<double>;
  const int64_t all = whole(u.count);
  uint32_t large = 0;
  for (int64_t i = 0; i < all; i += V::kWidth)
    large |= gt_mask(V::load(u.zs + i), V::set1(600)) | gt_mask(V::load(u.zt + i), V::set1(600));
  // Where every unit is well below 0, n + sum expm1 cancels.
  large |= u.count == units && (largest_of(units, u.zs, u.count) < -1 || largest_of(units, u.zt, u.count) < -1);
  if (large) return shifted_partition(units, u.zs, u.count, u.ps) - shifted_partition(units, u.zt, u.count, u.pt);
  expm1_array(u.zs, all, u.ps);
  expm1_array(u.zt, all, u.pt);
  const double n = static_cast<double>(units);
  const double student = sum_whole(all, [&](int64_t i) { return V::load(u.ps + i); });
  const double teacher = sum_whole(all, [&](int64_t i) { return V::load(u.pt + i); });
  const double change = sum_whole(all, [&](int64_t i) { return V::load(u.ps + i) - V::load(u.pt + i); });
  const double scale_s = n / (n + student), scale_t = n / (n + teacher);
  for (int64_t i = 0; i < all; ++i) {
    u.ps[i] = (1 + u.ps[i]) * scale_s;
    u.pt[i] = (1 + u.pt[i]) * scale_t;
  }
  // The ratio is at least 1 in both forms: near 0 it would lose digits.
  return change < 0 ? -__builtin_log1p(-change / (n + student)) : __builtin_log1p(change / (n + teacher));
}

template <class S>
SSD_INLINE void store_typed(const Union& u, S* grad) {
  for (int64_t i = 0; i < u.count; ++i)
    if (u.entry[i] >= 0) store_one(u.ps[i], grad + u.entry[i]);
}

// Writes the gradients, which stand in u.ps, of the student's entries.
inline void store_entries(const DistillHiddenParams& p, const Union& u, int64_t base) {
  switch (p.student.dtype) {
    case Dtype::kFloat32:
      return store_typed(u, static_cast<float*>(p.grad) + base);
    case Dtype::kFloat64:
      return store_typed(u, static_cast<double*>(p.grad) + base);
    case Dtype::kBFloat16:
      return store_typed(u, static_cast<BFloat16*>(p.grad) + base);
    case Dtype::kHalf:
      return store_typed(u, static_cast<Half*>(p.grad) + base);
  }
}

void distill_hidden_samples(const DistillHiddenParams& p, int64_t begin, int64_t end, int64_t width, double* kd,
                            double* scratch, int32_t* map) {
  using V = Vec<double>;
  const int64_t n = p.units, room = whole(n);
  int64_t* const places = reinterpret_cast<int64_t*>(scratch + 4 * room);
  Union u{0, scratch, scratch + room, scratch + 2 * room, scratch + 3 * room, places, places + room};
  const double share = 1 / static_cast<double>(n), scale = p.temperature / static_cast<double>(p.batch) * share;
  for (int64_t b = begin; b < end; ++b) {
    unite(p, b, width, map, &u);
    const double gap = partitions(n, u);
    const double* const weights = p.reverse ? u.ps : u.pt;
    const double sum = sum_whole(
        whole(u.count), [&](int64_t i) { return V::load(weights + i) * (V::load(u.zs + i) - V::load(u.zt + i)); });
    // The mean of the log-ratio z_s - z_t - gap under one of the two, with the sign of the direction.
    const double kl = p.reverse ? sum * share - gap : gap - sum * share;
    kd[b] = p.temperature * p.temperature * kl;
    if (p.reverse) {
      for (int64_t i = 0; i < u.count; ++i) u.ps[i] = scale * (u.ps[i] * (u.zs[i] - u.zt[i] - gap - kl));
    } else {
      for (int64_t i = 0; i < u.count; ++i) u.ps[i] = scale * (u.ps[i] - u.pt[i]);
    }
    store_entries(p, u, p.student.form == Form::kDense ? b * n : 0);
  }
}

}  // namespace ssd::cpu::SSD_LEVEL

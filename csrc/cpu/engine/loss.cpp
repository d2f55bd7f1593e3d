// One row's outputs, losses and their gradients (arXiv 2512.15267): cross-entropy, logit distillation and
// hidden distillation over the union of the student's and the teacher's active units, all normalisers in fp64.
#include <algorithm>
#include <cmath>

#include "engine/state.h"

namespace ssd::cpu {
namespace {

// The selected units of one row: where the student or the teacher is active there, its softmax terms; all other units
// hold exp(0) in both and enter in closed form.
//   log Z = log n + log1p(sum expm1(h / T) / n),   KL(q || p) = sum q (w - z) + log Z_z - log Z_w   (forward)
// Where exp would overflow, the largest h / T is taken out of the sum. exp - 1 stands for expm1: log n is there too, so
// the last digits of a small z are not in log Z anyway.
// It is long because both passes over the units share the terms that one call of exp_rows made.
double hidden_distillation(const SdmlpKernels& kernel, const SdmlpTeacher& teacher, int64_t sample,
                           const SdmlpConfig& cfg, double weight, Row& row) {
  const double inverse_t = 1.0 / cfg.temperature;
  const double units = static_cast<double>(teacher.units);
  const double log_teacher = teacher.hidden_log_z[sample];
  const int64_t begin = teacher.offsets[sample], end = teacher.offsets[sample + 1];
  // The exponentials of all terms at once: the student's, then the teacher's probabilities.
  row.terms.resize(row.count + (end - begin));
  double* const terms = row.terms.data();
  int active = 0;
  double largest = 0;
  for (int i = 0; i < row.count; ++i) {
    if (!teacher.in_units[row.index[i]]) continue;
    const double z = terms[active++] = row.h[i] * inverse_t;
    largest = std::max(largest, z);
  }
  double* const taught = terms + active;
  for (int64_t t = begin; t < end; ++t) taught[t - begin] = teacher.values[t] * inverse_t - log_teacher;
  const double out = largest > 600 ? largest : 0;
  for (int i = 0; i < active && out > 0; ++i) terms[i] -= out;
  kernel.exp_rows(terms, active + (end - begin));
  double sum = 0;
  const double silent = out > 0 ? std::exp(-out) : 1.0;
  for (int i = 0; i < active; ++i) sum += terms[i] - silent;
  const double log_student = out > 0 ? out + std::log(units * silent + sum) : std::log(units) + std::log1p(sum / units);
  const double z_student_inverse = 1.0 / (units * silent + sum);  // of the terms: exp(out) is taken out of both
  const double silent_student = silent * z_student_inverse;       // p of a silent unit
  const double z_teacher_inverse = std::exp(-log_teacher);
  const double scale = weight * cfg.temperature;  // T^2 of the loss, 1 / T of z = h / T

  double cross = 0;  // forward: sum q (w - z); reverse: sum p (z - w)
  for (int pass = 0; pass < (cfg.reverse_kl ? 2 : 1); ++pass) {
    const double kl = cfg.reverse_kl ? cross + log_teacher - log_student : 0.0;
    int64_t t = begin;
    const auto silent_term = [&] {  // the student is silent here: z = 0
      const double w = teacher.values[t] * inverse_t;
      return cfg.reverse_kl ? -w * silent_student : taught[t - begin] * w;
    };
    int at = 0;
    for (int i = 0; i < row.count; ++i) {
      const int32_t neuron = row.index[i];
      if (!teacher.in_units[neuron]) continue;
      for (; t < end && teacher.indices[t] < neuron; ++t)
        if (pass == 0) cross += silent_term();
      const double z = row.h[i] * inverse_t;
      const double p = terms[at++] * z_student_inverse;
      double w = 0, q = z_teacher_inverse;
      if (t < end && teacher.indices[t] == neuron) {
        w = teacher.values[t] * inverse_t;
        q = taught[t++ - begin];
      }
      if (!cfg.reverse_kl) {
        cross += q * (w - z);
        row.dh[i] += static_cast<float>(scale * (p - q));
      } else if (pass == 0) {
        cross += p * (z - w);
      } else {
        row.dh[i] += static_cast<float>(scale * p * ((z - log_student) - (w - log_teacher) - kl));
      }
    }
    for (; t < end && pass == 0; ++t) cross += silent_term();
  }
  const double kl = cfg.reverse_kl ? cross + log_teacher - log_student : cross + log_student - log_teacher;
  return cfg.temperature * cfg.temperature * kl;
}

// What both directions of logit distillation need of one row; C entries each.
struct LogitRow {
  int64_t C, label;
  const double *p, *soft, *q;  // exp of the logits, and of the softened logits; the teacher's q, or log q when reversed
  double inverse, scale;       // 1 / sum p; weight of the cross-entropy
  double soft_inverse, log_soft, kd;  // 1 / sum soft, log sum soft; weight of the distillation
  float* gradient;

  double cross_entropy(int64_t c) const { return scale * (p[c] * inverse - (c == label)); }
};

// KL(q || p_T) of a row, with the gradient of both losses; cross is sum q z / T.
double forward_kl(const LogitRow& row, double cross, double neg_entropy) {
  for (int64_t c = 0; c < row.C; ++c)
    row.gradient[c] = static_cast<float>(row.cross_entropy(c) + row.kd * (row.soft[c] * row.soft_inverse - row.q[c]));
  return neg_entropy - (cross - row.log_soft);
}

// KL(p_T || q) of a row, with the gradient of both losses.
double reverse_kl(const LogitRow& row, const float* logits, double highest, double inverse_t) {
  const auto ratio = [&](int64_t c) { return (logits[c] - highest) * inverse_t - row.log_soft - row.q[c]; };
  double kl = 0;
  for (int64_t c = 0; c < row.C; ++c) {
    const double ps = row.soft[c] * row.soft_inverse;
    kl += ps * ratio(c);
  }
  for (int64_t c = 0; c < row.C; ++c) {
    const double ps = row.soft[c] * row.soft_inverse;
    row.gradient[c] = static_cast<float>(row.cross_entropy(c) + row.kd * ps * (ratio(c) - kl));
  }
  return kl;
}

}  // namespace

// CE and logit distillation of one row from its logits in y; their gradient goes to dy.
void SdmlpTrainer::Impl::logit_losses(const SdmlpEpoch& epoch, int which, int batch) {
  Row& row = rows[which];
  const float* logits = &y[static_cast<size_t>(which) * Cp];
  float* gradient = &dy[static_cast<size_t>(which) * Cp];
  const SdmlpTeacher* teacher = epoch.teacher;
  const double ce_weight = teacher ? cfg.alpha : 1.0;
  double inline_buffer[2 * kInlineClasses];
  std::vector<double> heap_buffer;
  double* p = inline_buffer;
  if (C > kInlineClasses) {
    heap_buffer.resize(2 * C);
    p = heap_buffer.data();
  }
  const int64_t label = epoch.y[row.sample];
  double highest = logits[0];
  for (int64_t c = 1; c < C; ++c) highest = logits[c] > highest ? logits[c] : highest;

  for (int64_t c = 0; c < C; ++c) p[c] = logits[c] - highest;
  const double shifted_label = p[label];
  double* soft = p + C;
  const double inverse_t = 1.0 / cfg.temperature;
  if (teacher)
    for (int64_t c = 0; c < C; ++c) soft[c] = p[c] * inverse_t;
  double cross = 0;  // sum q z
  if (teacher) {
    const double* q = teacher->targets + row.sample * C;
    for (int64_t c = 0; c < C && !cfg.reverse_kl; ++c) cross += q[c] * soft[c];
  }
  kernel.exp_rows(p, teacher ? 2 * C : C);
  double total = 0;
  for (int64_t c = 0; c < C; ++c) total += p[c];
  row.ce = std::log(total) - shifted_label;
  const double scale = ce_weight / batch;
  const double inverse = 1.0 / total;
  row.kd_logits = row.kd_hidden = 0;
  LogitRow of{C, label, p, soft, nullptr, inverse, scale, 0, 0, 0, gradient};
  if (!teacher) {
    for (int64_t c = 0; c < C; ++c) gradient[c] = static_cast<float>(of.cross_entropy(c));
  } else {
    double soft_total = 0;
    for (int64_t c = 0; c < C; ++c) soft_total += soft[c];
    const double t = cfg.temperature;
    of.q = teacher->targets + row.sample * C;
    of.log_soft = std::log(soft_total);
    of.soft_inverse = 1.0 / soft_total;
    of.kd = (1 - cfg.alpha) * (1 - cfg.lam) * t / batch;
    const double kl = cfg.reverse_kl ? reverse_kl(of, logits, highest, inverse_t)
                                     : forward_kl(of, cross, teacher->neg_entropy[row.sample]);
    row.kd_logits = t * t * kl;
  }
  for (int64_t c = C; c < Cp; ++c) gradient[c] = 0.f;
}

// Hidden distillation of one row, where there is any; its gradient is added to row.dh.
void SdmlpTrainer::Impl::hidden_loss(const SdmlpEpoch& epoch, int which, int batch) {
  const SdmlpTeacher* teacher = epoch.teacher;
  if (!teacher || teacher->units == 0) return;
  Row& row = rows[which];
  row.kd_hidden = hidden_distillation(kernel, *teacher, row.sample, cfg, (1 - cfg.alpha) * cfg.lam / batch, row);
}

void SdmlpTrainer::Impl::forward(const SdmlpEpoch& epoch, int which, int batch) {
  Row& row = rows[which];
  kernel.output_row(row.index.data(), row.h.data(), row.count, output.data(), Cp, &y[static_cast<size_t>(which) * Cp]);
  logit_losses(epoch, which, batch);
  const float* gradient = &dy[static_cast<size_t>(which) * Cp];
  kernel.backward_row(row.index.data(), row.count, output.data(), static_cast<int>(C), Cp, gradient, row.dh.data());
  hidden_loss(epoch, which, batch);
  cut_into_chunks(row);
}

// Where each chunk of neurons begins in the row's ascending list.
void SdmlpTrainer::Impl::cut_into_chunks(Row& row) const {
  row.chunk_begin.resize(kUpdateChunks + 1);
  int at = 0;
  for (int chunk = 0; chunk < kUpdateChunks; ++chunk) {
    while (at < row.count && row.index[at] < chunks[chunk].begin) ++at;
    row.chunk_begin[chunk] = at;
  }
  while (at < row.count && row.index[at] < R) ++at;  // neurons of other processes follow
  row.chunk_begin[kUpdateChunks] = at;
}

}  // namespace ssd::cpu

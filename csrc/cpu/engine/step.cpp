// One step in each of its three forms, and its end: the clipping factor, or what in it is not finite.
#include <algorithm>
#include <cmath>

#include "engine/run.h"

namespace ssd::cpu {

void SdmlpTrainer::Impl::Run::list_step() {
  const int n = static_cast<int>(batch);
  team.for_each(kUpdateChunks, [&](int c, int) { self.backward(c, n, epoch.penalty); });
  update_step();
}

// One step with many neurons active (forms/tiles.cpp).
void SdmlpTrainer::Impl::Run::tile_step() {
  const int n = static_cast<int>(batch);
  proved = 0;
  self.tile_begin(epoch, n);
  team.for_each((n + kRowChunk - 1) / kRowChunk,
                [&](int c, int) { self.tile_load(c * kRowChunk, std::min(n, (c + 1) * kRowChunk)); });
  self.kernel.tile_slice(self.tiles.inputs.data(), n, self.D, self.tiles.sliced.data());
  lap(kSelect);
  team.for_each(kUpdateChunks, [&](int c, int) {
    const int row = self.tile_scores(c);
    if (row >= 0) bad_score(self.rows[row].sample);
  });
  lap(kScan);
  if (non_finite.load()) {
    stop = true;
    return;
  }
  team.for_each(self.tiles.columns / kTileColumns, [&](int c, int) { self.tile_forward(epoch, c); });
  lap(kForward);
  team.for_each(kUpdateChunks, [&](int c, int) { self.tile_backward(c, epoch.penalty); });
  update_step();
}

// One step with every neuron active (forms/all_active.cpp).
void SdmlpTrainer::Impl::Run::dense_step() {
  const int n = static_cast<int>(batch);
  if (!self.products_valid) {
    team.for_each(kUpdateChunks, [&](int c, int) { self.dense_prepare(c); });
    self.dense_collect();
  }
  team.for_each((n + kRowChunk - 1) / kRowChunk, [&](int c, int) {
    for (int b = c * kRowChunk; b < std::min(n, (c + 1) * kRowChunk); ++b) self.dense_forward(epoch, b, n);
  });
  team.for_each(static_cast<int>(self.C), [&](int c, int) { self.dense_gradient(c, n); });
  lap(kDense);
  team.for_each(kUpdateChunks, [&](int c, int) { self.dense_output_gradient(c); });
  if (self.by_neurons()) self.gather_norms(true);
  const double weight_norm2 = self.dense_weight_norm2();
  if (!clip(weight_norm2 < 0 ? 0.0 : weight_norm2)) return;  // rounding may leave it below 0
  lap(kBackward);
  team.for_each(kUpdateChunks, [&](int c, int) { self.dense_update(c, static_cast<float>(scale), n); });
  self.dense_collect();
  self.highest_count += n;
  touched_sum += static_cast<double>(self.all_neurons());
  end_step();
}

// Clips and applies the touched neurons' gradients.
void SdmlpTrainer::Impl::Run::update_step() {
  if (self.by_neurons()) touched_sum += self.gather_norms(false);
  if (!clip(0.0)) return;
  lap(kBackward);
  team.for_each(kUpdateChunks, [&](int c, int) { self.update(c, static_cast<float>(scale), epoch.penalty); });
  self.products_valid = false;
  for (const UpdateChunk& chunk : self.chunks) {
    if (!self.by_neurons()) touched_sum += static_cast<double>(chunk.neuron.size());
    if (self.all_active())
      for (int32_t j : chunk.neuron) self.highest_count = std::max(self.highest_count, self.counts[j]);
  }
  end_step();
}

// The clipping factor, from the ranges' squared norms and what is in none of them. False, and the call ends, where
// the loss, the norm or the update is not finite: nothing has been changed by this step then.
bool SdmlpTrainer::Impl::Run::clip(double norm2) {
  for (const UpdateChunk& chunk : self.chunks) norm2 += chunk.norm2;
  const double norm = std::sqrt(norm2);
  scale = std::min(1.0, self.cfg.max_grad_norm / (norm + 1e-6));
  double loss = 0;
  for (int64_t b = 0; b < batch; ++b) loss += self.rows[b].ce + self.rows[b].kd_hidden + self.rows[b].kd_logits;
  const double speed = self.cfg.momentum * self.speed + scale * norm;
  if (!std::isfinite(loss) || !std::isfinite(norm) || !(self.cfg.lr * speed <= kLongestStep)) {
    stats.failure = explain(norm);
    stop = true;
    return false;
  }
  if (!self.weight_velocity.empty()) self.speed = speed;
  grad_norm_sum += norm;
  return true;
}

// What is not finite in a step that cannot be taken, and where.
SdmlpFailure SdmlpTrainer::Impl::Run::explain(double norm) const {
  for (int64_t b = 0; b < batch; ++b) {
    const Row& row = self.rows[b];
    if (!std::isfinite(row.ce)) return {"cross-entropy", row.sample};
    if (!std::isfinite(row.kd_hidden)) return {"hidden distillation", row.sample};
    if (!std::isfinite(row.kd_logits)) return {"logit distillation", row.sample};
  }
  if (std::isfinite(norm)) return {"learning rate times the gradient"};
  if (dense) return {"norm of the gradient"};
  for (const UpdateChunk& chunk : self.chunks) {
    for (size_t s = 0; s < chunk.neuron.size(); ++s) {
      if (!std::isfinite(self.kernel.square_norm(&chunk.gradient[s * self.D], self.D)))
        return {"gradient of weight", -1, self.cfg.share.first + chunk.neuron[s]};
      if (!std::isfinite(self.kernel.square_norm(&chunk.output_gradient[s * self.Cp], self.Cp)))
        return {"gradient of output_weight", -1, self.cfg.share.first + chunk.neuron[s]};
    }
  }
  for (size_t j = 0; epoch.penalty && j < self.pull_norm2.size(); ++j)
    if (!std::isfinite(self.pull_norm2[j])) return {"gradient of the penalty", -1, static_cast<int64_t>(j)};
  return {"norm of the gradient"};
}

}  // namespace ssd::cpu

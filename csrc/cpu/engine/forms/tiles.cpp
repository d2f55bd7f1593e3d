// A step's form for many active neurons, as between the all-active phase and saturated counters: the scores of the
// whole batch are made once, (R, B) with the batch rows side by side, and become activations in place; outputs and
// gradients are masked products over whole vectors. Every sum runs in the order of the form with lists, and a silent
// neuron adds an exact zero, so the bits are the same: which form a step takes is a matter of speed alone.
//
// Work: 2 R B D for the scores, 2 R D per active neuron (at most B) for the weight gradient; memory: R B floats.
#include <algorithm>
#include <functional>

#include "engine/state.h"

namespace ssd::cpu {

bool SdmlpTrainer::Impl::tile_form(int64_t batch) const {
  const int64_t columns = (batch + kTileColumns - 1) / kTileColumns * kTileColumns;
  return !cfg.share.exchange && recent_active > cfg.tile_active && R * columns * 4 <= kTileBytes &&
         !certificates.active();
}

void SdmlpTrainer::Impl::tile_begin(const SdmlpEpoch& epoch, int batch) {
  Tiles& t = tiles;
  t.batch = batch;
  t.columns = (batch + kTileColumns - 1) / kTileColumns * kTileColumns;
  const size_t columns = static_cast<size_t>(t.columns);
  const int64_t slices = (D + kernel.slice_width - 1) / kernel.slice_width;
  t.inputs.resize(batch * D);
  t.sliced.resize(static_cast<size_t>(batch) * slices * kernel.slice_width);
  t.scores.resize(R * columns);
  t.floors.resize(kUpdateChunks * columns);
  t.thresholds.assign(columns, 0.f);
  t.best.resize(kUpdateChunks * columns);
  t.best_score.resize(t.best.size() * (K + 1));
  t.best_index.resize(t.best.size() * (K + 1));
  t.y.assign(C * columns, 0.f);
  t.dy.assign(C * columns, 0.f);
  t.active.assign(columns, 0.f);
  const bool distil = epoch.teacher && epoch.teacher->units > 0;
  t.units.clear();
  if (distil) {
    t.unit_of.assign(R, -1);
    for (int64_t j = 0; j < R; ++j) {
      if (!epoch.teacher->in_units[j]) continue;
      t.unit_of[j] = static_cast<int32_t>(t.units.size());
      t.units.push_back(static_cast<int32_t>(j));
    }
    t.unit_gradient.resize(t.units.size() * columns);
  }
}

// The rows' inputs side by side, and a lower bound of each threshold.
void SdmlpTrainer::Impl::tile_load(int begin, int end) {
  Tiles& t = tiles;
  for (int b = begin; b < end; ++b) {
    std::copy_n(rows[b].x, D, &t.inputs[b * D]);
    const float floor = floor_of(rows[b]);
    for (int c = 0; c < kUpdateChunks; ++c) {
      t.floors[c * t.columns + b] = floor;
      t.best[c * t.columns + b] = 0;
    }
  }
}

// A range's scores, and for every row the K + 1 best of them that are not below the row's bound. Returns a row
// whose score is NaN, -1: there is none.
int SdmlpTrainer::Impl::tile_scores(int which) {
  Tiles& t = tiles;
  const UpdateChunk& chunk = chunks[which];
  const int winners = static_cast<int>(K) + 1;
  float* floors = &t.floors[static_cast<size_t>(which) * t.columns];
  int32_t* best = &t.best[static_cast<size_t>(which) * t.columns];
  std::fill(floors + t.batch, floors + t.columns, 1e38f);
  thread_local std::vector<int32_t> hits;
  hits.resize(static_cast<size_t>(kScoreNeurons) * t.columns);
  const float* neuron[kScoreNeurons];
  int bad = -1;
  for (int64_t j = chunk.begin; j < chunk.end; j += kScoreNeurons) {
    const int n = static_cast<int>(std::min<int64_t>(kScoreNeurons, chunk.end - j));
    for (int i = 0; i < n; ++i) neuron[i] = weight + (j + i) * D;
    float* scores = &t.scores[j * t.columns];
    for (int i = 0; i < n; ++i)  // a later batch may be smaller than the one before
      std::fill(scores + i * t.columns + t.batch, scores + (i + 1) * t.columns, 0.f);
    kernel.score_block(neuron, n, t.inputs.data(), t.batch, D, scores, t.columns);
    const int found = kernel.tile_exceed(scores, n, t.columns, floors, hits.data());
    for (int e = 0; e < found; ++e) {
      const int b = hits[e] % t.columns;
      const float score = scores[hits[e]];
      if (!(score >= 0) && (bad < 0 || b < bad)) bad = b;  // inputs and weights are not negative: this is NaN
      const size_t at = (static_cast<size_t>(which) * t.columns + b) * winners;
      float* list = &t.best_score[at];
      int place = best[b];
      if (place == winners) {
        if (!(score > floors[b])) continue;
        place = static_cast<int>(std::min_element(list, list + winners) - list);
      } else {
        ++best[b];
      }
      list[place] = score;
      t.best_index[at + place] = static_cast<int32_t>(j + hits[e] / t.columns);
      if (best[b] == winners) floors[b] = std::max(floors[b], *std::min_element(list, list + winners));
    }
  }
  return bad;
}

// A row's threshold, the (K + 1)-th largest of all ranges, and the neurons to look at first at its next visit.
void SdmlpTrainer::Impl::tile_threshold(int b, std::vector<std::pair<float, int32_t>>& merged) {
  Tiles& t = tiles;
  const int winners = static_cast<int>(K) + 1;
  merged.clear();
  for (int c = 0; c < kUpdateChunks; ++c) {
    const size_t place = static_cast<size_t>(c) * t.columns + b;
    for (int i = 0; i < t.best[place]; ++i)
      merged.emplace_back(t.best_score[place * winners + i], t.best_index[place * winners + i]);
  }
  std::nth_element(merged.begin(), merged.begin() + K, merged.end(), std::greater<>());
  rows[b].threshold = t.thresholds[b] = merged[K].first;
  if (rows[b].duplicate) return;  // another thread may be at this sample too
  for (int i = 0; i < winners; ++i) likely[rows[b].sample * winners + i] = merged[i].second;
}

// Thresholds, activations, outputs and losses of kTileColumns rows.
void SdmlpTrainer::Impl::tile_forward(const SdmlpEpoch& epoch, int group) {
  Tiles& t = tiles;
  const int first = group * kTileColumns, end = std::min(t.batch, first + kTileColumns);
  std::vector<std::pair<float, int32_t>> merged;
  for (int b = first; b < end; ++b) tile_threshold(b, merged);
  kernel.tile_outputs(&t.scores[first], R, t.columns, gaba.data(), &t.thresholds[first], output.data(),
                      static_cast<int>(C), Cp, &t.y[first], t.columns, &t.active[first]);
  for (int b = first; b < end; ++b) {
    Row& row = rows[b];
    row.count = static_cast<int>(t.active[b]);
    float* logits = &y[static_cast<size_t>(b) * Cp];
    for (int64_t c = 0; c < C; ++c) logits[c] = t.y[c * t.columns + b];
    logit_losses(epoch, b, t.batch);
    const float* gradient = &dy[static_cast<size_t>(b) * Cp];
    for (int64_t c = 0; c < C; ++c) t.dy[c * t.columns + b] = gradient[c];
    if (!t.units.empty()) tile_hidden(epoch, b);
  }
}

// Hidden distillation of one row: its selected units as a list, their gradients to unit_gradient (units, columns).
void SdmlpTrainer::Impl::tile_hidden(const SdmlpEpoch& epoch, int b) {
  Tiles& t = tiles;
  Row& row = rows[b];
  const int active = row.count, units = static_cast<int>(t.units.size());
  row.reserve(units);
  row.count = 0;
  for (int u = 0; u < units; ++u) {
    const float h = t.scores[static_cast<int64_t>(t.units[u]) * t.columns + b];
    if (!(h > 0)) continue;
    row.index[row.count] = t.units[u];
    row.h[row.count] = h;
    row.dh[row.count++] = 0.f;
  }
  hidden_loss(epoch, b, t.batch);
  for (int u = 0; u < units; ++u) t.unit_gradient[static_cast<size_t>(u) * t.columns + b] = 0.f;
  for (int i = 0; i < row.count; ++i)
    t.unit_gradient[static_cast<size_t>(t.unit_of[row.index[i]]) * t.columns + b] = row.dh[i];
  row.count = active;
}

// Gradients of a range's touched neurons: what group() and backward() do, without lists.
void SdmlpTrainer::Impl::tile_backward(int which, const SdmlpPenalty* penalty) {
  Tiles& t = tiles;
  UpdateChunk& chunk = chunks[which];
  const int64_t size = chunk.end - chunk.begin;
  if (static_cast<int64_t>(chunk.gradient.size()) < size * D) chunk.gradient.resize(size * D);
  if (static_cast<int64_t>(chunk.output_gradient.size()) < size * Cp) chunk.output_gradient.resize(size * Cp);
  if (static_cast<int>(chunk.x.size()) < t.batch) chunk.x.resize(t.batch);
  chunk.coef.resize(std::max<size_t>(chunk.coef.size(), static_cast<size_t>(kGradientNeurons) * t.columns));
  chunk.dh.resize(std::max<size_t>(chunk.dh.size(), t.batch));
  chunk.neuron.clear();
  chunk.first.assign(1, 0);
  for (int64_t j = chunk.begin; j < chunk.end; j += kGradientNeurons) {
    const int n = static_cast<int>(std::min<int64_t>(kGradientNeurons, chunk.end - j));
    const float* h = &t.scores[j * t.columns];
    float* dh = chunk.coef.data();
    int32_t active[kGradientNeurons];
    kernel.tile_gradients(h, n, t.columns, &output[j * Cp], static_cast<int>(C), Cp, t.dy.data(), dh, active);
    const float *coef[kGradientNeurons], *hidden[kGradientNeurons];
    float *sum[kGradientNeurons], *output_sum[kGradientNeurons];
    int dense = 0, touched = 0;
    for (int i = 0; i < n; ++i) {
      if (active[i] == 0) continue;
      const size_t slot = chunk.neuron.size();
      chunk.neuron.push_back(static_cast<int32_t>(j + i));
      chunk.first.push_back(chunk.first.back() + active[i]);
      float* row = dh + static_cast<size_t>(i) * t.columns;
      if (!t.units.empty() && t.unit_of[j + i] >= 0) {
        const float* more = &t.unit_gradient[static_cast<size_t>(t.unit_of[j + i]) * t.columns];
        for (int b = 0; b < t.batch; ++b) row[b] += more[b];
      }
      hidden[touched] = h + static_cast<size_t>(i) * t.columns;
      output_sum[touched++] = &chunk.output_gradient[slot * Cp];
      float* gradient = &chunk.gradient[slot * D];
      if (active[i] * kTileSparse >= t.batch) {
        coef[dense] = row;
        sum[dense++] = gradient;
        continue;
      }
      const float* mask = hidden[touched - 1];  // an active neuron's dh may be 0
      int count = 0;
      for (int b = 0; b < t.batch; ++b) {
        chunk.x[count] = &t.inputs[b * D];
        chunk.dh[count] = row[b];
        count += mask[b] > 0;
      }
      kernel.accumulate_rows(chunk.x.data(), chunk.dh.data(), count, D, gradient);
    }
    kernel.tile_weight_gradient(coef, dense, t.sliced.data(), t.batch, D, sum);
    kernel.tile_output_gradient(hidden, touched, dy.data(), t.batch, Cp, output_sum);
  }
  chunk.norm2 = 0;
  int64_t next = chunk.begin;
  for (int s = 0; s < static_cast<int>(chunk.neuron.size()); ++s) {
    const double norm2 = kernel.square_norm(&chunk.gradient[s * D], D) +
                         kernel.square_norm(&chunk.output_gradient[static_cast<size_t>(s) * Cp], Cp);
    add_norm(chunk, s, norm2, &next, penalty);
  }
  for (; penalty && next < chunk.end; ++next) chunk.norm2 += pull_norm2[next];
}

}  // namespace ssd::cpu

// Gradients of the touched neurons, and their update. Neurons are cut into a fixed number of ranges; one thread owns a
// range at a time, sums over samples in ascending order, and no atomics are used: the bits do not depend on threads.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/state.h"

namespace ssd::cpu {

// The touched neurons of a range, ascending, by a bitmap; then the samples of each, ascending.
void SdmlpTrainer::Impl::group(int which, int batch) {
  UpdateChunk& chunk = chunks[which];
  int pairs = 0;
  for (int b = 0; b < batch; ++b) {
    const Row& row = rows[b];
    for (int i = row.chunk_begin[which]; i < row.chunk_begin[which + 1]; ++i) {
      const int64_t local = row.index[i] - chunk.begin;
      uint64_t& word = chunk.bitmap[local >> 6];
      const uint64_t bit = uint64_t{1} << (local & 63);
      if (!(word & bit)) {
        word |= bit;
        chunk.slot_of[local] = 0;
      }
      ++chunk.slot_of[local];
      ++pairs;
    }
  }
  chunk.neuron.clear();
  chunk.first.assign(1, 0);
  for (size_t w = 0; w < chunk.bitmap.size(); ++w) {
    for (uint64_t word = chunk.bitmap[w]; word; word &= word - 1) {
      const int64_t local = static_cast<int64_t>(w) * 64 + __builtin_ctzll(word);
      const int size = chunk.slot_of[local];
      chunk.slot_of[local] = static_cast<int32_t>(chunk.neuron.size());
      chunk.neuron.push_back(static_cast<int32_t>(chunk.begin + local));
      chunk.first.push_back(chunk.first.back() + size);
    }
    chunk.bitmap[w] = 0;
  }
  const int slots = static_cast<int>(chunk.neuron.size());
  if (static_cast<int>(chunk.row.size()) < pairs) {
    chunk.row.resize(pairs);
    chunk.h.resize(pairs);
    chunk.dh.resize(pairs);
  }
  for (int b = 0; b < batch; ++b) {
    const Row& row = rows[b];
    for (int i = row.chunk_begin[which]; i < row.chunk_begin[which + 1]; ++i) {
      const int slot = chunk.slot_of[row.index[i] - chunk.begin];
      const int at = chunk.first[slot]++;
      chunk.row[at] = b;
      chunk.h[at] = row.h[i];
      chunk.dh[at] = row.dh[i];
    }
  }
  for (int s = slots; s > 0; --s) chunk.first[s] = chunk.first[s - 1];
  chunk.first[0] = 0;
}

// Adds a touched neuron's penalty gradient to its gradient, and the squared norms of it and of the untouched rows
// before it (from `next` on) to the range's.
void SdmlpTrainer::Impl::add_norm(UpdateChunk& chunk, int slot, double norm2, int64_t* next,
                                  const SdmlpPenalty* penalty) {
  const int64_t j = chunk.neuron[slot];
  if (penalty) {
    for (; *next < j; ++*next) chunk.norm2 += pull_norm2[*next];
    *next = j + 1;
    if (pulled[j]) {
      float* dw = &chunk.gradient[slot * D];
      float* dv = &chunk.output_gradient[static_cast<size_t>(slot) * Cp];
      const float twice = 2 * penalty->coef;
      kernel.add_penalty(dw, weight + j * D, penalty->weight_importance + j * D, penalty->weight_anchor + j * D, twice,
                         D);
      kernel.add_penalty(dv, &output[j * Cp], &output_importance[j * Cp], &output_anchor[j * Cp], twice, Cp);
      norm2 = kernel.square_norm(dw, D) + kernel.square_norm(dv, Cp);
    }
  }
  chunk.norm2 += norm2;
}

void SdmlpTrainer::Impl::backward(int which, int batch, const SdmlpPenalty* penalty) {
  group(which, batch);
  UpdateChunk& chunk = chunks[which];
  const int slots = static_cast<int>(chunk.neuron.size());
  // dW_j = sum_b dh x_b and dV_j = sum_b h dy_b.
  if (static_cast<int64_t>(chunk.gradient.size()) < slots * D) chunk.gradient.resize(slots * D * 5 / 4);
  if (static_cast<int64_t>(chunk.output_gradient.size()) < static_cast<int64_t>(slots) * Cp)
    chunk.output_gradient.resize(static_cast<size_t>(slots) * Cp * 5 / 4);
  if (static_cast<int>(chunk.x.size()) < batch) chunk.x.resize(batch);
  chunk.norm2 = 0;
  int64_t next = chunk.begin;
  for (int s = 0; s < slots; ++s) {
    const int begin = chunk.first[s], size = chunk.first[s + 1] - begin;
    for (int i = 0; i < size; ++i) chunk.x[i] = rows[chunk.row[begin + i]].x;
    double norm2 = kernel.accumulate_rows(chunk.x.data(), &chunk.dh[begin], size, D, &chunk.gradient[s * D]);
    for (int i = 0; i < size; ++i) chunk.x[i] = &dy[static_cast<size_t>(chunk.row[begin + i]) * Cp];
    norm2 += kernel.accumulate_rows(chunk.x.data(), &chunk.h[begin], size, Cp,
                                    &chunk.output_gradient[static_cast<size_t>(s) * Cp]);
    add_norm(chunk, s, norm2, &next, penalty);
  }
  for (; penalty && next < chunk.end; ++next) chunk.norm2 += pull_norm2[next];
}

// One row's step: momentum where there is any, SGD, clamp, unit norm; counters, and the path of the certificates.
void SdmlpTrainer::Impl::move(UpdateChunk& chunk, int64_t j, const float* gradient, const float* output_gradient,
                              float scale, int64_t active) {
  float step = cfg.lr * scale;
  if (!weight_velocity.empty()) {
    const bool moves = kernel.accelerate(&weight_velocity[j * D], gradient, cfg.momentum, scale, D);
    const bool output_moves = kernel.accelerate(&output_velocity[j * Cp], output_gradient, cfg.momentum, scale, Cp);
    in_motion[j] = moves || output_moves;  // as a state that is loaded will say: resumed runs are bitwise the same
    gradient = &weight_velocity[j * D];
    output_gradient = &output_velocity[j * Cp];
    step = cfg.lr;
  }
  const double distance = step_row(chunk, j, gradient, step);
  kernel.update_output(&output[j * Cp], output_gradient, step, Cp);
  if (active > 0) {
    counts[j] += active;
    gaba[j] = gaba_of(counts[j]);
  }
  stale_output[j >> 6] |= uint64_t{1} << (j & 63);
  certificates.moved(j, distance, threshold_only ? 1.f : gaba[j], &chunk.delta);
}

// Updates a row of W; returns a bound of its distance from where it was at the era's start.
double SdmlpTrainer::Impl::step_row(UpdateChunk& chunk, int64_t j, const float* gradient, float step) {
  float* row = weight + j * D;
  chunk.old_row.resize(D);
  // Where many rows move, most of them move on, and keeping their old places costs more than it proves.
  const bool many = kManyMoved * static_cast<int64_t>(chunk.neuron.size()) > chunk.end - chunk.begin;
  return chunk.era.step(kernel, j - chunk.begin, row, gradient, step, D, certificates.distance(j),
                        kEraReadFrom * certificates.gap(), certificates.active() && !many,
                        kEraBytes / (D * 4 * kUpdateChunks), chunk.old_row.data());
}

// Asks for what a neuron's move reads besides its row: a line each in many tables.
void SdmlpTrainer::Impl::prefetch_move(const UpdateChunk& chunk, int64_t j) const {
  for (int c = 0; c < Cp; c += 16) __builtin_prefetch(&output[j * Cp + c], 1);
  __builtin_prefetch(&counts[j], 1);
  __builtin_prefetch(&gaba[j], 1);
  __builtin_prefetch(&chunk.era.place[j - chunk.begin], 1);
  certificates.prefetch_moved(j);
}

void SdmlpTrainer::Impl::begin_era() {
  for (UpdateChunk& chunk : chunks) chunk.era.begin(chunk.end - chunk.begin);
}

void SdmlpTrainer::Impl::update(int which, float scale, const SdmlpPenalty* penalty) {
  UpdateChunk& chunk = chunks[which];
  certificates.begin_moves(&chunk.delta);
  if (penalty || !weight_velocity.empty()) {
    update_all(which, scale, penalty);
    return;
  }
  const int slots = static_cast<int>(chunk.neuron.size());
  for (int s = 0; s < slots; ++s) {
    if (s + kRowsAhead < slots) {
      const char* ahead = reinterpret_cast<const char*>(weight + chunk.neuron[s + kRowsAhead] * D);
      for (int64_t at = 0; at < std::min<int64_t>(4 * D, 1024); at += 64) __builtin_prefetch(ahead + at, 1);
    }
    if (s + kPlacesAhead < slots) prefetch_move(chunk, chunk.neuron[s + kPlacesAhead]);
    move(chunk, chunk.neuron[s], &chunk.gradient[s * D], &chunk.output_gradient[static_cast<size_t>(s) * Cp], scale,
         chunk.first[s + 1] - chunk.first[s]);
  }
}

// With momentum or a penalty, rows move that no sample touched.
void SdmlpTrainer::Impl::update_all(int which, float scale, const SdmlpPenalty* penalty) {
  UpdateChunk& chunk = chunks[which];
  chunk.pull.resize(D + Cp);
  float *dw = chunk.pull.data(), *dv = dw + D;
  const int slots = static_cast<int>(chunk.neuron.size());
  int s = 0;
  for (int64_t j = chunk.begin; j < chunk.end; ++j) {
    if (s < slots && chunk.neuron[s] == j) {
      move(chunk, j, &chunk.gradient[s * D], &chunk.output_gradient[static_cast<size_t>(s) * Cp], scale,
           chunk.first[s + 1] - chunk.first[s]);
      ++s;
    } else if (penalty && pulled[j]) {
      std::fill(chunk.pull.begin(), chunk.pull.end(), 0.f);
      const float twice = 2 * penalty->coef;
      kernel.add_penalty(dw, weight + j * D, penalty->weight_importance + j * D, penalty->weight_anchor + j * D, twice,
                         D);
      kernel.add_penalty(dv, &output[j * Cp], &output_importance[j * Cp], &output_anchor[j * Cp], twice, Cp);
      move(chunk, j, dw, dv, scale, 0);
    } else if (!in_motion.empty() && in_motion[j]) {
      move(chunk, j, nullptr, nullptr, scale, 0);
    } else {
      continue;
    }
    if (penalty && pulled[j]) pull_norm2[j] = pull_norm(j, *penalty, chunk.pull);
  }
}

double SdmlpTrainer::Impl::pull_norm(int64_t j, const SdmlpPenalty& penalty, std::vector<float>& pull) const {
  pull.assign(D + Cp, 0.f);
  const float twice = 2 * penalty.coef;
  kernel.add_penalty(pull.data(), weight + j * D, penalty.weight_importance + j * D, penalty.weight_anchor + j * D,
                     twice, D);
  kernel.add_penalty(pull.data() + D, &output[j * Cp], &output_importance[j * Cp], &output_anchor[j * Cp], twice, Cp);
  return kernel.square_norm(pull.data(), D + Cp);
}

void SdmlpTrainer::Impl::prepare_penalty(const SdmlpPenalty& penalty) {
  output_importance.assign(R * Cp, 0.f);
  output_anchor.assign(R * Cp, 0.f);
  for (int64_t c = 0; c < C; ++c) {
    for (int64_t j = 0; j < R; ++j) {
      output_importance[j * Cp + c] = penalty.output_importance[c * R + j];
      output_anchor[j * Cp + c] = penalty.output_anchor[c * R + j];
    }
  }
  pulled.assign(R, 0);
  pull_norm2.assign(R, 0.0);
  std::vector<float> pull;
  for (int64_t j = 0; j < R; ++j) {
    const float* row = penalty.weight_importance + j * D;
    bool any = false;
    for (int64_t d = 0; d < D && !any; ++d) any = row[d] != 0;
    for (int64_t c = 0; c < C && !any; ++c) any = output_importance[j * Cp + c] != 0;
    pulled[j] = any && penalty.coef != 0;
    if (pulled[j]) pull_norm2[j] = pull_norm(j, penalty, pull);
  }
}

}  // namespace ssd::cpu

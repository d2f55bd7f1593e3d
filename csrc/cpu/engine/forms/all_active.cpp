// The phase in which every neuron of every row is active (all g < 0): h = s - g I without a mask, so both layers are
// products of small matrices and no (B, R) matrix is needed.
//   y  = x (V W)^T - I (V g)^T            dW = V^T M,            M = G^T X   (C, D)
//   dV = M W^T - q g^T,  q = G^T I        ||dW||^2 = tr((V V^T)(M M^T))
// Two passes over W per step: dV and its norm; then the update, which also adds up V W, V g and V V^T for the next
// step. Ranges of neurons are fixed and added up in order, so the bits do not depend on threads.
#include <algorithm>
#include <cmath>

#include "engine/state.h"

namespace ssd::cpu {

namespace {
constexpr int kRows = 4;
}

void SdmlpTrainer::Impl::dense_prepare(int which) {
  Products& part = range_products[which];
  part.vw.assign(C * D, 0.f);
  part.vg.assign(C, 0.0);
  part.vv.assign(C * Cp, 0.f);
  const UpdateChunk& chunk = chunks[which];
  for (int64_t j = chunk.begin; j < chunk.end; j += kRows) {
    const int n = static_cast<int>(std::min<int64_t>(kRows, chunk.end - j));
    add_products(part, j, n);
  }
}

void SdmlpTrainer::Impl::add_products(Products& part, int64_t j, int n) {
  kernel.accumulate_product(&output[j * Cp], weight + j * D, n, static_cast<int>(C), Cp, D, part.vw.data());
  kernel.accumulate_product(&output[j * Cp], &output[j * Cp], n, static_cast<int>(C), Cp, Cp, part.vv.data());
  for (int r = 0; r < n; ++r) {
    const float* v = &output[(j + r) * Cp];
    const double g = gaba[j + r];
    for (int64_t c = 0; c < C; ++c) part.vg[c] += v[c] * g;
  }
}

void SdmlpTrainer::Impl::dense_collect() {
  if (by_neurons()) gather_products();
  products.vw.assign(C * D, 0.f);
  products.vg.assign(C, 0.0);
  products.vv.assign(C * Cp, 0.f);
  for (const Products& part : range_products) {
    for (size_t i = 0; i < part.vw.size(); ++i) products.vw[i] += part.vw[i];
    for (size_t i = 0; i < part.vg.size(); ++i) products.vg[i] += part.vg[i];
    for (size_t i = 0; i < part.vv.size(); ++i) products.vv[i] += part.vv[i];
  }
  products_valid = true;
}

void SdmlpTrainer::Impl::dense_forward(const SdmlpEpoch& epoch, int which, int batch) {
  Row& row = rows[which];
  float* logits = &y[static_cast<size_t>(which) * Cp];
  const float* x[1] = {row.x};
  kernel.score_block(x, 1, products.vw.data(), static_cast<int>(C), D, logits, Cp);
  for (int64_t c = 0; c < C; ++c)
    logits[c] = static_cast<float>(logits[c] - static_cast<double>(row.threshold) * products.vg[c]);
  row.count = static_cast<int>(all_neurons());
  logit_losses(epoch, which, batch);
}

void SdmlpTrainer::Impl::dense_gradient(int c, int batch) {
  std::vector<const float*> x(batch);
  std::vector<float> g(batch);
  double q = 0;
  for (int b = 0; b < batch; ++b) {
    x[b] = rows[b].x;
    g[b] = dy[static_cast<size_t>(b) * Cp + c];
    q += static_cast<double>(g[b]) * rows[b].threshold;
  }
  kernel.accumulate_rows(x.data(), g.data(), batch, D, &dense_m[c * D]);
  dense_q[c] = q;
}

double SdmlpTrainer::Impl::dense_weight_norm2() const {
  double total = 0;
  for (int64_t a = 0; a < C; ++a) {
    for (int64_t b = 0; b <= a; ++b) {
      double mm = 0;
      for (int64_t d = 0; d < D; ++d) mm += static_cast<double>(dense_m[a * D + d]) * dense_m[b * D + d];
      total += (a == b ? 1 : 2) * mm * products.vv[a * Cp + b];
    }
  }
  return total;
}

void SdmlpTrainer::Impl::dense_output_gradient(int which) {
  UpdateChunk& chunk = chunks[which];
  const int64_t size = chunk.end - chunk.begin;
  if (static_cast<int64_t>(chunk.output_gradient.size()) < size * Cp) chunk.output_gradient.resize(size * Cp);
  std::vector<float> q(dense_q.begin(), dense_q.end());
  q.resize(Cp, 0.f);
  const float* w[kScanBlock];
  const int classes = static_cast<int>((C + 3) / 4 * 4);  // whole tiles: the rows of M past C are 0
  double norm2 = 0;
  for (int64_t j = 0; j < size; j += kScanBlock) {
    const int n = static_cast<int>(std::min<int64_t>(kScanBlock, size - j));
    for (int i = 0; i < n; ++i) w[i] = weight + (chunk.begin + j + i) * D;
    float* dv = &chunk.output_gradient[j * Cp];
    kernel.score_block(w, n, dense_m.data(), classes, D, dv, Cp);
    for (int i = 0; i < n; ++i) {
      const float g = gaba[chunk.begin + j + i];
      float* row = dv + static_cast<int64_t>(i) * Cp;
      for (int c = 0; c < classes; ++c) row[c] -= g * q[c];
      for (int c = classes; c < Cp; ++c) row[c] = 0.f;
    }
    norm2 += kernel.square_norm(dv, static_cast<int64_t>(n) * Cp);
  }
  chunk.norm2 = norm2;
}

void SdmlpTrainer::Impl::dense_update(int which, float scale, int64_t batch) {
  UpdateChunk& chunk = chunks[which];
  certificates.begin_moves(&chunk.delta);
  Products& part = range_products[which];
  std::fill(part.vw.begin(), part.vw.end(), 0.f);
  std::fill(part.vg.begin(), part.vg.end(), 0.0);
  std::fill(part.vv.begin(), part.vv.end(), 0.f);
  chunk.pull.resize(std::max<size_t>(chunk.pull.size(), kRows * D));
  float* fresh = chunk.pull.data();
  const float step = cfg.lr * scale;
  for (int64_t j = chunk.begin; j < chunk.end; j += kRows) {
    const int n = static_cast<int>(std::min<int64_t>(kRows, chunk.end - j));
    double movement[kRows];
    kernel.dense_update_rows(&output[j * Cp], dense_m.data(), weight + j * D, n, step, static_cast<int>(C), Cp, D,
                             fresh, movement);
    for (int r = 0; r < n; ++r) {
      kernel.update_output(&output[(j + r) * Cp], &chunk.output_gradient[(j + r - chunk.begin) * Cp], step, Cp);
      counts[j + r] += batch;
      gaba[j + r] = gaba_of(counts[j + r]);
      certificates.moved(j + r, certificates.distance(j + r) + movement[r] * kMovementGrowth, 1.f, &chunk.delta);
    }
    add_products(part, j, n);
  }
  for (int64_t w = chunk.begin / 64; w * 64 < chunk.end; ++w) {
    const int64_t rest = chunk.end - w * 64;  // the last word may be cut off
    stale_output[w] = rest >= 64 ? ~uint64_t{0} : (uint64_t{1} << rest) - 1;
  }
}

}  // namespace ssd::cpu

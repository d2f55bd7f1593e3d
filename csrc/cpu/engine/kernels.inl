// The SDMLP trainer's inner loops for one instruction set. Every score is the canonical dot product (simd/simd.h),
// every sum over samples runs in ascending order, so no result depends on tiling, threads or the path that asked for
// it.
#include "engine/forms/all_active_kernels.h"
#include "engine/forms/tile_kernels.h"
#include "engine/kernels.h"
#include "engine/scan_kernels.h"
#include "engine/vector.h"
#include "rows/row_update.h"

namespace ssd::cpu::SSD_LEVEL {
namespace {

// ---- Scores ---------------------------------------------------------------------------------------------------
constexpr int kTileX = 4, kTileW = 4;  // 16 sums that are reduced together (simd/simd.h)

template <int NX, int NW>
SSD_INLINE void score_tile(const float* const* x, const float* w, int64_t D, float* scores, int64_t ld) {
  const float* xs[NX];
  const float* ws[NW];
  for (int i = 0; i < NX; ++i) xs[i] = x[i];
  for (int j = 0; j < NW; ++j) ws[j] = w + j * D;
  float out[NX * NW];
  dot_tile<NX, NW>(xs, ws, D, out);
  for (int i = 0; i < NX; ++i)
    for (int j = 0; j < NW; ++j) scores[i * ld + j] = out[i * NW + j];
}

void score_block(const float* const* x, int nx, const float* w, int nw, int64_t D, float* scores, int64_t ld) {
  const int64_t panel = 4 * D * kTileW;  // bytes of the rows of w that one sweep over x uses
  int j = 0;
  for (; j + kTileW <= nw; j += kTileW) {
    // The next rows of w are asked for while these are used, a part at every tile.
    const char* ahead = reinterpret_cast<const char*>(w + (j + kTileW) * D);
    const int64_t share = (panel * kTileX / (nx > 0 ? nx : 1) + 63) / 64 * 64;
    int64_t asked = 0;
    int i = 0;
    for (; i + kTileX <= nx; i += kTileX) {
      for (const int64_t end = asked + share < panel ? asked + share : panel; asked < end; asked += 64)
        __builtin_prefetch(ahead + asked, 0, 2);
      score_tile<kTileX, kTileW>(x + i, w + j * D, D, scores + i * ld + j, ld);
    }
    for (; i < nx; ++i) score_tile<1, kTileW>(x + i, w + j * D, D, scores + i * ld + j, ld);
  }
  for (; j < nw; ++j) {
    int i = 0;
    for (; i + kTileX <= nx; i += kTileX) score_tile<kTileX, 1>(x + i, w + j * D, D, scores + i * ld + j, ld);
    for (; i < nx; ++i) score_tile<1, 1>(x + i, w + j * D, D, scores + i * ld + j, ld);
  }
}

void score_rows(const float* x, const float* w, const int32_t* index, int n, int64_t D, float* scores) {
  constexpr int kAhead = 8;  // a row is a kilobyte: ask for the next rows while these are summed
  const float* const xs[1] = {x};
  int i = 0;
  for (; i + 4 <= n; i += 4) {
    const float* ws[4];
    for (int j = 0; j < 4; ++j) ws[j] = w + index[i + j] * D;
    for (int j = i + 4; j < i + 4 + kAhead / 2 && j < n; ++j) {
      const char* row = reinterpret_cast<const char*>(w + index[j] * D);
      const int64_t bytes = D * 4 < 2048 ? D * 4 : 2048;
      for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at);
    }
    dot_tile<1, 4>(xs, ws, D, scores + i);
  }
  for (; i < n; ++i) scores[i] = dot(x, w + index[i] * D, D);
}

// ---- Output layer ---------------------------------------------------------------------------------------------
void output_row(const int32_t* index, const float* h, int n, const float* output, int Cp, float* y) {
  for (int c = 0; c < Cp; c += kW) {
    V sum = V::zero();
    for (int i = 0; i < n; ++i)
      sum = fma(V::set1(h[i]), V::load(output + static_cast<int64_t>(index[i]) * Cp + c), sum);
    sum.store(y + c);
  }
}

void backward_row(const int32_t* index, int n, const float* output, int C, int Cp, const float* dy, float* dh) {
  int i = 0;
  for (; i + 4 <= n; i += 4) {
    const float* rows[4];
    float sum[4] = {0.f, 0.f, 0.f, 0.f};
    for (int j = 0; j < 4; ++j) rows[j] = output + static_cast<int64_t>(index[i + j]) * Cp;
    for (int c = 0; c < C; ++c)
      for (int j = 0; j < 4; ++j) sum[j] = fma_scalar(dy[c], rows[j][c], sum[j]);
    for (int j = 0; j < 4; ++j) dh[i + j] = sum[j];
  }
  for (; i < n; ++i) {
    const float* row = output + static_cast<int64_t>(index[i]) * Cp;
    float sum = 0.f;
    for (int c = 0; c < C; ++c) sum = fma_scalar(dy[c], row[c], sum);
    dh[i] = sum;
  }
}

// ---- Weight gradient and update -------------------------------------------------------------------------------
// A row's squares are added in fp32 lanes; rows are added in fp64 by the caller.
SSD_INLINE double sum_of_squares(const float* values, int64_t n) {
  V sum[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  int64_t d = 0;
  for (; d + 4 * kW <= n; d += 4 * kW) {
    for (int i = 0; i < 4; ++i) {
      const V v = V::load(values + d + i * kW);
      sum[i] = fma(v, v, sum[i]);
    }
  }
  for (; d + kW <= n; d += kW) {
    const V v = V::load(values + d);
    sum[0] = fma(v, v, sum[0]);
  }
  double total = reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (; d < n; ++d) total += static_cast<double>(values[d]) * values[d];
  if (total < 1e30) return total;
  // Squares may have left fp32: only a number that is not finite itself gives such a sum.
  return sum_of_squares_fp64(n, [&](int64_t at) { return static_cast<double>(values[at]); });
}

template <int NV>
SSD_INLINE void accumulate_columns(const float* const* x, const float* coef, int n, int64_t d, float* sum) {
  V acc[NV];
  for (int v = 0; v < NV; ++v) acc[v] = V::zero();
  for (int i = 0; i < n; ++i) {
    const V c = V::set1(coef[i]);
    for (int v = 0; v < NV; ++v) acc[v] = fma(c, V::load(x[i] + d + v * kW), acc[v]);
  }
  for (int v = 0; v < NV; ++v) acc[v].store(sum + d + v * kW);
}

double accumulate_rows(const float* const* x, const float* coef, int n, int64_t D, float* sum) {
  int64_t d = 0;
  for (; d + 8 * kW <= D; d += 8 * kW) accumulate_columns<8>(x, coef, n, d, sum);
  for (; d + kW <= D; d += kW) accumulate_columns<1>(x, coef, n, d, sum);
  for (; d < D; ++d) {
    float total = 0.f;
    for (int i = 0; i < n; ++i) total = fma_scalar(coef[i], x[i][d], total);
    sum[d] = total;
  }
  return sum_of_squares(sum, D);
}

double update_row(float* w, const float* gradient, float step, int64_t D, const float* from, float* old) {
  return update_weight_row<true, kRowSums, false>(w, gradient, step, true, kSmallestNorm, from, old, D);
}

void add_penalty(float* gradient, const float* value, const float* importance, const float* anchor, float twice_coef,
                 int64_t n) {
  const V factor = V::set1(twice_coef);
  int64_t d = 0;
  for (; d + kW <= n; d += kW) {
    const V pull = factor * V::load(importance + d) * (V::load(value + d) - V::load(anchor + d));
    (V::load(gradient + d) + pull).store(gradient + d);
  }
  for (; d < n; ++d) gradient[d] = gradient[d] + twice_coef * importance[d] * (value[d] - anchor[d]);
}

double square_norm(const float* gradient, int64_t n) { return sum_of_squares(gradient, n); }

bool accelerate(float* velocity, const float* gradient, float momentum, float scale, int64_t n) {
  const V keep = V::set1(momentum), factor = V::set1(scale), zero = V::zero();
  V most = zero;
  bool moving = false;
  int64_t d = 0;
  for (; d + kW <= n; d += kW) {
    V fresh = keep * V::load(velocity + d);
    if (gradient) fresh = fresh + factor * V::load(gradient + d);
    fresh.store(velocity + d);
    most = vmax(vmax(fresh, zero - fresh), most);
  }
  for (; d < n; ++d) {
    const float kept = momentum * velocity[d];
    velocity[d] = gradient ? kept + scale * gradient[d] : kept;
    moving = moving || velocity[d] != 0;
  }
  return moving || gt_mask(most, zero) != 0;
}

void update_output(float* v, const float* gradient, float step, int Cp) {
  const V minus = V::set1(-step), zero = V::zero();
  for (int c = 0; c < Cp; c += kW) vmax(fma(minus, V::load(gradient + c), V::load(v + c)), zero).store(v + c);
}

// exp(x) = 2^k exp(r), |r| <= ln 2 / 2, by a polynomial: plain arithmetic, so the loop runs in vector lanes.
void exp_rows(double* x, int64_t n) {
  constexpr double kLog2E = 1.4426950408889634, kLn2Hi = 0.693147180369123816490, kLn2Lo = 1.90821492927058770002e-10;
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
  for (int64_t i = 0; i < n; ++i) {
    double v = x[i];
    v = v < -708.0 ? -708.0 : v;
    v = v > 709.0 ? 709.0 : v;
    const double shifted = v * kLog2E + kRound;
    const double k = shifted - kRound;
    const double r = (v - k * kLn2Hi) - k * kLn2Lo;
    double p = 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    uint64_t bits;
    std::memcpy(&bits, &shifted, 8);
    bits = (bits + 1023) << 52;  // the low bits of `shifted` hold k
    double power;
    std::memcpy(&power, &bits, 8);
    x[i] = x[i] != x[i] ? x[i] : p * power;
  }
}

}  // namespace

const SdmlpKernels& sdmlp_table() {
  static const SdmlpKernels kernels = [] {
    SdmlpKernels k;
    k.width = kW;
    k.score_block = score_block;
    k.score_rows = score_rows;
    k.filter = filter;
#ifdef __AVX512BF16__
    k.preselect_bytes = preselect_bytes;
    k.preselect_load = preselect_load;
    k.preselect = preselect;
#endif
    k.prune_movers = prune_movers;
    k.prune = prune;
    k.output_row = output_row;
    k.backward_row = backward_row;
    k.accumulate_rows = accumulate_rows;
    k.update_row = update_row;
    k.dense_update_rows = dense_update_rows;
    k.accumulate_product = accumulate_product;
    k.slice_width = kTileSlice * kW;
    k.tile_exceed = tile_exceed;
    k.tile_outputs = tile_outputs;
    k.tile_gradients = tile_gradients;
    k.tile_slice = tile_slice;
    k.tile_weight_gradient = tile_weight_gradient;
    k.tile_output_gradient = tile_output_gradient;
    k.add_penalty = add_penalty;
    k.square_norm = square_norm;
    k.accelerate = accelerate;
    k.update_output = update_output;
    k.exp_rows = exp_rows;
    return k;
  }();
  return kernels;
}

}  // namespace ssd::cpu::SSD_LEVEL

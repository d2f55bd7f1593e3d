// The SDMLP trainer's inner loops for one instruction set. Every score is the canonical dot product (simd.h), every
// sum over samples runs in ascending order, so no result depends on tiling, threads or the path that asked for it.
#include "scan_bf16.h"
#include "sdmlp_kernels.h"
#include "simd.h"

namespace ssd::cpu::SSD_LEVEL {
namespace {

using V = Vec<float>;
using VD = Vec<double>;
constexpr int kW = V::kWidth;

SSD_INLINE float fma_scalar(float a, float b, float c) {
#if defined(__FMA__) || defined(__FP_FAST_FMAF)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// ---- Scores ---------------------------------------------------------------------------------------------------
constexpr int kTileX = 4, kTileW = 4;  // 16 sums that are reduced together (simd.h)

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

// ---- Selection ------------------------------------------------------------------------------------------------
int filter(const float* scores, const float* gaba, int n, float floor, float gap, int32_t base, int32_t* index,
           float* score) {
  const V low = V::set1(floor), below = V::set1(gap), zero = V::zero();
  int count = 0;
  for (int j = 0; j < n; j += kW) {
    const int rest = n - j;
    uint32_t mask;
    if (rest >= kW) {
      const V g = V::load(gaba + j);
      mask = not_le_mask(V::load(scores + j), g * low - below) | gt_mask(zero, g);
    } else {
      const V g = V::load_partial(gaba + j, rest);
      mask = not_le_mask(V::load_partial(scores + j, rest), g * low - below) | gt_mask(zero, g);
      mask &= (1u << rest) - 1u;
    }
    for (; mask; mask &= mask - 1) {
      const int lane = j + __builtin_ctz(mask);
      index[count] = base + lane;
      score[count++] = scores[lane];
    }
  }
  return count;
}

int prune(const int32_t* index, const float* bound, int n, const float* path_gaba, float floor, float slack,
          int32_t* kept) {
  int count = 0;
#if defined(__AVX512F__)
  const __m512 low = _mm512_set1_ps(floor), extra = _mm512_set1_ps(slack);
  for (int i = 0; i < n; i += 16) {
    const __mmask16 lanes = n - i >= 16 ? 0xffffu : static_cast<__mmask16>((1u << (n - i)) - 1u);
    const __m512i at = _mm512_slli_epi32(_mm512_maskz_loadu_epi32(lanes, index + i), 1);
    const __m512 zero = _mm512_setzero_ps();
    const __m512 path = _mm512_mask_i32gather_ps(zero, lanes, at, path_gaba, 4);
    const __m512 gaba = _mm512_mask_i32gather_ps(zero, lanes, at, path_gaba + 1, 4);
    const __m512 upper = _mm512_add_ps(_mm512_add_ps(_mm512_maskz_loadu_ps(lanes, bound + i), path), extra);
    __mmask16 keep = _mm512_cmp_ps_mask(upper, _mm512_mul_ps(gaba, low), _CMP_NLE_UQ);
    keep = (keep | _mm512_cmp_ps_mask(zero, gaba, _CMP_GT_OQ)) & lanes;
    _mm512_storeu_si512(kept + count,
                        _mm512_maskz_compress_epi32(
                            keep, _mm512_add_epi32(_mm512_set1_epi32(i), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9,
                                                                                           10, 11, 12, 13, 14, 15))));
    count += __builtin_popcount(keep);
  }
#else
  for (int i = 0; i < n; ++i) {
    const float* at = path_gaba + 2 * static_cast<ptrdiff_t>(index[i]);
    kept[count] = i;
    count += !(bound[i] + at[0] + slack <= at[1] * floor) || at[1] < 0;
  }
#endif
  return count;
}

#ifdef __AVX512BF16__
constexpr int kPairs = 8;  // candidates that are scored together

struct Preselection {
  RoundedRows rows;
  const float* x;
  uint32_t *block_pairs, *rounded;
  float *limits, *gaba;
};

template <class T>
SSD_INLINE T* take(char*& at, int64_t count) {
  T* taken = reinterpret_cast<T*>(at);
  at += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  return taken;
}

SSD_INLINE char* lay_out(Preselection* p, char* at, int rows, int64_t D) {
  const int64_t pairs = stored_pairs(D);
  p->rows.pairs = take<uint32_t>(at, rows * pairs);
  p->rows.errors = take<float>(at, rows);
  p->rows.roundeds = take<float>(at, rows);
  p->rows.certain = take<float>(at, rows);
  p->limits = take<float>(at, rows);
  p->gaba = take<float>(at, kBlockNeurons);
  p->block_pairs = take<uint32_t>(at, kBlockNeurons * pairs);
  p->rounded = take<uint32_t>(at, 16 * pairs);
  return at;
}

int64_t preselect_bytes(int rows, int64_t D) {
  Preselection p;
  char* const begin = reinterpret_cast<char*>(uintptr_t{64});  // any address: only the distance counts
  return (sizeof(Preselection) + 63) / 64 * 64 + (lay_out(&p, begin, rows, D) - begin);
}

void preselect_load(void* state, const float* x, int rows, int64_t D) {
  auto* p = static_cast<Preselection*>(state);
  *p = Preselection();
  lay_out(p, static_cast<char*>(state) + (sizeof(Preselection) + 63) / 64 * 64, rows, D);
  p->x = x;
  p->rows.rows = rows;
  p->rows.size = D;
  for (int r = 0; r < rows; ++r)
    round_row(x + r * D, D, const_cast<uint32_t*>(p->rows.pairs) + r * stored_pairs(D), p->rows.errors + r,
              p->rows.roundeds + r);
}

int preselect(void* state, const float* w, int neurons, int64_t next_bytes, const float* gaba, const float* floors,
              float gap, int32_t base, int32_t* row, int32_t* index, float* score, int64_t* candidates) {
  auto* p = static_cast<Preselection*>(state);
  const int64_t D = p->rows.size;
  RoundedBlock block;
  block.pairs = p->block_pairs;
  block.neurons = neurons;
  block.scale = block.shift = nullptr;
  block.inhibition = p->gaba;
  for (int j = 0; j < kBlockNeurons; ++j) p->gaba[j] = gaba[j < neurons ? j : neurons - 1];
  for (int r = 0; r < p->rows.rows; ++r) p->limits[r] = -gap;
  p->rows.thresholds = floors;
  round_block(w, D, D, p->rounded, &block);

  int count = 0, queued = 0, row_of[kPairs], neuron_of[kPairs];
  const auto flush = [&] {
    const float* x[kPairs];
    const float* from[kPairs];
    for (int i = 0; i < kPairs; ++i) {
      const int at = i < queued ? i : 0;
      x[i] = p->x + row_of[at] * D;
      from[i] = w + neuron_of[at] * D;
    }
    float exact[kPairs];
    dot_pairs<kPairs>(x, from, D, exact);
    for (int i = 0; i < queued; ++i) {
      const float inhibition = gaba[neuron_of[i]] * floors[row_of[i]];
      const float limit = inhibition - gap;
      if (exact[i] <= limit) continue;
      row[count] = row_of[i];
      index[count] = base + neuron_of[i];
      score[count++] = exact[i];
    }
    queued = 0;
  };
  auto candidate = [&](int r, int neuron) {
    row_of[queued] = r;
    neuron_of[queued++] = neuron;
    ++*candidates;
    if (queued == kPairs) flush();
  };
  scan_rounded(p->rows, block, p->limits, 1, reinterpret_cast<const char*>(w + neurons * D), next_bytes, candidate);
  if (queued) flush();
  return count;
}
#endif

int prune_movers(const float* bound, const float* path, const float* gaba, int n, float floor, float slack,
                 int32_t* kept) {
  const V low = V::set1(floor), extra = V::set1(slack), zero = V::zero();
  int count = 0;
  for (int i = 0; i < n; i += kW) {
    const int rest = n - i;
    uint32_t mask;
    if (rest >= kW) {
      const V g = V::load(gaba + i);
      mask = not_le_mask(V::load(bound + i) + V::load(path + i) + extra, g * low) | gt_mask(zero, g);
    } else {
      const V g = V::load_partial(gaba + i, rest);
      const V upper = V::load_partial(bound + i, rest) + V::load_partial(path + i, rest) + extra;
      mask = (not_le_mask(upper, g * low) | gt_mask(zero, g)) & ((1u << rest) - 1u);
    }
    for (; mask; mask &= mask - 1) kept[count++] = i + __builtin_ctz(mask);
  }
  return count;
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
  return total;
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

double update_row(float* w, const float* gradient, float step, int64_t D, const float* from) {
  const V minus = V::set1(-step), zero = V::zero();
  const int64_t whole = D / kW * kW;
  // ||clamp(w - step g)||^2; the values are made again below, since a row may be longer than the registers.
  V sum[2] = {V::zero(), V::zero()};
  for (int64_t d = 0; d < whole; d += kW) {
    const V fresh = vmax(fma(minus, V::load(gradient + d), V::load(w + d)), zero);
    sum[d / kW % 2] = fma(fresh, fresh, sum[d / kW % 2]);
  }
  double norm2 = reduce_add(sum[0] + sum[1]);
  for (int64_t d = whole; d < D; ++d) {
    const float value = fma_scalar(-step, gradient[d], w[d]);
    norm2 += value > 0.f ? static_cast<double>(value) * value : 0.0;
  }
  const float inverse = norm2 > 0 ? static_cast<float>(1.0 / __builtin_sqrt(norm2)) : 1.f;
  const V scale = V::set1(inverse);
  V moved[2] = {V::zero(), V::zero()};
  for (int64_t d = 0; d < whole; d += kW) {
    const V old = V::load(w + d);
    const V fresh = vmax(fma(minus, V::load(gradient + d), old), zero) * scale;
    const V change = fresh - V::load(from + d);
    fresh.store(w + d);
    moved[d / kW % 2] = fma(change, change, moved[d / kW % 2]);
  }
  double moved2 = reduce_add(moved[0] + moved[1]);
  for (int64_t d = whole; d < D; ++d) {
    const float old = w[d];
    float fresh = fma_scalar(-step, gradient[d], old);
    fresh = (fresh > 0.f ? fresh : 0.f) * inverse;
    const float change = fresh - from[d];
    w[d] = fresh;
    moved2 += static_cast<double>(change) * change;
  }
  return __builtin_sqrt(moved2);
}

// ---- The all-active phase: both layers as products of small matrices ---------------------------------------------
#if defined(__AVX512F__)
constexpr int kSlice = 4;  // vectors of a row worked on at once: 4 rows x 4 vectors stay in registers
#else
constexpr int kSlice = 2;
#endif

// fresh (N, D) = clamp(w - step V^T M): the gradient is never stored. norm2[r] = ||fresh_r||^2.
template <int N, int NV>
SSD_INLINE void dense_slice(const float* v, const float* m, const float* w, V minus, int C, int Cp, int64_t D,
                            float* fresh, V* norm) {
  V sum[N][NV];
  for (int r = 0; r < N; ++r)
    for (int i = 0; i < NV; ++i) sum[r][i] = V::zero();
  for (int c = 0; c < C; ++c) {
    V row[NV];
    for (int i = 0; i < NV; ++i) row[i] = V::load(m + c * D + i * kW);
    for (int r = 0; r < N; ++r) {
      const V factor = V::set1(v[r * Cp + c]);
      for (int i = 0; i < NV; ++i) sum[r][i] = fma(factor, row[i], sum[r][i]);
    }
  }
  for (int r = 0; r < N; ++r) {
    for (int i = 0; i < NV; ++i) {
      const V value = vmax(fma(minus, sum[r][i], V::load(w + r * D + i * kW)), V::zero());
      value.store(fresh + r * D + i * kW);
      norm[r] = fma(value, value, norm[r]);
    }
  }
}

template <int N>
SSD_INLINE void dense_rows(const float* v, const float* m, float* w, float step, int C, int Cp, int64_t D, float* fresh,
                           double* movement) {
  const V minus = V::set1(-step);
  V norm[N];
  for (int r = 0; r < N; ++r) norm[r] = V::zero();
  int64_t d = 0;
  for (; d + kSlice * kW <= D; d += kSlice * kW)
    dense_slice<N, kSlice>(v, m + d, w + d, minus, C, Cp, D, fresh + d, norm);
  for (; d + kW <= D; d += kW) dense_slice<N, 1>(v, m + d, w + d, minus, C, Cp, D, fresh + d, norm);
  double norm2[N];
  for (int r = 0; r < N; ++r) norm2[r] = reduce_add(norm[r]);
  for (; d < D; ++d) {
    for (int r = 0; r < N; ++r) {
      float sum = 0.f;
      for (int c = 0; c < C; ++c) sum = fma_scalar(v[r * Cp + c], m[c * D + d], sum);
      const float value = fma_scalar(-step, sum, w[r * D + d]);
      fresh[r * D + d] = value > 0.f ? value : 0.f;
      norm2[r] += static_cast<double>(fresh[r * D + d]) * fresh[r * D + d];
    }
  }
  for (int r = 0; r < N; ++r) {
    const float inverse = norm2[r] > 0 ? static_cast<float>(1.0 / __builtin_sqrt(norm2[r])) : 1.f;
    const V scale = V::set1(inverse);
    float *row = w + r * D, *value = fresh + r * D;
    V moved[2] = {V::zero(), V::zero()};
    for (d = 0; d + kW <= D; d += kW) {
      const V renewed = V::load(value + d) * scale, change = renewed - V::load(row + d);
      renewed.store(row + d);
      moved[d / kW % 2] = fma(change, change, moved[d / kW % 2]);
    }
    double moved2 = reduce_add(moved[0] + moved[1]);
    for (; d < D; ++d) {
      const float renewed = value[d] * inverse, change = renewed - row[d];
      row[d] = renewed;
      moved2 += static_cast<double>(change) * change;
    }
    movement[r] = __builtin_sqrt(moved2);
  }
}

void dense_update_rows(const float* v, const float* m, float* w, int n, float step, int C, int Cp, int64_t D,
                       float* fresh, double* movement) {
  if (n == 4) {
    dense_rows<4>(v, m, w, step, C, Cp, D, fresh, movement);
  } else {
    for (int r = 0; r < n; ++r) dense_rows<1>(v + r * Cp, m, w + r * D, step, C, Cp, D, fresh, movement + r);
  }
}

template <int N, int NV>
SSD_INLINE void accumulate_product_slice(const float* v, const float* w, int C, int Cp, int64_t D, float* a) {
  V rows[N][NV];
  for (int r = 0; r < N; ++r)
    for (int i = 0; i < NV; ++i) rows[r][i] = V::load(w + r * D + i * kW);
  for (int c = 0; c < C; ++c) {
    float* at = a + c * D;
    V sum[NV];
    for (int i = 0; i < NV; ++i) sum[i] = V::load(at + i * kW);
    for (int r = 0; r < N; ++r) {
      const V factor = V::set1(v[r * Cp + c]);
      for (int i = 0; i < NV; ++i) sum[i] = fma(factor, rows[r][i], sum[i]);
    }
    for (int i = 0; i < NV; ++i) sum[i].store(at + i * kW);
  }
}

template <int N>
SSD_INLINE void accumulate_product_rows(const float* v, const float* w, int C, int Cp, int64_t D, float* a) {
  int64_t d = 0;
  for (; d + kSlice * kW <= D; d += kSlice * kW) accumulate_product_slice<N, kSlice>(v, w + d, C, Cp, D, a + d);
  for (; d + kW <= D; d += kW) accumulate_product_slice<N, 1>(v, w + d, C, Cp, D, a + d);
  for (; d < D; ++d)
    for (int c = 0; c < C; ++c)
      for (int r = 0; r < N; ++r) a[c * D + d] = fma_scalar(v[r * Cp + c], w[r * D + d], a[c * D + d]);
}

void accumulate_product(const float* v, const float* w, int n, int C, int Cp, int64_t D, float* a) {
  if (n == 4) {
    accumulate_product_rows<4>(v, w, C, Cp, D, a);
  } else {
    for (int r = 0; r < n; ++r) accumulate_product_rows<1>(v + r * Cp, w + r * D, C, Cp, D, a);
  }
}

// ---- The form for many active neurons ------------------------------------------------------------------------
constexpr int kTileSlice = kSlice, kTileGroup = 4;  // 4 neurons x kSlice vectors of sums stay in registers
#include "sdmlp_tile_kernels.h"

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

void accelerate(float* velocity, const float* gradient, float momentum, float scale, int64_t n) {
  const V keep = V::set1(momentum), factor = V::set1(scale);
  int64_t d = 0;
  for (; d + kW <= n; d += kW) {
    const V kept = keep * V::load(velocity + d);
    (gradient ? kept + factor * V::load(gradient + d) : kept).store(velocity + d);
  }
  for (; d < n; ++d) {
    const float kept = momentum * velocity[d];
    velocity[d] = gradient ? kept + scale * gradient[d] : kept;
  }
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

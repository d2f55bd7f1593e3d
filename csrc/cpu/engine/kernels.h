// The inner loops of the SDMLP trainer, one table per instruction set (kernels.inl). Everything around them,
// which needs containers and threads, is plain C++ (sdmlp_*.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

#include "ssd/simd_level.h"

namespace ssd::cpu {

constexpr int kPreselectBlock = 64;  // most neurons of one call of preselect
constexpr int kTileColumns = 16;     // batch rows that the tile kernels take side by side: one cache line

struct SdmlpKernels {
  // scores[i * ld + j] = canonical dot of x[i] (D,) with row j of w (nw, D).
  void (*score_block)(const float* const* x, int nx, const float* w, int nw, int64_t D, float* scores, int64_t ld);
  // scores[i] = canonical dot of x (D,) with row index[i] of w (R, D).
  void (*score_rows)(const float* x, const float* w, const int32_t* index, int n, int64_t D, float* scores);
  // Lanes of a vector: the canonical sum of D products rounds D / width + log2(width) + 1 times.
  int width;
  // Appends (base + j, scores[j]) where scores[j] > gaba[j] * floor - gap, or gaba[j] < 0, or the score is NaN;
  // returns how many. Room for n entries.
  int (*filter)(const float* scores, const float* gaba, int n, float floor, float gap, int32_t base, int32_t* index,
                float* score);
  // The movers that may matter: places i with bound[i] + path[i] + slack > gaba[i] * floor, or gaba[i] < 0.
  // Room for n + 16 entries in kept.
  int (*prune_movers)(const float* bound, const float* path, const float* gaba, int n, float floor, float slack,
                      int32_t* kept);
  // Certified preselection in bf16 (select/scan_bf16.h), null where the instruction set has none. `state` holds
  // preselect_bytes(rows, D) bytes, 64-byte aligned; preselect_load rounds x (rows, D) into it.
  int64_t (*preselect_bytes)(int rows, int64_t D) = nullptr;
  void (*preselect_load)(void* state, const float* x, int rows, int64_t D) = nullptr;
  // What filter keeps of `neurons` <= kPreselectBlock rows of w for every row of x, by each row's own floor: (row, base
  // + j, canonical score), j ascending for each row. Room for kPreselectBlock * rows entries. gaba within [0, 1],
  // floors >= 0. *candidates is raised by the number of neurons that had to be scored in fp32.
  int (*preselect)(void* state, const float* w, int neurons, int64_t next_bytes, const float* gaba, const float* floors,
                   float gap, int32_t base, int32_t* row, int32_t* index, float* score, int64_t* candidates) = nullptr;
  // The entries of a candidate list that may matter when the layer's threshold is at least `floor`:
  // index[i] is kept where bound[i] + path[index[i]] + slack > gaba[index[i]] * floor or gaba < 0; kept[] (room for n +
  // 16) gets i.
  int (*prune)(const int32_t* index, const float* bound, int n, const float* path_gaba, float floor, float slack,
               int32_t* kept);
  // y (Cp,) = sum_i h[i] * output[index[i]] (R, Cp), in the order given.
  void (*output_row)(const int32_t* index, const float* h, int n, const float* output, int Cp, float* y);
  // dh[i] = sum_c dy[c] * output[index[i]][c], c ascending.
  void (*backward_row)(const int32_t* index, int n, const float* output, int C, int Cp, const float* dy, float* dh);
  // sum (D,) = sum_i coef[i] * x[i], in the order given; returns ||sum||^2.
  double (*accumulate_rows)(const float* const* x, const float* coef, int n, int64_t D, float* sum);
  // w -= step * gradient; clamped at 0; divided by its norm (a zero row stays). Returns ||new - from||, where from may
  // be w itself, as it was; old (D,) is scratch.
  double (*update_row)(float* w, const float* gradient, float step, int64_t D, const float* from, float* old);
  // The all-active step of n <= 4 rows: w_r -= step sum_c v[r * Cp + c] m[c * D + d], clamped at 0, unit norm.
  // movement[r] = ||new - old||; fresh (n, D) is scratch.
  void (*dense_update_rows)(const float* v, const float* m, float* w, int n, float step, int C, int Cp, int64_t D,
                            float* fresh, double* movement);
  // a (C, D) += sum_r v[r * Cp + c] * w[r * D + d] for n <= 4 rows, r ascending: V W.
  void (*accumulate_product)(const float* v, const float* w, int n, int C, int Cp, int64_t D, float* a);
  // The form for many active neurons (forms/tiles.cpp); columns: the batch rounded up to kTileColumns.
  // hits[] = places j * columns + b of scores (count, columns) that are not below floors[b], NaN included.
  int (*tile_exceed)(const float* scores, int64_t count, int columns, const float* floors, int32_t* hits);
  // scores (n, ld), kTileColumns wide, become h = max(relu(s) - g I, 0); y[c * ldy + b] += sum_j h[j][b] output[j][c],
  // j ascending; active[b] = how many h are positive.
  void (*tile_outputs)(float* scores, int64_t n, int64_t ld, const float* gaba, const float* thresholds,
                       const float* output, int C, int Cp, float* y, int64_t ldy, float* active);
  // dh (n, columns) = sum_c dy[c * columns + b] output[j][c] where h > 0, c ascending; active[j] counts those.
  void (*tile_gradients)(const float* h, int64_t n, int columns, const float* output, int C, int Cp, const float* dy,
                         float* dh, int32_t* active);
  // x (rows, D) in slices of slice_width inputs, each (rows, slice_width), the last one padded with 0.
  int slice_width;
  void (*tile_slice)(const float* x, int rows, int64_t D, float* sliced);
  // sum[r] (D,) = sum_b coef[r][b] x[b] of n neurons, b ascending; x in slices.
  void (*tile_weight_gradient)(const float* const* coef, int n, const float* sliced, int rows, int64_t D,
                               float* const* sum);
  // sum[r] (Cp,) = sum_b h[r][b] dy[b] of n neurons, b ascending; dy (rows, Cp).
  void (*tile_output_gradient)(const float* const* h, int n, const float* dy, int rows, int Cp, float* const* sum);
  // gradient (n,) += twice_coef * importance * (value - anchor).
  void (*add_penalty)(float* gradient, const float* value, const float* importance, const float* anchor,
                      float twice_coef, int64_t n);
  // sum_d gradient[d]^2.
  double (*square_norm)(const float* gradient, int64_t n);
  // velocity = momentum * velocity + scale * gradient (null: 0); whether any of it is not 0.
  bool (*accelerate)(float* velocity, const float* gradient, float momentum, float scale, int64_t n);
  // v -= step * gradient, clamped at 0.
  void (*update_output)(float* v, const float* gradient, float step, int Cp);
  // x[i] = exp(x[i]) for n values, to about 1 ulp of fp64.
  void (*exp_rows)(double* x, int64_t n);
};

const SdmlpKernels& sdmlp_kernels(SimdLevel level);

}  // namespace ssd::cpu

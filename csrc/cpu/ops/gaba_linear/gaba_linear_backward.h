// gaba_linear backward: from pairs (b, j) where few neurons are active, else as two dense products.
//
// Pairs: O(P D) work; a sample and a neuron have one owner each, pairs of a neuron come in ascending order of samples.
// Dense: tiles of 4 rows of a gradient stay in registers while the rows of W (or x) pass by from L2; ds is masked while
// it is packed. Neither has atomics; the order of every sum is fixed by the indices alone.
#pragma once

#include "ops/gaba_linear/gaba_linear_levels.h"
#include "rows/rows.h"
#include "rows/weighted_sum.h"

namespace ssd::cpu::SSD_LEVEL {

template <class S, class T>
struct PairsBackward {
  const PairsBackwardParams& p;

  const S* x_row(int64_t b) const { return static_cast<const S*>(p.x) + b * p.x_stride; }
  const S* w_row(int64_t j) const { return static_cast<const S*>(p.weight) + j * p.weight_stride; }
  T gradient(int64_t pair) const { return to_acc(static_cast<const S*>(p.grad)[pair]); }

  bool grad_x(int64_t begin, int64_t end) const {
    int64_t most = 0;
    for (int64_t b = begin; b < end; ++b)
      most = p.offsets[b + 1] - p.offsets[b] > most ? p.offsets[b + 1] - p.offsets[b] : most;
    Arena arena(Arena::size_of<const S*>(most) + Arena::size_of<T>(most));
    if (!arena.ok()) return false;
    const S** const rows = arena.take<const S*>(most);
    T* const factors = arena.take<T>(most);
    for (int64_t b = begin; b < end; ++b) {
      int64_t count = 0;
      for (int64_t pair = p.offsets[b]; pair < p.offsets[b + 1]; ++pair) {
        if (p.masked && p.masked[pair]) continue;
        rows[count] = w_row(p.indices[pair]);
        factors[count++] = gradient(pair);
      }
      weighted_sum(rows, factors, count, p.inputs, static_cast<S*>(p.grad_x) + b * p.inputs);
    }
    return true;
  }

  bool grad_w(const int32_t* samples, int64_t begin, int64_t end) const {
    int64_t most = 0;
    for (int64_t u = begin; u < end; ++u)
      most = p.starts[u + 1] - p.starts[u] > most ? p.starts[u + 1] - p.starts[u] : most;
    Arena arena(Arena::size_of<const S*>(most) + Arena::size_of<T>(most));
    if (!arena.ok()) return false;
    const S** const rows = arena.take<const S*>(most);
    T* const factors = arena.take<T>(most);
    for (int64_t u = begin; u < end; ++u) {
      int64_t count = 0;
      for (int64_t i = p.starts[u]; i < p.starts[u + 1]; ++i) {
        rows[count] = x_row(samples[p.order[i]]);
        factors[count++] = gradient(p.order[i]);
      }
      S* const to = p.grad_rows ? static_cast<S*>(p.grad_rows) + u * p.inputs
                                : static_cast<S*>(p.grad_weight) + p.rows[u] * p.inputs;
      weighted_sum(rows, factors, count, p.inputs, to);
    }
    return true;
  }
};

// Sums of four outputs at once: outputs i = 0 .. 3 gain the sum of factors[n * 4 + i] * rows[n], n ascending.
constexpr int kOutputs = 4;
#if defined(__AVX512F__)
constexpr int kStripVectors = 4;
#else
constexpr int kStripVectors = 2;
#endif

template <int NV, class S, class T>
SSD_INLINE void add_strip(const T* factors, const S* rows, ptrdiff_t stride, int64_t count, T* sums,
                          ptrdiff_t sums_stride) {
  using V = Vec<T>;
  V sum[kOutputs][NV];
  for (int i = 0; i < kOutputs; ++i)
    for (int v = 0; v < NV; ++v) sum[i][v] = V::zero();
  for (int64_t n = 0; n < count; ++n) {
    V row[NV];
    for (int v = 0; v < NV; ++v) row[v] = V::load(rows + n * stride + v * V::kWidth);
    for (int i = 0; i < kOutputs; ++i) {
      const V factor = V::set1(factors[n * kOutputs + i]);
      for (int v = 0; v < NV; ++v) sum[i][v] = fma(factor, row[v], sum[i][v]);
    }
  }
  for (int i = 0; i < kOutputs; ++i)
    for (int v = 0; v < NV; ++v) {
      T* const to = sums + i * sums_stride + v * V::kWidth;
      (V::load(to) + sum[i][v]).store(to);
    }
}

// sums (4, sums_stride): all `size` columns, the last vector in part.
template <class S, class T>
void add_outer(const T* factors, const S* rows, ptrdiff_t stride, int64_t count, ptrdiff_t size, T* sums,
               ptrdiff_t sums_stride) {
  using V = Vec<T>;
  constexpr int kStrip = kStripVectors * V::kWidth;
  ptrdiff_t d = 0;
  for (; d + kStrip <= size; d += kStrip)
    add_strip<kStripVectors>(factors, rows + d, stride, count, sums + d, sums_stride);
  for (; d + V::kWidth <= size; d += V::kWidth) add_strip<1>(factors, rows + d, stride, count, sums + d, sums_stride);
  if (const int rest = static_cast<int>(size - d)) {
    V sum[kOutputs];
    for (int i = 0; i < kOutputs; ++i) sum[i] = V::zero();
    for (int64_t n = 0; n < count; ++n) {
      const V row = V::load_partial(rows + n * stride + d, rest);
      for (int i = 0; i < kOutputs; ++i) sum[i] = fma(V::set1(factors[n * kOutputs + i]), row, sum[i]);
    }
    for (int i = 0; i < kOutputs; ++i) {
      T* const to = sums + i * sums_stride + d;
      (V::load(to) + sum[i]).store(to);
    }
  }
}

template <class S, class T>
struct DenseBackward {
  const GabaBackwardParams& p;
  static constexpr int64_t kChunk = 128;  // of the summed dimension: rows stay in L2, and sums of sums round less

  ptrdiff_t padded() const { return (p.inputs + 63) / 64 * 64; }

  T masked(int64_t b, int64_t j) const {
    const int64_t at = b * p.neurons + j;
    const T grad = to_acc(static_cast<const S*>(p.grad_h)[at]);
    return p.h && to_acc(static_cast<const S*>(p.h)[at]) <= 0 ? T{0} : grad;
  }

  void write(const T* sums, S* to) const {
    using V = Vec<T>;
    for (ptrdiff_t d = 0; d < p.inputs; d += V::kWidth)
      narrow(V::load(sums + d), to + d, p.inputs - d < V::kWidth ? static_cast<int>(p.inputs - d) : V::kWidth);
  }

  bool grad_x(int64_t begin, int64_t end) const {
    constexpr int64_t kBlock = 64;
    Arena arena(Arena::size_of<T>(kBlock * padded()) + Arena::size_of<T>(kChunk * kOutputs));
    if (!arena.ok()) return false;
    T* const sums = arena.take<T>(kBlock * padded());
    T* const factors = arena.take<T>(kChunk * kOutputs);
    for (int64_t first = begin; first < end; first += kBlock) {
      const int64_t rows = clamp(end - first, 1, kBlock);
      std::memset(sums, 0, static_cast<size_t>(kBlock * padded()) * sizeof(T));
      for (int64_t chunk = 0; chunk < p.neurons; chunk += kChunk) {
        const int64_t neurons = clamp(p.neurons - chunk, 1, kChunk);
        for (int64_t b = 0; b < rows; b += kOutputs) {
          for (int64_t j = 0; j < neurons; ++j)
            for (int i = 0; i < kOutputs; ++i)
              factors[j * kOutputs + i] = b + i < rows ? masked(first + b + i, chunk + j) : T{0};
          add_outer(factors, static_cast<const S*>(p.weight) + chunk * p.weight_stride, p.weight_stride, neurons,
                    p.inputs, sums + b * padded(), padded());
        }
      }
      for (int64_t b = 0; b < rows; ++b) write(sums + b * padded(), static_cast<S*>(p.grad_x) + (first + b) * p.inputs);
    }
    return true;
  }

  bool grad_w(int64_t begin, int64_t end) const {
    constexpr int64_t kBlock = 16;  // neurons at a time: a cache line of h and of grad_h per sample
    Arena arena(Arena::size_of<T>(kBlock * padded()) + Arena::size_of<T>(kBlock * kChunk));
    if (!arena.ok()) return false;
    T* const sums = arena.take<T>(kBlock * padded());
    T* const factors = arena.take<T>(kBlock * kChunk);
    for (int64_t first = begin; first < end; first += kBlock) {
      const int64_t rows = clamp(end - first, 1, kBlock);
      std::memset(sums, 0, static_cast<size_t>(kBlock * padded()) * sizeof(T));
      for (int64_t chunk = 0; chunk < p.batch; chunk += kChunk) {
        const int64_t samples = clamp(p.batch - chunk, 1, kChunk);
        for (int64_t b = 0; b < samples; ++b)
          for (int64_t j = 0; j < kBlock; ++j)
            factors[(j / kOutputs * kChunk + b) * kOutputs + j % kOutputs] =
                j < rows ? masked(chunk + b, first + j) : T{0};
        for (int64_t j = 0; j < rows; j += kOutputs)
          add_outer(factors + j * kChunk, static_cast<const S*>(p.x) + chunk * p.x_stride, p.x_stride, samples,
                    p.inputs, sums + j * padded(), padded());
      }
      for (int64_t j = 0; j < rows; ++j)
        write(sums + j * padded(), static_cast<S*>(p.grad_weight) + (first + j) * p.inputs);
    }
    return true;
  }
};

// Runs `call` on the class template `Backward` of the storage type in hand.
#define SSD_GABA_BACKWARD(Backward, call)            \
  switch (params.dtype) {                            \
    case Dtype::kFloat32:                            \
      return Backward<float, float>{params}.call;    \
    case Dtype::kFloat64:                            \
      return Backward<double, double>{params}.call;  \
    case Dtype::kBFloat16:                           \
      return Backward<BFloat16, float>{params}.call; \
    default:                                         \
      return Backward<Half, float>{params}.call;     \
  }

bool pairs_grad_x(const PairsBackwardParams& params, int64_t begin, int64_t end) {
  SSD_GABA_BACKWARD(PairsBackward, grad_x(begin, end))
}
bool pairs_grad_w(const PairsBackwardParams& params, const int32_t* samples, int64_t begin, int64_t end) {
  SSD_GABA_BACKWARD(PairsBackward, grad_w(samples, begin, end))
}
bool gaba_dense_grad_x(const GabaBackwardParams& params, int64_t begin, int64_t end) {
  SSD_GABA_BACKWARD(DenseBackward, grad_x(begin, end))
}
bool gaba_dense_grad_w(const GabaBackwardParams& params, int64_t begin, int64_t end) {
  SSD_GABA_BACKWARD(DenseBackward, grad_w(begin, end))
}
#undef SSD_GABA_BACKWARD

}  // namespace ssd::cpu::SSD_LEVEL

// sparse_linear for a weight whose rows (C, R) are contiguous, and the gradient of the values for either layout. A
// weight whose columns are contiguous goes through the pair kernels of gaba_linear, with its columns as the rows.
//
// Work: O(P C). Traffic: C scattered numbers per entry here, C adjacent ones with contiguous columns.
// Determinism: a sample has one owner; entries are added in their order, in the accumulation type.
#include "ops/sparse_linear/sparse_linear_levels.h"
#include "rows/rows.h"
#include "simd/simd.h"

namespace ssd::cpu::SSD_LEVEL {

template <class S, class T>
bool forward_by_rows(const SparseLinearParams& p, S* y, int64_t begin, int64_t end) {
  Arena arena(Arena::size_of<T>(p.outputs));
  if (!arena.ok()) return false;
  T* const sums = arena.take<T>(p.outputs);
  for (int64_t b = begin; b < end; ++b) {
    for (int64_t c = 0; c < p.outputs; ++c) sums[c] = 0;
    for (int64_t i = p.offsets[b]; i < p.offsets[b + 1]; ++i) {
      const T value = to_acc(static_cast<const S*>(p.values)[i]);
      const S* const column = static_cast<const S*>(p.weight) + p.indices[i];
      for (int64_t c = 0; c < p.outputs; ++c) sums[c] += value * to_acc(column[c * p.output_stride]);
    }
    for (int64_t c = 0; c < p.outputs; ++c) from_acc(sums[c], y + b * p.outputs + c);
  }
  return true;
}

template <class S, class T>
void grad_values(const SparseLinearParams& p, const S* grad_y, S* to, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    const S* const grad = grad_y + b * p.outputs;
    for (int64_t i = p.offsets[b]; i < p.offsets[b + 1]; ++i) {
      const S* const column = static_cast<const S*>(p.weight) + p.indices[i] * p.neuron_stride;
      T sum = 0;
      if (p.output_stride == 1)
        sum = dot(grad, column, p.outputs);
      else
        for (int64_t c = 0; c < p.outputs; ++c) sum += to_acc(grad[c]) * to_acc(column[c * p.output_stride]);
      from_acc(sum, to + i);
    }
  }
}

bool sparse_linear_by_rows(const SparseLinearParams& params, void* y, int64_t begin, int64_t end) {
  switch (params.dtype) {
    case Dtype::kFloat32:
      return forward_by_rows<float, float>(params, static_cast<float*>(y), begin, end);
    case Dtype::kFloat64:
      return forward_by_rows<double, double>(params, static_cast<double*>(y), begin, end);
    case Dtype::kBFloat16:
      return forward_by_rows<BFloat16, float>(params, static_cast<BFloat16*>(y), begin, end);
    default:
      return forward_by_rows<Half, float>(params, static_cast<Half*>(y), begin, end);
  }
}

template <class S, class T>
void run_values(const SparseLinearParams& p, const void* grad_y, void* to, int64_t begin, int64_t end) {
  grad_values<S, T>(p, static_cast<const S*>(grad_y), static_cast<S*>(to), begin, end);
}

void sparse_linear_values(const SparseLinearParams& params, const void* grad_y, void* grad_values, int64_t begin,
                          int64_t end) {
  switch (params.dtype) {
    case Dtype::kFloat32:
      return run_values<float, float>(params, grad_y, grad_values, begin, end);
    case Dtype::kFloat64:
      return run_values<double, double>(params, grad_y, grad_values, begin, end);
    case Dtype::kBFloat16:
      return run_values<BFloat16, float>(params, grad_y, grad_values, begin, end);
    default:
      return run_values<Half, float>(params, grad_y, grad_values, begin, end);
  }
}

}  // namespace ssd::cpu::SSD_LEVEL

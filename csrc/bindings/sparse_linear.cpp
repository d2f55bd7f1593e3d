// sparse_linear over raw pointers.
#include "ssd/sparse_linear.h"

#include <new>

#include "bindings.h"

namespace py = pybind11;

namespace ssd::bindings {
namespace {

cpu::SparseLinearParams params_of(int dtype, int64_t batch, int64_t outputs, int64_t neurons, int64_t entries,
                                  uintptr_t values, uintptr_t indices, uintptr_t offsets, uintptr_t weight,
                                  int64_t output_stride, int64_t neuron_stride, int threads) {
  return {static_cast<cpu::Dtype>(dtype),
          batch,
          outputs,
          neurons,
          entries,
          pointer<const void>(values),
          pointer<const int32_t>(indices),
          pointer<const int64_t>(offsets),
          pointer<const void>(weight),
          output_stride,
          neuron_stride,
          threads};
}

void forward(int dtype, int64_t batch, int64_t outputs, int64_t neurons, int64_t entries, uintptr_t values,
             uintptr_t indices, uintptr_t offsets, uintptr_t weight, int64_t output_stride, int64_t neuron_stride,
             uintptr_t y, int threads, const std::string& simd) {
  const cpu::SimdLevel level = simd_level(simd);
  const cpu::SparseLinearParams params = params_of(dtype, batch, outputs, neurons, entries, values, indices, offsets,
                                                   weight, output_stride, neuron_stride, threads);
  cpu::SparseLinearResult result;
  {
    py::gil_scoped_release release;
    result = cpu::sparse_linear(params, pointer<void>(y), level);
  }
  if (result.status == cpu::SparseLinearStatus::kNoMemory) throw std::bad_alloc();
  if (result.status == cpu::SparseLinearStatus::kBadIndex) throw_index_error(result.bad, neurons);
  if (result.status == cpu::SparseLinearStatus::kBadOffsets)
    throw py::value_error("offsets must ascend from 0 to nnz = " + std::to_string(entries));
}

// grad_values or grad_weight may be 0: then it is not computed.
void backward(int dtype, int64_t batch, int64_t outputs, int64_t neurons, int64_t entries, uintptr_t values,
              uintptr_t indices, uintptr_t offsets, uintptr_t weight, int64_t output_stride, int64_t neuron_stride,
              uintptr_t grad_y, uintptr_t grad_values, uintptr_t grad_weight, int threads, const std::string& simd) {
  const cpu::SimdLevel level = simd_level(simd);
  const cpu::SparseLinearParams params = params_of(dtype, batch, outputs, neurons, entries, values, indices, offsets,
                                                   weight, output_stride, neuron_stride, threads);
  py::gil_scoped_release release;
  const void* const grad = pointer<const void>(grad_y);
  if (grad_values && !cpu::sparse_linear_grad_values(params, grad, pointer<void>(grad_values), level))
    throw std::bad_alloc();
  if (grad_weight && !cpu::sparse_linear_grad_weight(params, grad, pointer<void>(grad_weight), level))
    throw std::bad_alloc();
}

}  // namespace

void bind_sparse_linear(py::module_& m) {
  m.def("sparse_linear_forward", &forward);
  m.def("sparse_linear_backward", &backward);
}

}  // namespace ssd::bindings

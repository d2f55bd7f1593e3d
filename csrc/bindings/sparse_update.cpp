// sparse_update over raw pointers.
#include "ssd/sparse_update.h"

#include <new>

#include "bindings.h"

namespace py = pybind11;

namespace ssd::bindings {
namespace {

// 0, or what ssd::cpu::SparseUpdateResult says was refused.
int update(int dtype, int64_t neurons, int64_t inputs, int64_t rows, uintptr_t weight, int64_t weight_stride,
           uintptr_t indices, uintptr_t grad, int64_t grad_stride, double step, double max_norm, bool clamp,
           bool renormalise, uintptr_t movement, int threads, const std::string& simd) {
  const cpu::SimdLevel level = simd_level(simd);
  const cpu::SparseUpdateParams params{static_cast<cpu::Dtype>(dtype),
                                       neurons,
                                       inputs,
                                       rows,
                                       pointer<void>(weight),
                                       weight_stride,
                                       pointer<const int64_t>(indices),
                                       pointer<const void>(grad),
                                       grad_stride,
                                       step,
                                       max_norm,
                                       clamp,
                                       renormalise,
                                       pointer<double>(movement),
                                       threads};
  py::gil_scoped_release release;
  const cpu::SparseUpdateResult result = cpu::sparse_update(params, level);
  if (result == cpu::SparseUpdateResult::kNoMemory) throw std::bad_alloc();
  return static_cast<int>(result);
}

}  // namespace

void bind_sparse_update(py::module_& m) { m.def("sparse_update", &update); }

}  // namespace ssd::bindings

// gaba_linear over raw pointers.
#include "ssd/gaba_linear.h"

#include <memory>
#include <new>

#include "bindings.h"

namespace py = pybind11;

namespace ssd::bindings {
namespace {

cpu::GabaLinearParams forward_params(int dtype, int64_t batch, int64_t inputs, int64_t neurons, int64_t k, uintptr_t x,
                                     int64_t x_stride, uintptr_t weight, int64_t weight_stride, uintptr_t g,
                                     uintptr_t threshold, int threads) {
  return {static_cast<cpu::Dtype>(dtype),
          batch,
          inputs,
          neurons,
          k,
          pointer<const void>(x),
          x_stride,
          pointer<const void>(weight),
          weight_stride,
          pointer<const double>(g),
          pointer<void>(threshold),
          threads};
}

void dense(int dtype, int64_t batch, int64_t inputs, int64_t neurons, int64_t k, uintptr_t x, int64_t x_stride,
           uintptr_t weight, int64_t weight_stride, uintptr_t g, uintptr_t threshold, uintptr_t h, int threads,
           const std::string& simd) {
  const cpu::SimdLevel level = simd_level(simd);
  const cpu::GabaLinearParams params =
      forward_params(dtype, batch, inputs, neurons, k, x, x_stride, weight, weight_stride, g, threshold, threads);
  py::gil_scoped_release release;
  if (!cpu::gaba_linear_dense(params, pointer<void>(h), level)) throw std::bad_alloc();
}

std::unique_ptr<cpu::ActiveRows> rows(int dtype, int64_t batch, int64_t inputs, int64_t neurons, int64_t k, uintptr_t x,
                                      int64_t x_stride, uintptr_t weight, int64_t weight_stride, uintptr_t g,
                                      uintptr_t threshold, uintptr_t offsets, int threads, const std::string& simd) {
  const cpu::SimdLevel level = simd_level(simd);
  const cpu::GabaLinearParams params =
      forward_params(dtype, batch, inputs, neurons, k, x, x_stride, weight, weight_stride, g, threshold, threads);
  auto result = std::make_unique<cpu::ActiveRows>();
  py::gil_scoped_release release;
  if (!cpu::gaba_linear_rows(params, pointer<int64_t>(offsets), result.get(), level)) throw std::bad_alloc();
  return result;
}

void backward_pairs(int dtype, int64_t batch, int64_t inputs, int64_t neurons, int64_t active, uintptr_t grad,
                    uintptr_t indices, uintptr_t offsets, uintptr_t masked, uintptr_t x, int64_t x_stride,
                    uintptr_t weight, int64_t weight_stride, uintptr_t order, uintptr_t rows, uintptr_t starts,
                    uintptr_t grad_x, uintptr_t grad_weight, uintptr_t grad_rows, bool by_tiles, int threads,
                    const std::string& simd) {
  const cpu::SimdLevel level = simd_level(simd);
  const cpu::PairsBackwardParams params{static_cast<cpu::Dtype>(dtype),
                                        batch,
                                        inputs,
                                        neurons,
                                        active,
                                        pointer<const void>(grad),
                                        pointer<const int32_t>(indices),
                                        pointer<const int64_t>(offsets),
                                        pointer<const bool>(masked),
                                        pointer<const void>(x),
                                        x_stride,
                                        pointer<const void>(weight),
                                        weight_stride,
                                        pointer<const int64_t>(order),
                                        pointer<const int64_t>(rows),
                                        pointer<const int64_t>(starts),
                                        pointer<void>(grad_x),
                                        pointer<void>(grad_weight),
                                        pointer<void>(grad_rows),
                                        by_tiles,
                                        threads};
  py::gil_scoped_release release;
  if (!cpu::pairs_backward(params, level)) throw std::bad_alloc();
}

void backward_dense(int dtype, int64_t batch, int64_t inputs, int64_t neurons, uintptr_t grad_h, uintptr_t h,
                    uintptr_t x, int64_t x_stride, uintptr_t weight, int64_t weight_stride, uintptr_t grad_x,
                    uintptr_t grad_weight, int threads, const std::string& simd) {
  const cpu::SimdLevel level = simd_level(simd);
  const cpu::GabaBackwardParams params{static_cast<cpu::Dtype>(dtype),
                                       batch,
                                       inputs,
                                       neurons,
                                       pointer<const void>(grad_h),
                                       pointer<const void>(h),
                                       pointer<const void>(x),
                                       x_stride,
                                       pointer<const void>(weight),
                                       weight_stride,
                                       pointer<void>(grad_x),
                                       pointer<void>(grad_weight),
                                       threads};
  py::gil_scoped_release release;
  if (!cpu::gaba_linear_dense_backward(params, level)) throw std::bad_alloc();
}

}  // namespace

void bind_gaba_linear(py::module_& m) {
  py::class_<cpu::ActiveRows>(m, "ActiveRows")
      .def_property_readonly("count", &cpu::ActiveRows::count)
      .def("copy", [](const cpu::ActiveRows& rows, uintptr_t values, uintptr_t indices) {
        py::gil_scoped_release release;
        rows.copy(pointer<void>(values), pointer<int32_t>(indices));
      });
  m.def("gaba_linear_most_pairs", &cpu::most_pairs);
  m.def("gaba_linear_dense", &dense);
  m.def("gaba_linear_rows", &rows);
  m.def("gaba_linear_pairs_backward", &backward_pairs);
  m.def("gaba_linear_dense_backward", &backward_dense);
}

}  // namespace ssd::bindings

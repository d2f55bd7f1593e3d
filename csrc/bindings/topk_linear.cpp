// topk_linear over raw pointers.
#include "ssd/topk_linear.h"

#include "bindings.h"

namespace py = pybind11;

namespace ssd::bindings {
namespace {

void forward(int dtype, int64_t batch, int64_t inputs, int64_t neurons, int64_t k, uintptr_t x, int64_t x_stride,
             uintptr_t weight, int64_t weight_stride, uintptr_t bias, bool relu, bool normalize_input,
             bool normalize_weight, bool inhibition, uintptr_t values, uintptr_t indices, uintptr_t threshold,
             bool weight_transposed, uintptr_t rows, uintptr_t scale, bool magnitude, int threads,
             const std::string& simd) {
  const cpu::SimdLevel level = simd_level(simd);
  const cpu::TopkLinearParams params{static_cast<cpu::Dtype>(dtype),
                                     batch,
                                     inputs,
                                     neurons,
                                     k,
                                     pointer<const void>(x),
                                     x_stride,
                                     pointer<const void>(weight),
                                     weight_stride,
                                     pointer<const void>(bias),
                                     relu,
                                     normalize_input,
                                     normalize_weight,
                                     inhibition,
                                     pointer<void>(values),
                                     pointer<int32_t>(indices),
                                     pointer<void>(threshold),
                                     threads,
                                     weight_transposed,
                                     pointer<const int64_t>(rows),
                                     pointer<const void>(scale),
                                     magnitude};
  py::gil_scoped_release release;
  if (!cpu::topk_linear_forward(params, level)) throw std::bad_alloc();
}

int64_t pairs(int dtype, int64_t count, int64_t neurons, uintptr_t values, uintptr_t indices, bool masked,
              uintptr_t order, uintptr_t rows, uintptr_t starts) {
  const cpu::TopkPairsParams params{static_cast<cpu::Dtype>(dtype),
                                    count,
                                    neurons,
                                    pointer<const void>(values),
                                    pointer<const int32_t>(indices),
                                    masked,
                                    pointer<int64_t>(order),
                                    pointer<int64_t>(rows),
                                    pointer<int64_t>(starts)};
  py::gil_scoped_release release;
  const int64_t active = cpu::topk_linear_pairs(params);
  if (active < 0) throw std::bad_alloc();
  return active;
}

void backward(int dtype, int64_t batch, int64_t inputs, int64_t neurons, int64_t k, int64_t active,
              uintptr_t grad_values, uintptr_t x, int64_t x_stride, uintptr_t weight, int64_t weight_stride,
              uintptr_t values, uintptr_t indices, bool masked, uintptr_t order, uintptr_t rows, uintptr_t starts,
              bool normalize_input, bool normalize_weight, uintptr_t grad_x, uintptr_t grad_weight, uintptr_t grad_rows,
              uintptr_t grad_bias, bool transposed, int threads, const std::string& simd) {
  const cpu::SimdLevel level = simd_level(simd);
  const cpu::TopkLinearBackwardParams params{static_cast<cpu::Dtype>(dtype),
                                             batch,
                                             inputs,
                                             neurons,
                                             k,
                                             active,
                                             pointer<const void>(grad_values),
                                             pointer<const void>(x),
                                             x_stride,
                                             pointer<const void>(weight),
                                             weight_stride,
                                             pointer<const void>(values),
                                             pointer<const int32_t>(indices),
                                             masked,
                                             pointer<const int64_t>(order),
                                             pointer<const int64_t>(rows),
                                             pointer<const int64_t>(starts),
                                             normalize_input,
                                             normalize_weight,
                                             pointer<void>(grad_x),
                                             pointer<void>(grad_weight),
                                             pointer<void>(grad_rows),
                                             pointer<void>(grad_bias),
                                             threads,
                                             transposed};
  py::gil_scoped_release release;
  if (!cpu::topk_linear_backward(params, level)) throw std::bad_alloc();
}

}  // namespace

void bind_topk_linear(py::module_& m) {
  m.def("topk_linear_forward", &forward);
  m.def("topk_linear_pairs", &pairs);
  m.def("topk_linear_backward", &backward);
}

}  // namespace ssd::bindings

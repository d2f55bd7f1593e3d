// relu_mlp and relu_fisher over raw pointers.
#include "ssd/relu_fisher.h"

#include <new>
#include <utility>

#include "bindings.h"

namespace py = pybind11;

namespace ssd::bindings {
namespace {

using Matrix = std::pair<uintptr_t, int64_t>;  // address and row stride

void mlp(int dtype, int64_t batch, int64_t inputs, int64_t neurons, int64_t classes, Matrix x, Matrix weight,
         uintptr_t bias, Matrix output_weight, uintptr_t output_bias, uintptr_t hidden, uintptr_t logits, int threads,
         const std::string& simd) {
  const cpu::SimdLevel level = simd_level(simd);
  const cpu::ReluMlpParams params{static_cast<cpu::Dtype>(dtype),
                                  batch,
                                  inputs,
                                  neurons,
                                  classes,
                                  pointer<const void>(x.first),
                                  x.second,
                                  pointer<const void>(weight.first),
                                  weight.second,
                                  pointer<const void>(bias),
                                  pointer<const void>(output_weight.first),
                                  output_weight.second,
                                  pointer<const void>(output_bias),
                                  pointer<void>(hidden),
                                  pointer<void>(logits),
                                  threads};
  py::gil_scoped_release release;
  if (!cpu::relu_mlp(params, level)) throw std::bad_alloc();
}

// None, or the label that is out of range.
py::object fisher(int dtype, int64_t batch, int64_t inputs, int64_t neurons, int64_t classes, Matrix x, Matrix hidden,
                  Matrix output_weight, uintptr_t probabilities, uintptr_t labels, double beta, uintptr_t weight,
                  uintptr_t bias, uintptr_t output, uintptr_t output_sums, int threads, const std::string& simd) {
  const cpu::SimdLevel level = simd_level(simd);
  const cpu::ReluFisherParams params{static_cast<cpu::Dtype>(dtype),
                                     batch,
                                     inputs,
                                     neurons,
                                     classes,
                                     pointer<const void>(x.first),
                                     x.second,
                                     pointer<const void>(hidden.first),
                                     hidden.second,
                                     pointer<const void>(output_weight.first),
                                     output_weight.second,
                                     pointer<const void>(probabilities),
                                     pointer<const int64_t>(labels),
                                     beta,
                                     pointer<void>(weight),
                                     pointer<void>(bias),
                                     pointer<void>(output),
                                     pointer<void>(output_sums),
                                     threads};
  cpu::ReluFisherResult result;
  {
    py::gil_scoped_release release;
    result = cpu::relu_fisher(params, level);
  }
  if (result.status == cpu::ReluFisherStatus::kNoMemory) throw std::bad_alloc();
  return result.status == cpu::ReluFisherStatus::kBadLabel ? py::cast(result.label) : py::none();
}

}  // namespace

void bind_relu_fisher(py::module_& m) {
  m.def("relu_mlp", &mlp);
  m.def("relu_fisher", &fisher);
}

}  // namespace ssd::bindings

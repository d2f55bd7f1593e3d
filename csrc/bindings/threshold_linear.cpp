// threshold_linear and batch_topk_linear over raw pointers.
#include "ssd/threshold_linear.h"

#include <memory>
#include <new>

#include "bindings.h"

namespace py = pybind11;

namespace ssd::bindings {
namespace {

using Matrix = std::pair<uintptr_t, int64_t>;  // address, row stride

cpu::ThresholdLinearParams params_of(int dtype, int64_t batch, int64_t inputs, int64_t neurons, Matrix x, Matrix weight,
                                     bool weight_transposed, uintptr_t bias, uintptr_t scale, int threads) {
  cpu::ThresholdLinearParams params{};
  params.dtype = static_cast<cpu::Dtype>(dtype);
  params.batch = batch;
  params.inputs = inputs;
  params.neurons = neurons;
  params.x = pointer<const void>(x.first);
  params.x_stride = x.second;
  params.weight = pointer<const void>(weight.first);
  params.weight_stride = weight.second;
  params.weight_transposed = weight_transposed;
  params.bias = pointer<const void>(bias);
  params.scale = pointer<const void>(scale);
  params.threads = threads;
  return params;
}

std::unique_ptr<cpu::ActiveRows> threshold(int dtype, int64_t batch, int64_t inputs, int64_t neurons, Matrix x,
                                           Matrix weight, bool weight_transposed, uintptr_t bias, uintptr_t scale,
                                           uintptr_t thresholds, uintptr_t offsets, int threads,
                                           const std::string& simd) {
  const cpu::SimdLevel level = simd_level(simd);
  cpu::ThresholdLinearParams params =
      params_of(dtype, batch, inputs, neurons, x, weight, weight_transposed, bias, scale, threads);
  params.thresholds = pointer<const double>(thresholds);
  auto rows = std::make_unique<cpu::ActiveRows>();
  py::gil_scoped_release release;
  if (!cpu::threshold_linear(params, pointer<int64_t>(offsets), rows.get(), level)) throw std::bad_alloc();
  return rows;
}

std::pair<std::unique_ptr<cpu::ActiveRows>, double> batch_topk(int dtype, int64_t batch, int64_t inputs,
                                                               int64_t neurons, Matrix x, Matrix weight,
                                                               bool weight_transposed, uintptr_t bias, uintptr_t scale,
                                                               int64_t most, uintptr_t offsets, int threads,
                                                               const std::string& simd) {
  const cpu::SimdLevel level = simd_level(simd);
  cpu::ThresholdLinearParams params =
      params_of(dtype, batch, inputs, neurons, x, weight, weight_transposed, bias, scale, threads);
  params.most = most;
  auto rows = std::make_unique<cpu::ActiveRows>();
  double next = 0;
  py::gil_scoped_release release;
  if (!cpu::batch_topk_linear(params, pointer<int64_t>(offsets), &next, rows.get(), level)) throw std::bad_alloc();
  return {std::move(rows), next};
}

}  // namespace

void bind_threshold_linear(py::module_& m) {
  m.def("threshold_linear", &threshold);
  m.def("batch_topk_linear", &batch_topk);
}

}  // namespace ssd::bindings

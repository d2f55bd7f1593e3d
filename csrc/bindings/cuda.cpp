// Python module ssd_kernels._cuda: CUDA launchers over raw device pointers. Loaded only when a GPU is
// present.
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "ssd/row_norms_cuda.h"

namespace py = pybind11;

namespace {

void row_norms(uintptr_t x, long long rows, long long cols, long long stride, uintptr_t norms, int device,
               uintptr_t stream) {
  const ssd::cuda::RowNormsParams params{
      reinterpret_cast<const float*>(x), rows, cols, stride, reinterpret_cast<float*>(norms), device,
      reinterpret_cast<void*>(stream)};
  if (const char* error = ssd::cuda::row_norms(params)) throw std::runtime_error(error);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels over raw pointers";
  m.def("row_norms", &row_norms, py::arg("x"), py::arg("rows"), py::arg("cols"), py::arg("stride"), py::arg("norms"),
        py::arg("device"), py::arg("stream"), py::call_guard<py::gil_scoped_release>());
}

// Python module ssd_kernels._cuda: CUDA launchers over raw device pointers. Loaded only when a GPU is
// present.
#include "cuda.h"

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels over raw pointers";
  ssd::bindings::bind_cuda_rows(m);
  ssd::bindings::bind_cuda_select(m);
  ssd::bindings::bind_cuda_engine(m);
}

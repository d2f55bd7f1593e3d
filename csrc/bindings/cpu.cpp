// Python module ssd_kernels._cpu: the native CPU core over raw pointers.
#include <pybind11/pybind11.h>

#include "bindings.h"
#include "ssd/simd_level.h"

namespace py = pybind11;

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Native CPU kernels over raw pointers";
  m.def(
      "best_simd_level", [] { return ssd::cpu::simd_level_name(ssd::cpu::best_simd_level()); },
      "The best instruction-set level of this processor.");
  m.def(
      "simd_level", [](const std::string& name) { return ssd::cpu::simd_level_name(ssd::bindings::simd_level(name)); },
      py::arg("name"), "The level that `name` selects (empty: the best one); ValueError where it cannot run here.");
  ssd::bindings::bind_check_rows(m);
  ssd::bindings::bind_sdmlp_trainer(m);
  ssd::bindings::bind_topk_linear(m);
  ssd::bindings::bind_sparse_update(m);
  ssd::bindings::bind_activation_counts(m);
  ssd::bindings::bind_distill(m);
  ssd::bindings::bind_gaba_linear(m);
  ssd::bindings::bind_sparse_linear(m);
  ssd::bindings::bind_relu_fisher(m);
  ssd::bindings::bind_threshold_linear(m);
#ifdef SSD_OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
}

// activation_counts and top_n over raw pointers.
#include "ssd/activation_counts.h"

#include <new>

#include "bindings.h"

namespace py = pybind11;

namespace ssd::bindings {
namespace {

void dense(int dtype, int64_t batch, int64_t neurons, uintptr_t values, int64_t stride, uintptr_t counts, int threads,
           const std::string& simd) {
  const cpu::SimdLevel level = simd_level(simd);
  const cpu::ActivationCountsParams params{
      static_cast<cpu::Dtype>(dtype), batch,  neurons, pointer<const void>(values), stride,
      pointer<int64_t>(counts),       threads};
  py::gil_scoped_release release;
  cpu::activation_counts_dense(params, level);
}

void sparse(int dtype, int64_t entries, int64_t neurons, uintptr_t values, uintptr_t indices, uintptr_t counts) {
  int32_t bad = 0;
  bool ok;
  {
    py::gil_scoped_release release;
    ok = cpu::activation_counts_sparse(static_cast<cpu::Dtype>(dtype), entries, neurons, pointer<const void>(values),
                                       pointer<const int32_t>(indices), pointer<int64_t>(counts), &bad);
  }
  if (!ok) throw_index_error(bad, neurons);
}

void select(uintptr_t counts, int64_t neurons, int64_t n, uintptr_t selected) {
  py::gil_scoped_release release;
  if (!cpu::top_n(pointer<const int64_t>(counts), neurons, n, pointer<int64_t>(selected))) throw std::bad_alloc();
}

}  // namespace

void bind_activation_counts(py::module_& m) {
  m.def("activation_counts_dense", &dense);
  m.def("activation_counts_sparse", &sparse);
  m.def("top_n", &select);
}

}  // namespace ssd::bindings

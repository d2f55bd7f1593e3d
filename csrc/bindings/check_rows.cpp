// The check of sparse activations over raw pointers; ssd_kernels/_checks.py words what it finds.
#include "ssd/check_rows.h"

#include "bindings.h"

namespace py = pybind11;

namespace ssd::bindings {

void bind_check_rows(py::module_& m) {
  m.def("check_rows",
        [](uintptr_t offsets, int64_t samples, uintptr_t indices, int64_t count, int64_t neurons, bool ascending) {
          const cpu::RowsFinding found = cpu::check_rows(pointer<const int64_t>(offsets), samples,
                                                         pointer<const int32_t>(indices), count, neurons, ascending);
          return py::make_tuple(static_cast<int>(found.fault), found.value);
        });
}

}  // namespace ssd::bindings

// The distillation losses over raw pointers.
#include "ssd/distill.h"

#include <new>
#include <tuple>

#include "bindings.h"

namespace py = pybind11;

namespace ssd::bindings {
namespace {

// Runs a loss without the GIL. (0, 0), or (2, number): out of range, or (3, number): given twice.
template <class Loss>
py::tuple outcome(Loss loss) {
  cpu::DistillResult result;
  {
    py::gil_scoped_release release;
    result = loss();
  }
  if (result.status == cpu::DistillStatus::kNoMemory) throw std::bad_alloc();
  return py::make_tuple(static_cast<int>(result.status), result.bad);
}

py::tuple logits(int dtype, int teacher_dtype, int64_t batch, int64_t classes, int64_t old, uintptr_t values,
                 int64_t stride, uintptr_t teacher, int64_t teacher_stride, uintptr_t labels, uintptr_t old_classes,
                 double temperature, bool reverse, uintptr_t ce, uintptr_t kd, uintptr_t grad_ce, uintptr_t grad_kd,
                 int threads, const std::string& simd) {
  const cpu::SimdLevel level = simd_level(simd);
  const cpu::DistillLogitsParams params{static_cast<cpu::Dtype>(dtype),
                                        static_cast<cpu::Dtype>(teacher_dtype),
                                        batch,
                                        classes,
                                        old,
                                        pointer<const void>(values),
                                        stride,
                                        pointer<const void>(teacher),
                                        teacher_stride,
                                        pointer<const int64_t>(labels),
                                        pointer<const int64_t>(old_classes),
                                        temperature,
                                        reverse,
                                        pointer<void>(ce),
                                        pointer<void>(kd),
                                        pointer<void>(grad_ce),
                                        pointer<void>(grad_kd),
                                        threads};
  return outcome([&] { return cpu::distill_logits(params, level); });
}

// form, dtype, values, row stride, indices, offsets, k
using Form = std::tuple<int, int, uintptr_t, int64_t, uintptr_t, uintptr_t, int64_t>;

cpu::Activations activations(const Form& given) {
  const auto& [form, dtype, values, stride, indices, offsets, k] = given;
  return {static_cast<cpu::Form>(form),
          static_cast<cpu::Dtype>(dtype),
          pointer<const void>(values),
          stride,
          pointer<const int32_t>(indices),
          pointer<const int64_t>(offsets),
          k};
}

py::tuple hidden(int64_t batch, int64_t units, int64_t neurons, const Form& student, const Form& teacher,
                 uintptr_t selected, double temperature, bool reverse, uintptr_t kd, uintptr_t grad, int threads,
                 const std::string& simd) {
  const cpu::SimdLevel level = simd_level(simd);
  const cpu::DistillHiddenParams params{batch,
                                        units,
                                        neurons,
                                        activations(student),
                                        activations(teacher),
                                        pointer<const int64_t>(selected),
                                        temperature,
                                        reverse,
                                        pointer<void>(kd),
                                        pointer<void>(grad),
                                        threads};
  return outcome([&] { return cpu::distill_hidden(params, level); });
}

}  // namespace

void bind_distill(py::module_& m) {
  m.def("distill_logits", &logits);
  m.def("distill_hidden", &hidden);
}

}  // namespace ssd::bindings

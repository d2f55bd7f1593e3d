// The distillation losses over raw pointers.
#include "ssd/distill.h"

#include <new>
#include <tuple>

#include "bindings.h"

namespace py = pybind11;

namespace ssd::bindings {
namespace {

void logits(int dtype, int teacher_dtype, int64_t batch, int64_t classes, int64_t old, uintptr_t values, int64_t stride,
            uintptr_t teacher, int64_t teacher_stride, uintptr_t labels, uintptr_t old_classes, double temperature,
            bool reverse, uintptr_t ce, uintptr_t kd, uintptr_t grad_ce, uintptr_t grad_kd, int threads,
            const std::string& simd) {
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
                                        pointer<double>(ce),
                                        pointer<double>(kd),
                                        pointer<void>(grad_ce),
                                        pointer<void>(grad_kd),
                                        threads};
  py::gil_scoped_release release;
  if (!cpu::distill_logits(params, level)) throw std::bad_alloc();
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

// False where a unit is given twice.
bool hidden(int64_t batch, int64_t units, int64_t width, const Form& student, const Form& teacher, uintptr_t selected,
            double temperature, bool reverse, uintptr_t kd, uintptr_t grad, int threads, const std::string& simd) {
  const cpu::SimdLevel level = simd_level(simd);
  const cpu::DistillHiddenParams params{batch,
                                        units,
                                        width,
                                        activations(student),
                                        activations(teacher),
                                        pointer<const int64_t>(selected),
                                        temperature,
                                        reverse,
                                        pointer<double>(kd),
                                        pointer<void>(grad),
                                        threads};
  py::gil_scoped_release release;
  const cpu::DistillResult result = cpu::distill_hidden(params, level);
  if (result == cpu::DistillResult::kNoMemory) throw std::bad_alloc();
  return result == cpu::DistillResult::kDone;
}

}  // namespace

void bind_distill(py::module_& m) {
  m.def("distill_logits", &logits);
  m.def("distill_hidden", &hidden);
}

}  // namespace ssd::bindings

// One bind_<operation> per file of this folder, called by cpu.cpp.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "ssd/simd_level.h"

namespace ssd::bindings {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// The level asked for ("" is the one that SSD_SIMD names, or else the best), refused where this processor lacks it.
inline cpu::SimdLevel simd_level(std::string name) {
  const cpu::SimdLevel best = cpu::best_simd_level();
  if (const char* asked = name.empty() ? std::getenv("SSD_SIMD") : nullptr) name = asked;
  if (name.empty()) return best;
  cpu::SimdLevel level;
  if (!cpu::parse_simd_level(name.c_str(), &level))
    throw std::invalid_argument("SSD_SIMD=" + name + ": allowed are generic, avx2, avx512, avx512bf16");
  if (static_cast<int>(level) > static_cast<int>(best))
    throw std::invalid_argument("SSD_SIMD=" + name + ": this processor's best level is " + cpu::simd_level_name(best));
  return level;
}

[[noreturn]] inline void throw_index_error(int64_t bad, int64_t neurons) {
  throw pybind11::index_error("indices must be from 0 to R - 1 = " + std::to_string(neurons - 1) + ", got " +
                              std::to_string(bad));
}

void bind_check_rows(pybind11::module_& m);
void bind_sdmlp_trainer(pybind11::module_& m);
void bind_topk_linear(pybind11::module_& m);
void bind_sparse_update(pybind11::module_& m);
void bind_activation_counts(pybind11::module_& m);
void bind_distill(pybind11::module_& m);
void bind_gaba_linear(pybind11::module_& m);
void bind_sparse_linear(pybind11::module_& m);
void bind_relu_fisher(pybind11::module_& m);
void bind_threshold_linear(pybind11::module_& m);

}  // namespace ssd::bindings

// One bind_<family> per file cuda_<family>.cpp of this folder, called by cuda.cpp. Arguments are keywords alone:
// addresses as integers (0 is null), sizes, strides in elements, the device's number, the stream's address.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>

#include "ssd/dtype.h"

namespace ssd::bindings {

using Address = uintptr_t;

template <class T>
T* on_device(Address address) {
  return reinterpret_cast<T*>(address);
}

inline cpu::Dtype dtype_of(int code) { return static_cast<cpu::Dtype>(code); }

// Raises what a launcher says.
inline void check_launch(const char* error) {
  if (error) throw std::runtime_error(error);
}

void bind_cuda_rows(pybind11::module_& m);
void bind_cuda_select(pybind11::module_& m);
void bind_cuda_engine(pybind11::module_& m);

}  // namespace ssd::bindings

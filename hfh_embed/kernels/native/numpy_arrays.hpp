// Arrays through numpy's own C API, for calls of which a few hundred nanoseconds count. Of one source file only.
#pragma once

#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#include <numpy/arrayobject.h>

#include <cstdlib>

#include "binding.hpp"
#include "recycled.hpp"

namespace hfh {
namespace binding {

inline PyObject* float_type() {
  static PyObject* type = reinterpret_cast<PyObject*>(PyArray_TypeObjectFromType(NPY_FLOAT));
  return type;
}

inline PyObject* half_type() {
  static PyObject* type = reinterpret_cast<PyObject*>(PyArray_TypeObjectFromType(NPY_HALF));
  return type;
}

// The array behind an object, if it is numpy's own class, C-contiguous, aligned, in native order and of this type.
inline PyArrayObject* plain_array(nb::handle object, int type) {
  if (!PyArray_CheckExact(object.ptr())) return nullptr;
  auto* array = reinterpret_cast<PyArrayObject*>(object.ptr());
  return PyArray_TYPE(array) == type && PyArray_IS_C_CONTIGUOUS(array) && PyArray_ISBEHAVED_RO(array) ? array : nullptr;
}

// A new array, uninitialised. A large one begins on a cache line, where numpy's own begin 16 bytes behind one: stores of rows that
// cross lines cost 1 ns a row of 64 in the second-level cache and 5 ns behind it.
inline nb::object new_array(int dims, npy_intp* shape, int type) {
  constexpr size_t kLarge = size_t{64} << 10;
  size_t bytes = type == NPY_HALF ? 2 : 4;
  for (int k = 0; k < dims; ++k) {
    const auto length = static_cast<size_t>(shape[k]);
    if (length != 0 && bytes > (size_t{1} << 46) / length) bytes = 0;  // numpy says what is wrong with the shape
    bytes *= length;
  }
  if (bytes < kLarge) {
    PyObject* made = PyArray_SimpleNew(dims, shape, type);
    if (made == nullptr) throw nb::python_error();
    return nb::steal(made);
  }
  void* data = line_aligned(bytes);
  const nb::capsule owner(data, [](void* held) noexcept { std::free(held); });
  PyObject* made = PyArray_SimpleNewFromData(dims, shape, type, data);
  if (made == nullptr) throw nb::python_error();
  nb::object array = nb::steal(made);
  if (PyArray_SetBaseObject(reinterpret_cast<PyArrayObject*>(made), nb::object(owner).release().ptr()) < 0) throw nb::python_error();
  return array;
}

}  // namespace binding
}  // namespace hfh

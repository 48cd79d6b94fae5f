// Arrays through numpy's own C API, for calls of which a few hundred nanoseconds count. Each file that includes this imports it once.
#pragma once

#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#include <numpy/arrayobject.h>

#include <algorithm>
#include <cstdlib>

#include "binding.hpp"
#include "recycled.hpp"

namespace hfh {
namespace binding {
namespace {

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

// A new array of the ids' shape and one more axis of ``dim`` entries.
inline nb::object array_for(PyArrayObject* ids, int64_t dim, bool half) {
  const int dims = PyArray_NDIM(ids);
  npy_intp shape[32];
  std::copy_n(PyArray_DIMS(ids), dims, shape);
  shape[dims] = dim;
  return new_array(dims + 1, shape, half ? NPY_HALF : NPY_FLOAT);
}

// Where rows are wanted: a C-contiguous (rows, dim) array of float32 or float16.
inline void* output(nb::handle out, int64_t rows, int64_t dim, bool& half) {
  auto* array = reinterpret_cast<PyArrayObject*>(out.ptr());
  require(PyArray_Check(out.ptr()) && PyArray_NDIM(array) == 2 && PyArray_DIM(array, 0) == rows && PyArray_DIM(array, 1) == dim,
          "out has the wrong shape");
  half = PyArray_TYPE(array) == NPY_HALF;
  require(half || PyArray_TYPE(array) == NPY_FLOAT, "out must be float32 or float16");
  require(PyArray_IS_C_CONTIGUOUS(array) && PyArray_ISBEHAVED(array), "out must be writable and contiguous");
  return PyArray_DATA(array);
}

}  // namespace
}  // namespace binding
}  // namespace hfh

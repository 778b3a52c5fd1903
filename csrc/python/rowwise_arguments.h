// What the element-wise and the row-wise functions have in common.
#pragma once

#include <string_view>

#include "core/rowwise.h"
#include "python/arrays.h"

namespace pyattn::python {

template <class T>
StridedArray<T> strided_array(const py::array& array, const Argument& argument) {
  StridedArray<T> view;
  view.data = element_data<T>(array, argument);
  for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
    view.shape.push_back(array.shape(axis));
    view.stride.push_back(element_stride<T>(array, axis, argument));
  }
  return view;
}

// Calls body.template operator()<T>() for the float type of `array`.
template <class Body>
py::array with_float_type(const py::array& array, const Argument& argument, const Body& body) {
  if (has_dtype<float>(array)) return body.template operator()<float>();
  if (has_dtype<double>(array)) return body.template operator()<double>();
  throw_dtype(argument, array, "float32, float64");
}

// A new array of the shape of `view`, filled by fill(data) without the interpreter lock.
template <class T, class Fill>
py::array filled_like(const StridedArray<T>& view, std::string_view function, const Fill& fill) {
  auto result = new_array<T>(view.shape, function);
  T* data = output_data<T>(result);
  {
    const py::gil_scoped_release released;
    fill(data);
  }
  return result;
}

}  // namespace pyattn::python

// The only file that knows NumPy arrays. Nothing here casts or copies: an array has the right dtype
// and becomes a view of its own memory, or an error names the function, the argument and what was
// found.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "core/params.h"

namespace pyattn::python {

namespace py = pybind11;

// Where an array came from, for messages.
struct Argument {
  std::string_view function;
  std::string_view name;

  std::string text() const { return std::string(function) + ": " + std::string(name); }
};

inline std::string shape_text(const py::array& array) {
  std::string text = "(";
  for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
    text += (axis > 0 ? ", " : "") + std::to_string(array.shape(axis));
  }
  return text + (array.ndim() == 1 ? ",)" : ")");
}

inline std::string dtype_text(const py::array& array) {
  return py::str(static_cast<py::object>(array.dtype())).cast<std::string>();
}

// The dtypes that kernels read or write. bfloat16 is that of ml_dtypes, whose number NumPy gives
// out when it is registered.
enum class Element { float32, float64, float16, bfloat16, boolean, int32, int64, other };

Element element_of(const py::array& array);

template <class X>
constexpr Element element_for() {
  if constexpr (std::is_same_v<X, float>) return Element::float32;
  if constexpr (std::is_same_v<X, double>) return Element::float64;
  if constexpr (std::is_same_v<X, Half>) return Element::float16;
  if constexpr (std::is_same_v<X, BFloat16>) return Element::bfloat16;
  if constexpr (std::is_same_v<X, bool>) return Element::boolean;
  if constexpr (std::is_same_v<X, std::int32_t>) return Element::int32;
  if constexpr (std::is_same_v<X, std::int64_t>) return Element::int64;
}

const char* element_name(Element element);
py::dtype dtype_for(Element element);

// Same kind, size and byte order.
template <class X>
bool has_dtype(const py::array& array) {
  return element_of(array) == element_for<X>();
}

[[noreturn]] inline void throw_dtype(const Argument& argument, const py::array& array,
                                     std::string_view supported) {
  throw py::type_error(argument.text() + " has dtype " + dtype_text(array) +
                       "; supported: " + std::string(supported));
}

// An array as it was given; lists and scalars are refused rather than converted.
inline py::array as_array(const py::handle& object, const Argument& argument) {
  if (!py::isinstance<py::array>(object)) {
    throw py::type_error(argument.text() + " must be a numpy.ndarray, got " +
                         py::str(py::type::of(object).attr("__name__")).cast<std::string>());
  }
  return py::reinterpret_borrow<py::array>(object);
}

// Strides in elements of `axis`. A zero-length or one-element axis has no stride to speak of.
template <class T>
std::int64_t element_stride(const py::array& array, py::ssize_t axis, const Argument& argument) {
  if (array.shape(axis) <= 1) return 0;
  const py::ssize_t bytes = array.strides(axis);
  constexpr auto kSize = static_cast<py::ssize_t>(sizeof(T));
  if (bytes % kSize != 0) {
    throw py::value_error(argument.text() + " has a stride of " + std::to_string(bytes) +
                          " bytes on axis " + std::to_string(axis) +
                          ", which is not a multiple of its item size " + std::to_string(kSize));
  }
  return bytes / kSize;
}

template <class T>
const T* element_data(const py::array& array, const Argument& argument) {
  const void* data = array.data();
  if (array.size() > 0 && reinterpret_cast<std::uintptr_t>(data) % alignof(T) != 0) {
    throw py::value_error(argument.text() + " is not aligned to its item size " +
                          std::to_string(sizeof(T)));
  }
  return static_cast<const T*>(data);
}

inline void check_rank(const py::array& array, py::ssize_t rank, std::string_view dimensions,
                       const Argument& argument) {
  if (array.ndim() == rank) return;
  throw py::value_error(argument.text() + " must have shape " + std::string(dimensions) + ", got " +
                        shape_text(array));
}

// A view of an array of rank `Rank`; the dtype has been checked.
template <class T, int Rank>
View<const T, Rank> input_view(const py::array& array, const Argument& argument) {
  View<const T, Rank> view;
  view.data = element_data<T>(array, argument);
  for (int axis = 0; axis < Rank; ++axis) {
    view.shape[axis] = array.shape(axis);
    view.stride[axis] = element_stride<T>(array, axis, argument);
  }
  // A last axis of one element is as good as contiguous.
  if (view.shape[Rank - 1] <= 1) view.stride[Rank - 1] = 1;
  return view;
}

// A new C-ordered array of that many bytes. A large one lies in memory that an earlier result had,
// if that is gone: new pages from the system take longer than many a kernel. NumPy owns the memory:
// a large result is a view of a flat array that nobody else sees.
py::array array_in_memory(const py::dtype& dtype, const std::vector<py::ssize_t>& shape,
                          std::int64_t bytes);

// A new C-ordered array; the number of bytes is checked, NumPy's own product may overflow.
template <class X>
py::array new_array(const std::vector<std::int64_t>& shape, std::string_view function) {
  std::int64_t bytes = sizeof(X);
  bool empty = false;
  for (const std::int64_t length : shape) empty |= length == 0;
  for (const std::int64_t length : shape) {
    if (empty || length <= 1) continue;
    if (bytes > std::numeric_limits<std::int64_t>::max() / length) {
      throw py::value_error(std::string(function) + ": the result would have too many elements");
    }
    bytes *= length;
  }
  const std::vector<py::ssize_t> lengths(shape.begin(), shape.end());
  return array_in_memory(dtype_for(element_for<X>()), lengths, empty ? 0 : bytes);
}

template <class X>
X* output_data(py::array& array) {
  return static_cast<X*>(array.mutable_data());
}

template <class X, int Rank>
View<X, Rank> output_view(py::array& array) {
  View<X, Rank> view;
  view.data = output_data<X>(array);
  std::int64_t stride = 1;
  for (int axis = Rank - 1; axis >= 0; --axis) {
    view.shape[axis] = array.shape(axis);
    view.stride[axis] = stride;
    stride *= view.shape[axis];
  }
  return view;
}

}  // namespace pyattn::python

#include <pybind11/pybind11.h>

#include "core/isa.h"
#include "python/register.h"
#include "python/rowwise_arguments.h"

namespace pyattn::python {
namespace {

template <class Select>
py::array pointwise(const py::object& x, std::string_view function, const Select& select) {
  const Argument argument{function, "x"};
  const py::array array = as_array(x, argument);
  return with_float_type(array, argument, [&]<class T>() {
    const auto view = strided_array<T>(array, argument);
    return filled_like(view, function, [&](T* out) {
      run_pointwise<T>(view, out, select(kernels_of<T>(kernels())));
    });
  });
}

py::array erf(const py::object& x) {
  return pointwise(x, "erf", [](const auto& table) { return table.erf; });
}

py::array gelu(const py::object& x) {
  return pointwise(x, "gelu", [](const auto& table) { return table.gelu; });
}

}  // namespace

void register_elementwise(py::module_& module) {
  module.def("erf", &erf, py::arg("x"), "The error function of every element.");
  module.def("gelu", &gelu, py::arg("x"), "x (1 + erf(x / sqrt 2)) / 2 of every element.");
}

}  // namespace pyattn::python

#include <pybind11/pybind11.h>

#include "python/register.h"
#include "python/rowwise_arguments.h"

namespace pyattn::python {
namespace {

py::array rows_argument(const py::object& x, const Argument& argument) {
  const py::array array = as_array(x, argument);
  if (array.ndim() == 0) {
    throw py::value_error(argument.text() + " must have at least one axis, got shape ()");
  }
  return array;
}

py::array softmax(const py::object& x) {
  const Argument argument{"softmax", "x"};
  const py::array array = rows_argument(x, argument);
  return with_float_type(array, argument, [&]<class T>() {
    const auto view = strided_array<T>(array, argument);
    return filled_like(view, "softmax", [&](T* out) { run_softmax<T>(view, out); });
  });
}

// A weight or bias as a dense vector, or an empty one for None.
template <class T>
std::vector<T> row_parameter(const py::object& object, std::int64_t length,
                             const Argument& argument) {
  if (object.is_none()) return {};
  const py::array array = as_array(object, argument);
  if (!has_dtype<T>(array)) {
    throw_dtype(argument, array,
                sizeof(T) == 4 ? "float32, the dtype of x" : "float64, the dtype of x");
  }
  if (array.ndim() != 1 || array.shape(0) != length) {
    throw py::value_error(argument.text() + " must have shape (" + std::to_string(length) +
                          ",), the last axis of x; got " + shape_text(array));
  }
  const auto view = input_view<T, 1>(array, argument);
  std::vector<T> copy;
  copy.reserve(static_cast<std::size_t>(length));
  for (std::int64_t i = 0; i < length; ++i) copy.push_back(view.data[i * view.stride[0]]);
  return copy;
}

py::array layer_norm(const py::object& x, const py::object& weight, const py::object& bias,
                     double eps) {
  const Argument argument{"layer_norm", "x"};
  const py::array array = rows_argument(x, argument);
  return with_float_type(array, argument, [&]<class T>() {
    const auto view = strided_array<T>(array, argument);
    const auto weights = row_parameter<T>(weight, view.shape.back(), {"layer_norm", "weight"});
    const auto biases = row_parameter<T>(bias, view.shape.back(), {"layer_norm", "bias"});
    const LayerNormParams<T> params{
        .weight = weights.empty() ? nullptr : weights.data(),
        .bias = biases.empty() ? nullptr : biases.data(),
        .eps = static_cast<T>(eps),
    };
    return filled_like(view, "layer_norm", [&](T* out) { run_layer_norm<T>(view, out, params); });
  });
}

}  // namespace

void register_normalisation(py::module_& module) {
  module.def("softmax", &softmax, py::arg("x"), "exp(x - max) / sum over the last axis.");
  module.def("layer_norm", &layer_norm, py::arg("x"), py::arg("weight"), py::arg("bias"),
             py::arg("eps"), "(x - mean) / sqrt(var + eps) * weight + bias over the last axis.");
}

}  // namespace pyattn::python

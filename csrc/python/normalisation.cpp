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

// The axes of x from `axis` on, as a number from 0.
std::size_t first_axis(const py::array& x, std::int64_t axis, const Argument& argument) {
  if (axis < -x.ndim() || axis >= x.ndim()) {
    throw py::value_error(argument.text() + " has no axis " + std::to_string(axis) + ", got " +
                          shape_text(x));
  }
  return static_cast<std::size_t>(axis < 0 ? axis + x.ndim() : axis);
}

// A scale as it is broadcast to `shape`: repeated entries have stride 0.
template <class T>
StridedArray<T> broadcast_scale(const py::object& object, std::vector<std::int64_t> shape,
                                const Argument& argument) {
  const py::array array = as_array(object, argument);
  if (!has_dtype<T>(array)) {
    throw_dtype(argument, array,
                sizeof(T) == 4 ? "float32, the dtype of x" : "float64, the dtype of x");
  }
  const StridedArray<T> given = strided_array<T>(array, argument);
  StridedArray<T> scale{.data = given.data, .shape = std::move(shape), .stride = {}};
  scale.stride.resize(scale.shape.size());
  bool fits = given.shape.size() <= scale.shape.size();
  for (std::size_t i = 1; fits && i <= given.shape.size(); ++i) {
    const std::int64_t size = given.shape[given.shape.size() - i];
    fits = size == 1 || size == scale.shape[scale.shape.size() - i];
    if (size != 1) {
      scale.stride[scale.shape.size() - i] = given.stride[given.stride.size() - i];
    }
  }
  if (!fits) {
    throw py::value_error(argument.text() + " must broadcast to the last " +
                          std::to_string(scale.shape.size()) + " axes of x; got " +
                          shape_text(array));
  }
  return scale;
}

py::array rms_norm(const py::object& x, const py::object& scale, std::int64_t axis,
                   double epsilon) {
  const Argument argument{"rms_norm", "x"};
  const py::array array = rows_argument(x, argument);
  return with_float_type(array, argument, [&]<class T>() {
    const auto view = strided_array<T>(array, argument);
    const auto first =
        view.shape.begin() + static_cast<std::ptrdiff_t>(first_axis(array, axis, argument));
    const auto scales = broadcast_scale<T>(scale, {first, view.shape.end()}, {"rms_norm", "scale"});
    return filled_like(view, "rms_norm", [&](T* out) {
      run_rms_norm<T>(view, scales, static_cast<T>(epsilon), out);
    });
  });
}

template <class T>
py::tuple rms_norm_gradient_of(const py::array& x, const py::object& scale,
                               const py::object& gradient, std::int64_t axis, double epsilon,
                               bool want_scale) {
  const Argument argument{"rms_norm", "gradient"};
  const py::array given = as_array(gradient, argument);
  if (!has_dtype<T>(given)) throw_dtype(argument, given, "that of x");
  RmsNormGradient<T> arrays{.epsilon = static_cast<T>(epsilon)};
  arrays.input = strided_array<T>(x, {"rms_norm", "x"});
  arrays.gradient = strided_array<T>(given, argument);
  if (arrays.gradient.shape != arrays.input.shape) {
    throw py::value_error(argument.text() + " must have the shape of x, " + shape_text(x) +
                          "; got " + shape_text(given));
  }
  const auto first = arrays.input.shape.begin() +
                     static_cast<std::ptrdiff_t>(first_axis(x, axis, {"rms_norm", "x"}));
  arrays.scale =
      broadcast_scale<T>(scale, {first, arrays.input.shape.end()}, {"rms_norm", "scale"});
  auto of_input = new_array<T>(arrays.input.shape, "rms_norm");
  arrays.input_gradient = output_data<T>(of_input);
  py::object of_scale = py::none();
  if (want_scale) {
    auto sums = new_array<T>(arrays.scale.shape, "rms_norm");
    arrays.scale_gradient = output_data<T>(sums);
    of_scale = std::move(sums);
  }
  {
    const py::gil_scoped_release released;
    run_rms_norm_gradient<T>(arrays);
  }
  return py::make_tuple(std::move(of_input), std::move(of_scale));
}

py::tuple rms_norm_gradient(const py::object& x, const py::object& scale,
                            const py::object& gradient, std::int64_t axis, double epsilon,
                            bool want_scale) {
  const Argument argument{"rms_norm", "x"};
  const py::array array = rows_argument(x, argument);
  if (has_dtype<float>(array)) {
    return rms_norm_gradient_of<float>(array, scale, gradient, axis, epsilon, want_scale);
  }
  if (has_dtype<double>(array)) {
    return rms_norm_gradient_of<double>(array, scale, gradient, axis, epsilon, want_scale);
  }
  throw_dtype(argument, array, "float32, float64");
}

}  // namespace

void register_normalisation(py::module_& module) {
  module.def("softmax", &softmax, py::arg("x"), "exp(x - max) / sum over the last axis.");
  module.def("layer_norm", &layer_norm, py::arg("x"), py::arg("weight"), py::arg("bias"),
             py::arg("eps"), "(x - mean) / sqrt(var + eps) * weight + bias over the last axis.");
  module.def("rms_norm", &rms_norm, py::arg("x"), py::arg("scale"), py::arg("axis"),
             py::arg("epsilon"),
             "x / sqrt(mean(x^2) + epsilon) * scale over the axes from `axis` on.");
  module.def("rms_norm_gradient", &rms_norm_gradient, py::arg("x"), py::arg("scale"),
             py::arg("gradient"), py::arg("axis"), py::arg("epsilon"), py::arg("want_scale"),
             "The gradients of rms_norm with respect to x and, if wanted, scale.");
}

}  // namespace pyattn::python

#include "core/product.h"

#include <pybind11/pybind11.h>

#include "python/arrays.h"
#include "python/register.h"

namespace pyattn::python {
namespace {

// Rows and columns of a matrix, one of which has unit stride.
template <class T>
View<const T, 2> matrix(const py::object& object, const Argument& argument) {
  const py::array array = as_array(object, argument);
  if (!has_dtype<T>(array)) throw_dtype(argument, array, "that of left");
  check_rank(array, 2, "(rows, columns)", argument);
  auto view = input_view<T, 2>(array, argument);
  if (view.shape[0] <= 1 && view.stride[1] != 1) view.stride[0] = 1;
  if (view.stride[0] != 1 && view.stride[1] != 1) {
    throw py::value_error(argument.text() + " must have unit stride along an axis, got " +
                          shape_text(array));
  }
  return view;
}

template <class T>
py::array product_of(const py::object& left, const py::object& right, const py::object& bias,
                     const py::object& add_to) {
  const auto a = matrix<T>(left, {"product", "left"});
  const auto b = matrix<T>(right, {"product", "right"});
  if (a.shape[1] != b.shape[0]) {
    throw py::value_error("product: left has " + std::to_string(a.shape[1]) +
                          " columns, right has " + std::to_string(b.shape[0]) + " rows");
  }
  ProductParams<T> params{.rows = a.shape[0], .columns = b.shape[1], .depth = a.shape[1]};
  params.left = a.data;
  params.left_row = a.stride[0];
  params.left_depth = a.stride[1];
  params.right = b.data;
  params.right_depth = b.stride[0];
  params.right_column = b.stride[1];
  const auto check_shape = [](const py::array& array, bool fits, const Argument& argument) {
    if (!has_dtype<T>(array)) throw_dtype(argument, array, "that of left");
    if (!fits || (array.flags() & py::array::c_style) == 0) {
      throw py::value_error(argument.text() + " must be dense and fit the result, got " +
                            shape_text(array));
    }
  };
  if (!bias.is_none()) {
    const Argument argument{"product", "bias"};
    const py::array array = as_array(bias, argument);
    check_shape(array, array.ndim() == 1 && array.shape(0) == params.columns, argument);
    params.bias = element_data<T>(array, argument);
  }
  py::array out;
  if (add_to.is_none()) {
    out = new_array<T>({params.rows, params.columns}, "product");
  } else {
    const Argument argument{"product", "add_to"};
    out = as_array(add_to, argument);
    const bool fits =
        out.ndim() == 2 && out.shape(0) == params.rows && out.shape(1) == params.columns;
    check_shape(out, fits && out.writeable(), argument);
    element_data<T>(out, argument);
    params.add = true;
  }
  params.out = output_data<T>(out);
  params.out_row = params.columns;
  {
    const py::gil_scoped_release released;
    run_product<T>(params);
  }
  return out;
}

py::array product(const py::object& left, const py::object& right, const py::object& bias,
                  const py::object& add_to) {
  const Argument argument{"product", "left"};
  const py::array array = as_array(left, argument);
  if (has_dtype<float>(array)) return product_of<float>(left, right, bias, add_to);
  if (has_dtype<double>(array)) return product_of<double>(left, right, bias, add_to);
  throw_dtype(argument, array, "float32, float64");
}

}  // namespace

void register_product(py::module_& module) {
  module.def("product", &product, py::arg("left"), py::arg("right"), py::arg("bias") = py::none(),
             py::arg("add_to") = py::none(), "left @ right + bias, or added to a matrix.");
}

}  // namespace pyattn::python

// The backward pass of scaled dot-product attention, and the column mass, which is computed by the
// same kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <set>

#include "core/backward.h"
#include "python/register.h"
#include "python/sdpa_call.h"

namespace pyattn::python {
namespace {

constexpr std::string_view kBackward = "sdpa_backward";
constexpr std::string_view kMass = "column_mass";

// What came out of the forward pass, and its gradients.
struct Results {
  py::array out;
  py::array lse;
  py::array grad_out;
  py::object grad_lse;
};

void check_query_key(const py::array& query, const py::array& key, std::string_view function) {
  check_rank(query, 4, "(B, H, T, D)", {function, "query"});
  check_rank(key, 4, "(B, G, S, D)", {function, "key"});
  const py::ssize_t heads = query.shape(1);
  const py::ssize_t groups = key.shape(1);
  const bool fits = query.shape(0) == key.shape(0) && query.shape(3) == key.shape(3) &&
                    (groups == 0 ? heads == 0 : heads % groups == 0);
  if (!fits) {
    throw py::value_error(std::string(function) +
                          ": query and key must share B and D, and H be a multiple of G; got "
                          "query " +
                          shape_text(query) + ", key " + shape_text(key));
  }
  check_depths(query.shape(3), query.shape(3), function);
}

void check_value(const py::array& key, const py::array& value) {
  const Argument argument{kBackward, "value"};
  check_rank(value, 4, "(B, G, S, E)", argument);
  for (int axis = 0; axis < 3; ++axis) {
    if (key.shape(axis) == value.shape(axis)) continue;
    throw py::value_error(argument.text() + " must share B, G and S with key; got value " +
                          shape_text(value) + ", key " + shape_text(key));
  }
  check_depths(key.shape(3), value.shape(3), kBackward);
}

// A new array for the gradient of the array given, C-ordered.
template <class X>
py::array gradient_like(const py::array& array, View<X, 4>& view) {
  const auto rank = static_cast<int>(array.ndim());
  std::vector<std::int64_t> shape(array.shape(), array.shape() + rank);
  py::array gradient = new_array<X>(shape, kBackward);
  view.data = output_data<X>(gradient);
  std::int64_t stride = 1;
  for (int axis = 3; axis >= 0; --axis) {
    const int source = axis - (4 - rank);
    view.shape[axis] = source < 0 ? 1 : gradient.shape(source);
    view.stride[axis] = stride;
    stride *= view.shape[axis];
  }
  return gradient;
}

template <class X>
py::object run_backward_of(const py::array& query, const py::array& key, const py::array& value,
                           const py::object& mask, const SdpaOptions& options,
                           const Results& results, const std::set<std::string>& want) {
  using T = Compute<X>;
  const std::vector<std::int64_t> rows = {query.shape(0), query.shape(1), query.shape(2)};
  const std::vector<std::int64_t> outputs = {rows[0], rows[1], rows[2], value.shape(3)};
  const std::int64_t keys = key.shape(2);
  AttentionParams<X> given{
      .query = input_view<X, 4>(query, {kBackward, "query"}),
      .key = input_view<X, 4>(key, {kBackward, "key"}),
      .value = input_view<X, 4>(value, {kBackward, "value"}),
      .batch = query.shape(0),
      .keys = keys,
  };
  given.mask = mask_view<X>(mask, {rows[0], rows[1], rows[2], keys}, kBackward, given.keys);
  given.given_lse = checked_view<T, 3>(results.lse, rows, {kBackward, "lse"});
  SdpaCall<X> call(given, options, kBackward);
  call.set_lengths(keys);
  BackwardParams<X> params{
      .forward = call.params(),
      .out = checked_view<X, 4>(results.out, outputs, {kBackward, "out"}),
      .grad_out = checked_view<X, 4>(results.grad_out, outputs, {kBackward, "grad_out"}),
  };
  if (!results.grad_lse.is_none()) {
    const Argument argument{kBackward, "grad_lse"};
    params.grad_lse = checked_view<T, 3>(as_array(results.grad_lse, argument), rows, argument);
  }
  py::object gradients[4] = {py::none(), py::none(), py::none(), py::none()};
  if (want.contains("query")) gradients[0] = gradient_like<X>(query, params.grad_query);
  if (want.contains("key")) gradients[1] = gradient_like<X>(key, params.grad_key);
  if (want.contains("value")) gradients[2] = gradient_like<X>(value, params.grad_value);
  if (want.contains("mask") && given.mask.kind == MaskKind::additive) {
    gradients[3] = gradient_like<X>(as_array(mask, {kBackward, "mask"}), params.grad_mask);
  }
  {
    const py::gil_scoped_release released;
    run_backward(params, attention_kernels_of<X>(kernels()).backward);
  }
  return py::make_tuple(gradients[0], gradients[1], gradients[2], gradients[3]);
}

py::object sdpa_backward(const py::object& query, const py::object& key, const py::object& value,
                         const py::object& mask, double scale, std::int64_t right,
                         const py::object& options, const py::object& out, const py::object& lse,
                         const py::object& grad_out, const py::object& grad_lse,
                         const std::set<std::string>& want) {
  const py::array q = as_array(query, {kBackward, "query"});
  const py::array k = as_array(key, {kBackward, "key"});
  const py::array v = as_array(value, {kBackward, "value"});
  const Element element =
      common_element({{"query", &q}, {"key", &k}, {"value", &v}}, kFloats, kBackward);
  check_query_key(q, k, kBackward);
  check_value(k, v);
  const Results results{as_array(out, {kBackward, "out"}), as_array(lse, {kBackward, "lse"}),
                        as_array(grad_out, {kBackward, "grad_out"}), grad_lse};
  const SdpaOptions parsed = sdpa_options(options, scale, right, kBackward);
  return with_element(
      element, [&]<class X>() { return run_backward_of<X>(q, k, v, mask, parsed, results, want); });
}

template <class X>
py::object run_mass(const py::array& query, const py::array& key, const py::object& mask,
                    const SdpaOptions& options) {
  using T = Compute<X>;
  const std::vector<std::int64_t> rows = {query.shape(0), query.shape(1), query.shape(2)};
  const std::int64_t keys = key.shape(2);
  AttentionParams<X> given{
      .query = input_view<X, 4>(query, {kMass, "query"}),
      .key = input_view<X, 4>(key, {kMass, "key"}),
      .value = input_view<X, 4>(key, {kMass, "key"}),
      .batch = rows[0],
      .keys = keys,
  };
  given.mask = mask_view<X>(mask, {rows[0], rows[1], rows[2], keys}, kMass, given.keys);
  const Argument argument{kMass, "lse"};
  given.given_lse = checked_view<T, 3>(as_array(options.lse, argument), rows, argument);
  SdpaCall<X> call(given, options, kMass);
  call.set_lengths(keys);
  BackwardParams<X> params{.forward = call.params()};
  params.forward.dropout.on = false;  // the weights are those before it
  py::array mass = new_array<T>({rows[0], rows[1], keys}, kMass);
  params.column_mass = output_view<T, 3>(mass);
  {
    const py::gil_scoped_release released;
    run_column_mass(params, attention_kernels_of<X>(kernels()).backward);
  }
  return mass;
}

py::object column_mass(const py::object& query, const py::object& key, const py::object& mask,
                       double scale, std::int64_t right, const py::object& options) {
  const py::array q = as_array(query, {kMass, "query"});
  const py::array k = as_array(key, {kMass, "key"});
  const Element element = common_element({{"query", &q}, {"key", &k}}, kFloats, kMass);
  check_query_key(q, k, kMass);
  const SdpaOptions parsed = sdpa_options(options, scale, right, kMass);
  return with_element(element, [&]<class X>() { return run_mass<X>(q, k, mask, parsed); });
}

}  // namespace

void register_sdpa_backward(py::module_& module) {
  module.def("sdpa_backward", &sdpa_backward, py::arg("query"), py::arg("key"), py::arg("value"),
             py::arg("mask"), py::arg("scale"), py::arg("right"), py::arg("options"),
             py::arg("out"), py::arg("lse"), py::arg("grad_out"), py::arg("grad_lse"),
             py::arg("want"), "Gradients of sdpa: (query, key, value, mask), None if not in want.");
  module.def("column_mass", &column_mass, py::arg("query"), py::arg("key"), py::arg("mask"),
             py::arg("scale"), py::arg("right"), py::arg("options"),
             "The sum over the queries of the weights, from their log-sum-exp.");
}

}  // namespace pyattn::python

// The backward passes of the mechanisms, and the column mass, which is computed by the same
// kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <set>

#include "core/backward.h"
#include "python/register.h"
#include "python/sdpa_call.h"

namespace pyattn::python {
namespace {

constexpr std::string_view kSdpa = "sdpa_backward";
constexpr std::string_view kAdditive = "additive_backward";
constexpr std::string_view kMass = "column_mass";

// What came out of the forward pass, and its gradients.
struct Results {
  std::string_view function;
  py::array out;
  py::array lse;
  py::array grad_out;
  py::object grad_lse;
};

// A new array for the gradient of the array given, C-ordered.
template <class X>
py::array gradient_like(const py::array& array, View<X, 4>& view, std::string_view function) {
  const auto rank = static_cast<int>(array.ndim());
  std::vector<std::int64_t> shape(array.shape(), array.shape() + rank);
  py::array gradient = new_array<X>(shape, function);
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
                           const py::object& v, const py::object& mask, const SdpaOptions& options,
                           const Results& results, const std::set<std::string>& want) {
  using T = Compute<X>;
  const std::string_view name = results.function;
  const std::vector<std::int64_t> rows = {query.shape(0), query.shape(1), query.shape(2)};
  const std::vector<std::int64_t> outputs = {rows[0], rows[1], rows[2], value.shape(3)};
  const std::int64_t keys = key.shape(2);
  AttentionParams<X> given{
      .query = input_view<X, 4>(query, {name, "query"}),
      .key = input_view<X, 4>(key, {name, "key"}),
      .value = input_view<X, 4>(value, {name, "value"}),
      .batch = query.shape(0),
      .keys = keys,
  };
  given.mask = mask_view<X>(mask, {rows[0], rows[1], rows[2], keys}, name, given.keys);
  given.given_lse = checked_view<T, 3>(results.lse, rows, {name, "lse"});
  SdpaCall<X> call(given, options, name);
  call.set_lengths(keys);
  BackwardParams<X> params{
      .forward = call.params(),
      .out = checked_view<X, 4>(results.out, outputs, {name, "out"}),
      .grad_out = checked_view<X, 4>(results.grad_out, outputs, {name, "grad_out"}),
  };
  if (!results.grad_lse.is_none()) {
    const Argument argument{name, "grad_lse"};
    params.grad_lse = checked_view<T, 3>(as_array(results.grad_lse, argument), rows, argument);
  }
  std::vector<T> direction;
  if (!v.is_none()) direction = dense_rows<T>(v, rows[1], query.shape(3), name);
  if (!direction.empty()) params.forward.v = direction.data();
  std::vector<py::object> gradients(v.is_none() ? 4 : 5, py::none());
  if (want.contains("query")) gradients[0] = gradient_like<X>(query, params.grad_query, name);
  if (want.contains("key")) gradients[1] = gradient_like<X>(key, params.grad_key, name);
  if (want.contains("value")) gradients[2] = gradient_like<X>(value, params.grad_value, name);
  if (want.contains("mask") && given.mask.kind == MaskKind::additive) {
    gradients[3] = gradient_like<X>(as_array(mask, {name, "mask"}), params.grad_mask, name);
  }
  if (want.contains("v")) {
    auto array = new_array<T>({rows[1], query.shape(3)}, name);
    params.grad_v = output_data<T>(array);
    std::fill_n(params.grad_v, array.size(), T(0));
    gradients[4] = std::move(array);
  }
  {
    const py::gil_scoped_release released;
    const auto& table = attention_kernels_of<X>(kernels());
    run_backward(params, v.is_none() ? table.backward : table.additive_backward);
  }
  return py::tuple(py::cast(gradients));
}

py::object sdpa_backward(const py::object& query, const py::object& key, const py::object& value,
                         const py::object& mask, double scale, std::int64_t right,
                         const py::object& options, const py::object& out, const py::object& lse,
                         const py::object& grad_out, const py::object& grad_lse,
                         const std::set<std::string>& want) {
  const py::array q = as_array(query, {kSdpa, "query"});
  const py::array k = as_array(key, {kSdpa, "key"});
  const py::array v = as_array(value, {kSdpa, "value"});
  const Element element =
      common_element({{"query", &q}, {"key", &k}, {"value", &v}}, kFloats, kSdpa);
  check_shapes(q, k, v, kSdpa);
  const Results results{kSdpa, as_array(out, {kSdpa, "out"}), as_array(lse, {kSdpa, "lse"}),
                        as_array(grad_out, {kSdpa, "grad_out"}), grad_lse};
  const SdpaOptions parsed = sdpa_options(options, scale, right, kSdpa);
  return with_element(element, [&]<class X>() {
    return run_backward_of<X>(q, k, v, py::none(), mask, parsed, results, want);
  });
}

py::object additive_backward(const py::object& query, const py::object& key,
                             const py::object& value, const py::object& v, const py::object& mask,
                             std::int64_t right, const py::object& options, const py::object& out,
                             const py::object& lse, const py::object& grad_out,
                             const py::object& grad_lse, const std::set<std::string>& want) {
  const py::array q = as_array(query, {kAdditive, "query"});
  const py::array k = as_array(key, {kAdditive, "key"});
  const py::array x = as_array(value, {kAdditive, "value"});
  const Element element =
      common_element({{"query", &q}, {"key", &k}, {"value", &x}}, kFloats, kAdditive);
  check_own_keys(q, k, x, kAdditive);
  const Results results{kAdditive, as_array(out, {kAdditive, "out"}),
                        as_array(lse, {kAdditive, "lse"}),
                        as_array(grad_out, {kAdditive, "grad_out"}), grad_lse};
  const SdpaOptions parsed = sdpa_options(options, 1, right, kAdditive);
  return with_element(element, [&]<class X>() {
    return run_backward_of<X>(q, k, x, v, mask, parsed, results, want);
  });
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
  check_shapes(q, k, k, kMass);
  const SdpaOptions parsed = sdpa_options(options, scale, right, kMass);
  return with_element(element, [&]<class X>() { return run_mass<X>(q, k, mask, parsed); });
}

}  // namespace

void register_backward(py::module_& module) {
  module.def("sdpa_backward", &sdpa_backward, py::arg("query"), py::arg("key"), py::arg("value"),
             py::arg("mask"), py::arg("scale"), py::arg("right"), py::arg("options"),
             py::arg("out"), py::arg("lse"), py::arg("grad_out"), py::arg("grad_lse"),
             py::arg("want"), "Gradients of sdpa: (query, key, value, mask), None if not in want.");
  module.def("additive_backward", &additive_backward, py::arg("query"), py::arg("key"),
             py::arg("value"), py::arg("v"), py::arg("mask"), py::arg("right"), py::arg("options"),
             py::arg("out"), py::arg("lse"), py::arg("grad_out"), py::arg("grad_lse"),
             py::arg("want"),
             "Gradients of additive: (query, key, value, mask, v), None if not in want.");
  module.def("column_mass", &column_mass, py::arg("query"), py::arg("key"), py::arg("mask"),
             py::arg("scale"), py::arg("right"), py::arg("options"),
             "The sum over the queries of the weights, from their log-sum-exp.");
}

}  // namespace pyattn::python

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "python/mechanism.h"
#include "python/register.h"

namespace pyattn::python {
namespace {

constexpr std::string_view kName = "sdpa";

// Exact weights of chosen rows from their log-sum-exp: no value, no softmax.
template <class X>
py::object run_weights(const py::array& query, const py::array& key, const py::object& mask,
                       const SdpaOptions& options) {
  using T = Compute<X>;
  const std::int64_t keys = key.shape(2);
  AttentionParams<X> given{
      .query = input_view<X, 4>(query, {kName, "query"}),
      .key = input_view<X, 4>(key, {kName, "key"}),
      .value = input_view<X, 4>(key, {kName, "key"}),
      .batch = query.shape(0),
      .keys = keys,
  };
  given.mask =
      mask_view<X>(mask, {query.shape(0), query.shape(1), query.shape(2), keys}, kName, given.keys);
  const Argument argument{kName, "lse"};
  const py::array lse = as_array(options.lse, argument);
  if (!has_dtype<T>(lse)) throw_dtype(argument, lse, element_name(element_for<T>()));
  check_rank(lse, 3, "(B, H, rows)", argument);
  given.given_lse = input_view<T, 3>(lse, argument);
  SdpaCall<X> call(given, options, kName);
  call.set_lengths(keys);
  call.set_rows(query.shape(2));
  AttentionParams<X>& params = call.params();
  params.sinks = nullptr;  // it is in the log-sum-exp
  for (int i = 0; i < 3; ++i) {
    if (lse.shape(i) == params.query.shape[i]) continue;
    throw py::value_error(argument.text() + " must have a number for each row; got " +
                          shape_text(lse));
  }
  Outputs<X> outputs(params, keys, 0, kName);
  auto weights = outputs.add("weights");
  call.run();
  return weights;
}

py::object sdpa(const py::object& query, const py::object& key, const py::object& value,
                const py::object& mask, std::optional<double> scale, std::int64_t right,
                const py::object& aux, const py::object& options) {
  const py::array q = as_array(query, {kName, "query"});
  const py::array k = as_array(key, {kName, "key"});
  const py::array v = as_array(value, {kName, "value"});
  const Element element =
      common_element({{"query", &q}, {"key", &k}, {"value", &v}}, kFloats, kName);
  check_shapes(q, k, v, kName);
  const double factor = scale.value_or(1 / std::sqrt(static_cast<double>(q.shape(3))));
  const SdpaOptions parsed = sdpa_options(options, factor, right, kName);
  return with_element(
      element, [&]<class X>() { return run_dense<X>(q, k, v, nullptr, mask, parsed, aux, kName); });
}

py::object sdpa_weights(const py::object& query, const py::object& key, const py::object& mask,
                        double scale, std::int64_t right, const py::object& options) {
  const py::array q = as_array(query, {kName, "query"});
  const py::array k = as_array(key, {kName, "key"});
  const Element element = common_element({{"query", &q}, {"key", &k}}, kFloats, kName);
  check_shapes(q, k, k, kName);
  const SdpaOptions parsed = sdpa_options(options, scale, right, kName);
  return with_element(element, [&]<class X>() { return run_weights<X>(q, k, mask, parsed); });
}

}  // namespace

void register_sdpa(py::module_& module) {
  module.def("sdpa", &sdpa, py::arg("query"), py::arg("key"), py::arg("value"), py::arg("mask"),
             py::arg("scale"), py::arg("right"), py::arg("aux"), py::arg("options"),
             "softmax(scale * query key^T + mask) value, and what aux names.");
  module.def("sdpa_weights", &sdpa_weights, py::arg("query"), py::arg("key"), py::arg("mask"),
             py::arg("scale"), py::arg("right"), py::arg("options"),
             "exp(scale * query key^T + mask - lse) for the rows asked for.");
}

}  // namespace pyattn::python

#include <pybind11/pybind11.h>

#include "python/mechanism.h"
#include "python/register.h"

namespace pyattn::python {
namespace {

constexpr std::string_view kName = "additive";

py::object additive(const py::object& query, const py::object& key, const py::object& value,
                    const py::object& v, const py::object& mask, std::int64_t right,
                    const py::object& aux, const py::object& options) {
  const py::array q = as_array(query, {kName, "query"});
  const py::array k = as_array(key, {kName, "key"});
  const py::array x = as_array(value, {kName, "value"});
  const Element element =
      common_element({{"query", &q}, {"key", &k}, {"value", &x}}, kFloats, kName);
  check_own_keys(q, k, x, kName);
  const SdpaOptions parsed = sdpa_options(options, 1, right, kName);
  return with_element(element, [&]<class X>() {
    const auto direction = dense_rows<Compute<X>>(v, q.shape(1), q.shape(3), kName);
    // An empty vector has no address, by which the mechanism is told.
    const Compute<X> none = 0;
    return run_dense<X>(q, k, x, direction.empty() ? &none : direction.data(), mask, parsed, aux,
                        kName);
  });
}

}  // namespace

void register_additive(py::module_& module) {
  module.def("additive", &additive, py::arg("query"), py::arg("key"), py::arg("value"),
             py::arg("v"), py::arg("mask"), py::arg("right"), py::arg("aux"), py::arg("options"),
             "softmax(sum_a v tanh(query + key) + mask) value, and what aux names.");
}

}  // namespace pyattn::python

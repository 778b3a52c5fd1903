#include <pybind11/pybind11.h>

#include "core/attention.h"
#include "core/isa.h"
#include "python/arrays.h"
#include "python/attention_arguments.h"
#include "python/register.h"

namespace pyattn::python {
namespace {

constexpr std::string_view kName = "sdpa";

void check_shapes(const py::array& query, const py::array& key, const py::array& value) {
  check_rank(query, 4, "(B, H, T, D)", {kName, "query"});
  check_rank(key, 4, "(B, G, S, D)", {kName, "key"});
  check_rank(value, 4, "(B, G, S, E)", {kName, "value"});
  const auto fail = [&](const std::string& rule) {
    throw py::value_error(std::string(kName) + ": " + rule + "; got query " + shape_text(query) +
                          ", key " + shape_text(key) + ", value " + shape_text(value));
  };
  if (query.shape(0) != key.shape(0) || query.shape(0) != value.shape(0)) {
    fail("query, key and value must share B");
  }
  if (query.shape(3) != key.shape(3)) fail("query and key must share D");
  if (key.shape(1) != value.shape(1)) fail("key and value must share G");
  if (key.shape(2) != value.shape(2)) fail("key and value must share S");
  const py::ssize_t heads = query.shape(1);
  const py::ssize_t groups = key.shape(1);
  if (groups == 0 ? heads != 0 : heads % groups != 0) fail("H must be a multiple of G");
  check_depths(query.shape(3), value.shape(3), kName);
}

template <class T>
py::tuple run(const py::array& query, const py::array& key, const py::array& value,
              const py::object& mask, const py::object& kv_lengths, bool is_causal, double scale,
              bool want_weights, bool want_lse) {
  const std::int64_t batch = query.shape(0);
  const std::int64_t heads = query.shape(1);
  const std::int64_t rows = query.shape(2);
  const std::int64_t keys = key.shape(2);
  AttentionParams<T> params{
      .query = input_view<T, 4>(query, {kName, "query"}),
      .key = input_view<T, 4>(key, {kName, "key"}),
      .value = input_view<T, 4>(value, {kName, "value"}),
      .mask = mask_view<T>(mask, {batch, heads, rows, keys}, kName),
      .is_causal = is_causal,
      .scale = static_cast<T>(scale),
  };
  const auto lengths = lengths_of(kv_lengths, batch, keys, kName);
  if (!kv_lengths.is_none()) params.kv_lengths = lengths.data();

  auto out = new_array<T>({batch, heads, rows, value.shape(3)}, kName);
  params.out = output_view<T, 4>(out);
  py::object weights = py::none();
  py::object lse = py::none();
  if (want_weights) {
    auto array = new_array<T>({batch, heads, rows, keys}, kName);
    params.weights = output_view<T, 4>(array);
    weights = std::move(array);
  }
  if (want_lse) {
    auto array = new_array<T>({batch, heads, rows}, kName);
    params.lse = output_view<T, 3>(array);
    lse = std::move(array);
  }
  {
    const py::gil_scoped_release released;
    run_attention<T>(params, kernels_of<T>(kernels()).sdpa, static_cast<double>(query.shape(3)));
  }
  return py::make_tuple(std::move(out), std::move(weights), std::move(lse));
}

py::tuple sdpa(const py::object& query, const py::object& key, const py::object& value,
               const py::object& mask, const py::object& kv_lengths, bool is_causal, double scale,
               bool want_weights, bool want_lse) {
  const py::array q = as_array(query, {kName, "query"});
  const py::array k = as_array(key, {kName, "key"});
  const py::array v = as_array(value, {kName, "value"});
  const FloatType type = common_float_type({{"query", q}, {"key", k}, {"value", v}}, kName);
  check_shapes(q, k, v);
  const auto run_type = type == FloatType::float32 ? run<float> : run<double>;
  return run_type(q, k, v, mask, kv_lengths, is_causal, scale, want_weights, want_lse);
}

}  // namespace

void register_sdpa(py::module_& module) {
  module.def("sdpa", &sdpa, py::arg("query"), py::arg("key"), py::arg("value"), py::arg("mask"),
             py::arg("kv_lengths"), py::arg("is_causal"), py::arg("scale"), py::arg("want_weights"),
             py::arg("want_lse"),
             "softmax(scale * query key^T + mask) value; returns (out, weights, lse).");
}

}  // namespace pyattn::python

#include <pybind11/pybind11.h>

#include "core/attention.h"
#include "core/isa.h"
#include "python/arrays.h"
#include "python/attention_arguments.h"
#include "python/register.h"

namespace pyattn::python {
namespace {

constexpr std::string_view kName = "additive";
// Multiply-adds that take as long as one term v_a tanh(q + k).
constexpr double kWorkPerTerm = 5;

void check_shapes(const py::array& query, const py::array& key, const py::array& value,
                  const py::array& v) {
  check_rank(query, 3, "(B, T, A)", {kName, "query"});
  check_rank(key, 3, "(B, S, A)", {kName, "key"});
  check_rank(value, 3, "(B, S, E)", {kName, "value"});
  check_rank(v, 1, "(A,)", {kName, "v"});
  const auto fail = [&](const std::string& rule) {
    throw py::value_error(std::string(kName) + ": " + rule + "; got query " + shape_text(query) +
                          ", key " + shape_text(key) + ", value " + shape_text(value) + ", v " +
                          shape_text(v));
  };
  if (query.shape(0) != key.shape(0) || query.shape(0) != value.shape(0)) {
    fail("query, key and value must share B");
  }
  if (query.shape(2) != key.shape(2) || query.shape(2) != v.shape(0)) {
    fail("query, key and v must share A");
  }
  if (key.shape(1) != value.shape(1)) fail("key and value must share S");
  check_depths(query.shape(2), value.shape(2), kName);
}

// (B, L, X) as (B, 1, L, X).
template <class T>
View<T, 4> with_head(const View<T, 3>& view) {
  return {.data = view.data,
          .shape = {view.shape[0], 1, view.shape[1], view.shape[2]},
          .stride = {view.stride[0], 0, view.stride[1], view.stride[2]}};
}

template <class T>
std::vector<T> dense_copy(const py::array& array, const Argument& argument) {
  const auto view = input_view<T, 1>(array, argument);
  std::vector<T> copy(static_cast<std::size_t>(view.shape[0]));
  for (std::int64_t i = 0; i < view.shape[0]; ++i) {
    copy[static_cast<std::size_t>(i)] = view.data[i * view.stride[0]];
  }
  return copy;
}

template <class T>
py::tuple run(const py::array& query, const py::array& key, const py::array& value,
              const py::array& v, const py::object& mask, const py::object& kv_lengths,
              bool is_causal, bool want_weights, bool want_lse) {
  const std::int64_t batch = query.shape(0);
  const std::int64_t rows = query.shape(1);
  const std::int64_t keys = key.shape(1);
  const std::vector<T> direction = dense_copy<T>(v, {kName, "v"});
  std::int64_t seen = keys;
  AttentionParams<T> params{
      .query = with_head(input_view<T, 3>(query, {kName, "query"})),
      .key = with_head(input_view<T, 3>(key, {kName, "key"})),
      .value = with_head(input_view<T, 3>(value, {kName, "value"})),
      .batch = batch,
      .mask = mask_view<T>(mask, {batch, rows, keys}, kName, seen),
      .v = direction.data(),
  };
  params.keys = seen;
  if (is_causal) params.right = 0;
  std::vector<std::int64_t> lengths;
  if (!kv_lengths.is_none()) {
    lengths = integers_of(kv_lengths, batch, 0, keys, {kName, "kv_lengths"});
    params.kv_lengths = lengths.data();
  }

  auto out = new_array<T>({batch, rows, value.shape(2)}, kName);
  params.out = with_head(output_view<T, 3>(out));
  py::object weights = py::none();
  py::object lse = py::none();
  if (want_weights) {
    auto array = new_array<T>({batch, rows, keys}, kName);
    params.weights = with_head(output_view<T, 3>(array));
    weights = std::move(array);
  }
  if (want_lse) {
    auto array = new_array<T>({batch, rows}, kName);
    const auto view = output_view<T, 2>(array);
    params.lse = {.data = view.data, .shape = {batch, 1, rows}, .stride = {rows, 0, 1}};
    lse = std::move(array);
  }
  {
    const py::gil_scoped_release released;
    const auto& table = attention_kernels_of<T>(kernels());
    run_attention<T>(params, table.additive, table.merge,
                     kWorkPerTerm * static_cast<double>(query.shape(2)));
  }
  return py::make_tuple(std::move(out), std::move(weights), std::move(lse));
}

py::tuple additive(const py::object& query, const py::object& key, const py::object& value,
                   const py::object& v, const py::object& mask, const py::object& kv_lengths,
                   bool is_causal, bool want_weights, bool want_lse) {
  const py::array q = as_array(query, {kName, "query"});
  const py::array k = as_array(key, {kName, "key"});
  const py::array x = as_array(value, {kName, "value"});
  const py::array w = as_array(v, {kName, "v"});
  const Element element = common_element({{"query", &q}, {"key", &k}, {"value", &x}, {"v", &w}},
                                         {Element::float32, Element::float64}, kName);
  check_shapes(q, k, x, w);
  const auto run_type = element == Element::float32 ? run<float> : run<double>;
  return run_type(q, k, x, w, mask, kv_lengths, is_causal, want_weights, want_lse);
}

}  // namespace

void register_additive(py::module_& module) {
  module.def("additive", &additive, py::arg("query"), py::arg("key"), py::arg("value"),
             py::arg("v"), py::arg("mask"), py::arg("kv_lengths"), py::arg("is_causal"),
             py::arg("want_weights"), py::arg("want_lse"),
             "softmax(sum_a v tanh(query + key) + mask) value; returns (out, weights, lse).");
}

}  // namespace pyattn::python

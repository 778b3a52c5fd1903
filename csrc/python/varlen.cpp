// Scaled dot-product attention of packed sequences, and its gradient.
#include "python/packed.h"

#include <pybind11/pybind11.h>

#include "core/backward.h"
#include "python/register.h"

namespace pyattn::python {
namespace {

constexpr std::string_view kVarlen = "varlen";
constexpr std::string_view kGradient = "varlen_backward";

// Where each sequence starts and the last one ends: 0, ..., total.
std::vector<std::int64_t> offsets_of(const py::object& object, std::int64_t total,
                                     const Argument& argument) {
  const py::array array = as_array(object, argument);
  if (array.ndim() != 1 || array.shape(0) < 1) {
    throw py::value_error(argument.text() + " must have shape (B + 1,), got " + shape_text(array));
  }
  auto offsets = integers_of(array, array.shape(0), 0, total, argument);
  const bool rises = std::is_sorted(offsets.begin(), offsets.end());
  if (!rises || offsets.front() != 0 || offsets.back() != total) {
    throw py::value_error(argument.text() + " must rise from 0 to " + std::to_string(total));
  }
  return offsets;
}

}  // namespace

PackedOffsets::PackedOffsets(const py::object& cu_seqlens_q, const py::object& cu_seqlens_k,
                             std::int64_t all_rows, std::int64_t all_keys,
                             std::string_view function)
    : rows(offsets_of(cu_seqlens_q, all_rows, {function, "cu_seqlens_q"})),
      keys(offsets_of(cu_seqlens_k, all_keys, {function, "cu_seqlens_k"})) {
  if (rows.size() == keys.size()) return;
  throw py::value_error(std::string(function) +
                        ": cu_seqlens_q and cu_seqlens_k must have the same length, got " +
                        std::to_string(rows.size()) + " and " + std::to_string(keys.size()));
}

void check_packed(const py::array& query, const py::array& key, const py::array& value,
                  std::string_view function) {
  check_rank(query, 3, "(N, H, D)", {function, "query"});
  check_rank(key, 3, "(M, G, D)", {function, "key"});
  check_rank(value, 3, "(M, G, E)", {function, "value"});
  const py::ssize_t groups = key.shape(1);
  const bool fits = key.shape(0) == value.shape(0) && groups == value.shape(1) &&
                    query.shape(2) == key.shape(2) &&
                    (groups == 0 ? query.shape(1) == 0 : query.shape(1) % groups == 0);
  if (!fits) {
    throw py::value_error(std::string(function) + ": shapes do not fit; got query " +
                          shape_text(query) + ", key " + shape_text(key) + ", value " +
                          shape_text(value));
  }
  check_depths(query.shape(2), value.shape(2), function);
}

namespace {

template <class X>
py::object run_varlen(const py::array& query, const py::array& key, const py::array& value,
                      const PackedOffsets& offsets, bool want_lse, const SdpaOptions& options) {
  const std::int64_t batch = offsets.batch();
  SdpaCall<X> call(packed_params<X>(query, key, value, offsets, kVarlen), options, kVarlen);
  auto out = new_array<X>({query.shape(0), query.shape(1), value.shape(2)}, kVarlen);
  call.params().out = packed_view(output_view<X, 3>(out), batch);
  py::object lse = py::none();
  if (want_lse) {
    auto array = new_array<Compute<X>>({query.shape(1), query.shape(0)}, kVarlen);
    call.params().lse = packed_rows(output_view<Compute<X>, 2>(array), batch);
    lse = std::move(array);
  }
  call.run();
  return py::make_tuple(std::move(out), std::move(lse));
}

py::object varlen(const py::object& query, const py::object& key, const py::object& value,
                  const py::object& query_offsets, const py::object& key_offsets, double scale,
                  std::int64_t right, bool want_lse, const py::object& options) {
  const py::array q = as_array(query, {kVarlen, "query"});
  const py::array k = as_array(key, {kVarlen, "key"});
  const py::array v = as_array(value, {kVarlen, "value"});
  const Element element =
      common_element({{"query", &q}, {"key", &k}, {"value", &v}}, kFloats, kVarlen);
  check_packed(q, k, v, kVarlen);
  const PackedOffsets offsets(query_offsets, key_offsets, q.shape(0), k.shape(0), kVarlen);
  const SdpaOptions parsed = sdpa_options(options, scale, right, kVarlen);
  return with_element(element,
                      [&]<class X>() { return run_varlen<X>(q, k, v, offsets, want_lse, parsed); });
}

// Gradients of query, key and value; out and grad_out (N, H, E), lse and grad_lse (H, N).
template <class X>
py::object run_varlen_backward(const py::array& query, const py::array& key, const py::array& value,
                               const PackedOffsets& offsets, const SdpaOptions& options,
                               const py::array& out, const py::array& lse,
                               const py::array& grad_out, const py::array& grad_lse) {
  using T = Compute<X>;
  const std::int64_t batch = offsets.batch();
  const std::vector<std::int64_t> outputs = {query.shape(0), query.shape(1), value.shape(2)};
  const std::vector<std::int64_t> rows = {query.shape(1), query.shape(0)};
  SdpaCall<X> call(packed_params<X>(query, key, value, offsets, kGradient), options, kGradient);
  const auto lse_view = checked_view<T, 2>(lse, rows, {kGradient, "lse"});
  call.params().given_lse = packed_rows(lse_view, batch);
  const auto out_view = checked_view<X, 3>(out, outputs, {kGradient, "out"});
  const auto grad_view = checked_view<X, 3>(grad_out, outputs, {kGradient, "grad_out"});
  const auto grad_lse_view = checked_view<T, 2>(grad_lse, rows, {kGradient, "grad_lse"});
  BackwardParams<X> params{
      .forward = call.params(),
      .out = packed_view(out_view, batch),
      .grad_out = packed_view(grad_view, batch),
      .grad_lse = packed_rows(grad_lse_view, batch),
  };
  auto like = [&](const py::array& array, View<X, 4>& view) {
    auto gradient = new_array<X>({array.shape(0), array.shape(1), array.shape(2)}, kGradient);
    view = packed_view(output_view<X, 3>(gradient), batch);
    return gradient;
  };
  const py::array of_query = like(query, params.grad_query);
  const py::array of_key = like(key, params.grad_key);
  const py::array of_value = like(value, params.grad_value);
  {
    const py::gil_scoped_release released;
    run_backward(params, attention_kernels_of<X>(kernels()).backward);
  }
  return py::make_tuple(of_query, of_key, of_value);
}

py::object varlen_backward(const py::object& query, const py::object& key, const py::object& value,
                           const py::object& query_offsets, const py::object& key_offsets,
                           double scale, std::int64_t right, const py::object& options,
                           const py::object& out, const py::object& lse, const py::object& grad_out,
                           const py::object& grad_lse) {
  const py::array q = as_array(query, {kGradient, "query"});
  const py::array k = as_array(key, {kGradient, "key"});
  const py::array v = as_array(value, {kGradient, "value"});
  const Element element =
      common_element({{"query", &q}, {"key", &k}, {"value", &v}}, kFloats, kGradient);
  check_packed(q, k, v, kGradient);
  const PackedOffsets offsets(query_offsets, key_offsets, q.shape(0), k.shape(0), kGradient);
  const SdpaOptions parsed = sdpa_options(options, scale, right, kGradient);
  const py::array o = as_array(out, {kGradient, "out"});
  const py::array l = as_array(lse, {kGradient, "lse"});
  const py::array go = as_array(grad_out, {kGradient, "grad_out"});
  const py::array gl = as_array(grad_lse, {kGradient, "grad_lse"});
  return with_element(element, [&]<class X>() {
    return run_varlen_backward<X>(q, k, v, offsets, parsed, o, l, go, gl);
  });
}

}  // namespace

void register_varlen(py::module_& module) {
  module.def("varlen", &varlen, py::arg("query"), py::arg("key"), py::arg("value"),
             py::arg("query_offsets"), py::arg("key_offsets"), py::arg("scale"), py::arg("right"),
             py::arg("want_lse"), py::arg("options"), "sdpa of packed sequences: (out, lse).");
  module.def("varlen_backward", &varlen_backward, py::arg("query"), py::arg("key"),
             py::arg("value"), py::arg("query_offsets"), py::arg("key_offsets"), py::arg("scale"),
             py::arg("right"), py::arg("options"), py::arg("out"), py::arg("lse"),
             py::arg("grad_out"), py::arg("grad_lse"), "Gradients of varlen: (query, key, value).");
}

}  // namespace pyattn::python

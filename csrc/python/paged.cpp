// Scaled dot-product attention against keys and values in pages.
#include <pybind11/pybind11.h>

#include "python/register.h"
#include "python/sdpa_call.h"

namespace pyattn::python {
namespace {

constexpr std::string_view kPaged = "paged";

void check_pages(const py::array& query, const py::array& key, const py::array& value) {
  check_rank(query, 4, "(B, H, T, D)", {kPaged, "query"});
  check_rank(key, 4, "(N, G, page, D)", {kPaged, "key_pages"});
  check_rank(value, 4, "(N, G, page, E)", {kPaged, "value_pages"});
  const py::ssize_t groups = key.shape(1);
  bool fits = query.shape(3) == key.shape(3) && key.shape(2) > 0 &&
              (groups == 0 ? query.shape(1) == 0 : query.shape(1) % groups == 0);
  for (int i = 0; i < 3; ++i) fits = fits && key.shape(i) == value.shape(i);
  if (!fits) {
    throw py::value_error(std::string(kPaged) + ": shapes do not fit; got query " +
                          shape_text(query) + ", key_pages " + shape_text(key) + ", value_pages " +
                          shape_text(value));
  }
  check_depths(query.shape(3), value.shape(3), kPaged);
}

// The pages that hold a valid key are checked; the others are never looked at.
std::vector<std::int32_t> page_table(const py::object& object, std::int64_t pages,
                                     std::int64_t page, const std::vector<std::int64_t>& lengths) {
  const Argument argument{kPaged, "block_table"};
  const py::array array = as_array(object, argument);
  if (!has_dtype<std::int32_t>(array)) throw_dtype(argument, array, "int32");
  const auto batch = static_cast<py::ssize_t>(lengths.size());
  if (array.ndim() != 2 || array.shape(0) != batch) {
    throw py::value_error(argument.text() + " must have shape (B, pages), got " +
                          shape_text(array));
  }
  const auto view = input_view<std::int32_t, 2>(array, argument);
  std::vector<std::int32_t> table(static_cast<std::size_t>(view.shape[0] * view.shape[1]));
  for (std::int64_t b = 0; b < view.shape[0]; ++b) {
    const std::int64_t used = (lengths[static_cast<std::size_t>(b)] + page - 1) / page;
    for (std::int64_t i = 0; i < used; ++i) {
      const std::int32_t index = view.data[b * view.stride[0] + i * view.stride[1]];
      if (index < 0 || index >= pages) {
        throw py::value_error(argument.text() + " must name pages 0.." + std::to_string(pages - 1) +
                              ", got " + std::to_string(index) + " at (" + std::to_string(b) +
                              ", " + std::to_string(i) + ")");
      }
      table[static_cast<std::size_t>(b * view.shape[1] + i)] = index;
    }
  }
  return table;
}

template <class X>
py::object run_paged(const py::array& query, const py::array& key, const py::array& value,
                     const py::object& block_table, const SdpaOptions& options) {
  const py::array table_array = as_array(block_table, {kPaged, "block_table"});
  const std::int64_t per_entry = table_array.ndim() == 2 ? table_array.shape(1) : 0;
  const std::int64_t batch = query.shape(0);
  AttentionParams<X> given{
      .query = input_view<X, 4>(query, {kPaged, "query"}),
      .key = input_view<X, 4>(key, {kPaged, "key_pages"}),
      .value = input_view<X, 4>(value, {kPaged, "value_pages"}),
      .batch = batch,
      .keys = per_entry * key.shape(2),
  };
  const auto lengths =
      integers_of(options.kv_lengths, batch, 0, given.keys, {kPaged, "kv_lengths"});
  const auto table = page_table(block_table, key.shape(0), key.shape(2), lengths);
  given.pages = {.table = table.data(), .stride = per_entry, .size = key.shape(2)};
  given.kv_lengths = lengths.data();
  SdpaCall<X> call(given, options, kPaged);
  auto out = new_array<X>({batch, query.shape(1), query.shape(2), value.shape(3)}, kPaged);
  call.params().out = output_view<X, 4>(out);
  call.run();
  return out;
}

py::object paged(const py::object& query, const py::object& key, const py::object& value,
                 const py::object& block_table, double scale, std::int64_t right,
                 const py::object& options) {
  const py::array q = as_array(query, {kPaged, "query"});
  const py::array k = as_array(key, {kPaged, "key_pages"});
  const py::array v = as_array(value, {kPaged, "value_pages"});
  const Element element =
      common_element({{"query", &q}, {"key_pages", &k}, {"value_pages", &v}}, kFloats, kPaged);
  check_pages(q, k, v);
  const SdpaOptions parsed = sdpa_options(options, scale, right, kPaged);
  return with_element(element,
                      [&]<class X>() { return run_paged<X>(q, k, v, block_table, parsed); });
}

}  // namespace

void register_paged(py::module_& module) {
  module.def("paged", &paged, py::arg("query"), py::arg("key_pages"), py::arg("value_pages"),
             py::arg("block_table"), py::arg("scale"), py::arg("right"), py::arg("options"),
             "sdpa with keys and values in pages.");
}

}  // namespace pyattn::python

#include "core/rotary.h"

#include <pybind11/pybind11.h>

#include "python/arrays.h"
#include "python/register.h"

namespace pyattn::python {
namespace {

Argument argument(std::string_view name) { return {"rotary_embedding", name}; }

void check_heads(const py::array& x, std::int64_t heads) {
  if (x.ndim() != 3 && x.ndim() != 4) {
    throw py::value_error(argument("x").text() +
                          " must have shape (B, H, T, D) or (B, T, H * D), got " + shape_text(x));
  }
  if (x.ndim() == 3 && (heads < 1 || x.shape(2) % heads != 0)) {
    throw py::value_error(argument("num_heads").text() + " must divide the last axis of x, got " +
                          std::to_string(heads) + " for " + shape_text(x));
  }
}

template <class Integer>
std::vector<std::int64_t> row_numbers(const py::array& array, std::int64_t rows) {
  const auto view = input_view<Integer, 2>(array, argument("position_ids"));
  std::vector<std::int64_t> numbers;
  numbers.reserve(static_cast<std::size_t>(array.size()));
  for (std::int64_t b = 0; b < view.shape[0]; ++b) {
    for (std::int64_t t = 0; t < view.shape[1]; ++t) {
      const std::int64_t number = view.data[b * view.stride[0] + t * view.stride[1]];
      if (number < 0 || number >= rows) {
        throw py::value_error(argument("position_ids").text() + " must lie in 0.." +
                              std::to_string(rows - 1) + ", the rows of the caches; got " +
                              std::to_string(number));
      }
      numbers.push_back(number);
    }
  }
  return numbers;
}

std::vector<std::int64_t> positions(const py::array& array, const std::int64_t (&shape)[4],
                                    std::int64_t rows) {
  check_rank(array, 2, "(B, T)", argument("position_ids"));
  if (array.shape(0) != shape[0] || array.shape(1) != shape[2]) {
    throw py::value_error(argument("position_ids").text() + " must have shape (B, T) = (" +
                          std::to_string(shape[0]) + ", " + std::to_string(shape[2]) + "), got " +
                          shape_text(array));
  }
  if (has_dtype<std::int32_t>(array)) return row_numbers<std::int32_t>(array, rows);
  if (has_dtype<std::int64_t>(array)) return row_numbers<std::int64_t>(array, rows);
  throw_dtype(argument("position_ids"), array, "int32, int64");
}

// A cache as (B, positions, pairs); one that is looked up by position serves the whole batch.
template <class T>
View<const T, 3> cache_view(const py::object& object, bool looked_up, const View<const T, 4>& x,
                            const Argument& name) {
  const py::array array = as_array(object, name);
  if (!has_dtype<T>(array)) throw_dtype(name, array, "that of x");
  View<const T, 3> cache;
  if (looked_up) {
    check_rank(array, 2, "(positions, pairs)", name);
    const auto table = input_view<T, 2>(array, name);
    cache = {.data = table.data,
             .shape = {x.shape[0], table.shape[0], table.shape[1]},
             .stride = {0, table.stride[0], table.stride[1]}};
  } else {
    check_rank(array, 3, "(B, T, pairs)", name);
    cache = input_view<T, 3>(array, name);
  }
  const bool fits = looked_up || (cache.shape[0] == x.shape[0] && cache.shape[1] == x.shape[2]);
  if (!fits || cache.shape[2] > x.shape[3] / 2) {
    throw py::value_error(name.text() + " must be (B, T, pairs), or (positions, pairs) beside " +
                          "position_ids, with 2 * pairs <= D; got " + shape_text(array));
  }
  return cache;
}

template <class T>
py::array turned(const py::array& x, const py::object& cosine, const py::object& sine,
                 const py::object& position_ids, std::int64_t heads, bool interleaved,
                 bool inverse) {
  const bool looked_up = !position_ids.is_none();
  RotaryParams<T> params{.interleaved = interleaved, .inverse = inverse};
  const bool merged = x.ndim() == 3;
  params.input = merged ? split_heads(input_view<T, 3>(x, argument("x")), heads)
                        : input_view<T, 4>(x, argument("x"));
  params.cosine = cache_view<T>(cosine, looked_up, params.input, argument("cos_cache"));
  params.sine = cache_view<T>(sine, looked_up, params.input, argument("sin_cache"));
  if (params.cosine.shape[1] != params.sine.shape[1] ||
      params.cosine.shape[2] != params.sine.shape[2]) {
    throw py::value_error(argument("sin_cache").text() + " must have the shape of cos_cache");
  }
  std::vector<std::int64_t> numbers;
  if (looked_up) {
    numbers = positions(as_array(position_ids, argument("position_ids")), params.input.shape,
                        params.cosine.shape[1]);
    params.positions = numbers.data();
  }
  auto result = new_array<T>({x.shape(), x.shape() + x.ndim()}, "rotary_embedding");
  params.output =
      merged ? split_heads(output_view<T, 3>(result), heads) : output_view<T, 4>(result);
  {
    const py::gil_scoped_release released;
    run_rotary<T>(params);
  }
  return result;
}

py::array rotary_embedding(const py::object& x, const py::object& cos_cache,
                           const py::object& sin_cache, const py::object& position_ids,
                           std::int64_t num_heads, bool interleaved, bool inverse) {
  const py::array array = as_array(x, argument("x"));
  check_heads(array, num_heads);
  const auto call = has_dtype<float>(array)      ? turned<float>
                    : has_dtype<double>(array)   ? turned<double>
                    : has_dtype<Half>(array)     ? turned<Half>
                    : has_dtype<BFloat16>(array) ? turned<BFloat16>
                                                 : nullptr;
  if (call == nullptr) {
    throw_dtype(argument("x"), array, "float32, float64, float16, bfloat16");
  }
  return call(array, cos_cache, sin_cache, position_ids, num_heads, interleaved, inverse);
}

}  // namespace

void register_rotary(py::module_& module) {
  module.def("rotary_embedding", &rotary_embedding, py::arg("x"), py::arg("cos_cache"),
             py::arg("sin_cache"), py::arg("position_ids"), py::arg("num_heads"),
             py::arg("interleaved"), py::arg("inverse"),
             "Pairs (u, v) of x become (u cos - v sin, u sin + v cos).");
}

}  // namespace pyattn::python

#include "python/attention_arguments.h"

#include <algorithm>

#include "core/attention.h"

namespace pyattn::python {
namespace {

constexpr std::int64_t kMaxDepth = std::int64_t{1} << 32;

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "(";
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    text += (axis > 0 ? ", " : "") + std::to_string(shape[axis]);
  }
  return text + ")";
}

template <class Integer>
std::vector<std::int64_t> copy_integers(const py::array& array, std::int64_t least,
                                        std::int64_t most, const Argument& argument) {
  const auto view = input_view<Integer, 1>(array, argument);
  std::vector<std::int64_t> copy;
  copy.reserve(static_cast<std::size_t>(view.shape[0]));
  for (std::int64_t i = 0; i < view.shape[0]; ++i) {
    const auto value = static_cast<std::int64_t>(view.data[i * view.stride[0]]);
    if (value < least || value > most) {
      throw py::value_error(argument.text() + " must be in " + std::to_string(least) + ".." +
                            std::to_string(most) + ", got " + std::to_string(value) + " at index " +
                            std::to_string(i));
    }
    copy.push_back(value);
  }
  return copy;
}

}  // namespace

Element common_element(const std::vector<std::pair<std::string_view, const py::array*>>& arrays,
                       const std::vector<Element>& supported, std::string_view function) {
  const auto& [first_name, first] = arrays.front();
  const Element element = element_of(*first);
  if (std::find(supported.begin(), supported.end(), element) == supported.end()) {
    std::string names;
    for (const Element one : supported)
      names += (names.empty() ? "" : ", ") + std::string(element_name(one));
    throw_dtype({function, first_name}, *first, names);
  }
  for (const auto& [name, array] : arrays) {
    if (element_of(*array) == element) continue;
    throw_dtype({function, name}, *array,
                std::string(element_name(element)) + ", the dtype of " + std::string(first_name));
  }
  return element;
}

template <class X>
Mask mask_view(const py::object& object, const std::vector<std::int64_t>& target,
               std::string_view function, std::int64_t& keys) {
  Mask mask;
  if (object.is_none()) return mask;
  const Argument argument{function, "mask"};
  const py::array array = as_array(object, argument);
  const Element element = element_of(array);
  const bool boolean = element == Element::boolean;
  if (!boolean && element != element_for<X>()) {
    throw_dtype(argument, array,
                "bool, " + std::string(element_name(element_for<X>())) + " (the dtype of query)");
  }
  mask.kind = boolean ? MaskKind::boolean : MaskKind::additive;
  mask.data = boolean ? static_cast<const void*>(element_data<bool>(array, argument))
                      : static_cast<const void*>(element_data<X>(array, argument));
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> stride;
  for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
    shape.push_back(array.shape(axis));
    stride.push_back(boolean ? element_stride<bool>(array, axis, argument)
                             : element_stride<X>(array, axis, argument));
  }
  if (!broadcast_mask(shape, stride, target, mask, keys)) {
    throw py::value_error(argument.text() + " must broadcast to " + shape_text(target) + ", got " +
                          python::shape_text(array));
  }
  return mask;
}

#define PYATTN_INSTANTIATE(X)                                                     \
  template Mask mask_view<X>(const py::object&, const std::vector<std::int64_t>&, \
                             std::string_view, std::int64_t&);
PYATTN_INSTANTIATE(float)
PYATTN_INSTANTIATE(double)
PYATTN_INSTANTIATE(Half)
PYATTN_INSTANTIATE(BFloat16)
#undef PYATTN_INSTANTIATE

std::vector<std::int64_t> integers_of(const py::handle& object, std::int64_t length,
                                      std::int64_t least, std::int64_t most,
                                      const Argument& argument) {
  const py::array array = as_array(object, argument);
  const Element element = element_of(array);
  if (element != Element::int32 && element != Element::int64) {
    throw_dtype(argument, array, "int32, int64");
  }
  if (array.ndim() != 1 || array.shape(0) != length) {
    throw py::value_error(argument.text() + " must have shape (" + std::to_string(length) +
                          ",), got " + python::shape_text(array));
  }
  return element == Element::int32 ? copy_integers<std::int32_t>(array, least, most, argument)
                                   : copy_integers<std::int64_t>(array, least, most, argument);
}

void check_depths(std::int64_t depth, std::int64_t value_depth, std::string_view function) {
  if (depth <= kMaxDepth && value_depth <= kMaxDepth) return;
  throw py::value_error(std::string(function) + ": a head size above " + std::to_string(kMaxDepth) +
                        " is not supported, got " + std::to_string(depth) + " and " +
                        std::to_string(value_depth));
}

void check_shapes(const py::array& query, const py::array& key, const py::array& value,
                  std::string_view function) {
  check_rank(query, 4, "(B, H, T, D)", {function, "query"});
  check_rank(key, 4, "(B, G, S, D)", {function, "key"});
  check_rank(value, 4, "(B, G, S, E)", {function, "value"});
  const auto fail = [&](const std::string& rule) {
    throw py::value_error(std::string(function) + ": " + rule + "; got query " + shape_text(query) +
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
  check_depths(query.shape(3), value.shape(3), function);
}

void check_own_keys(const py::array& query, const py::array& key, const py::array& value,
                    std::string_view function) {
  check_shapes(query, key, value, function);
  if (query.shape(1) == key.shape(1)) return;
  throw py::value_error(std::string(function) + ": query and key must share H; got query " +
                        shape_text(query) + ", key " + shape_text(key));
}

}  // namespace pyattn::python

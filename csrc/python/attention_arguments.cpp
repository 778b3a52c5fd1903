#include "python/attention_arguments.h"

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
std::vector<std::int64_t> copy_lengths(const py::array& array, std::int64_t keys,
                                       const Argument& argument) {
  const auto view = input_view<Integer, 1>(array, argument);
  std::vector<std::int64_t> lengths;
  for (std::int64_t b = 0; b < view.shape[0]; ++b) {
    const auto length = static_cast<std::int64_t>(view.data[b * view.stride[0]]);
    if (length < 0 || length > keys) {
      throw py::value_error(argument.text() + " must be in 0.." + std::to_string(keys) + ", got " +
                            std::to_string(length) + " at index " + std::to_string(b));
    }
    lengths.push_back(length);
  }
  return lengths;
}

}  // namespace

FloatType common_float_type(const std::vector<std::pair<std::string_view, py::array>>& arrays,
                            std::string_view function) {
  const auto& [first_name, first] = arrays.front();
  const bool single = has_dtype<float>(first);
  if (!single && !has_dtype<double>(first)) {
    throw_dtype({function, first_name}, first, "float32, float64");
  }
  for (const auto& [name, array] : arrays) {
    if (single ? has_dtype<float>(array) : has_dtype<double>(array)) continue;
    throw_dtype({function, name}, array,
                dtype_text(first) + ", the dtype of " + std::string(first_name));
  }
  return single ? FloatType::float32 : FloatType::float64;
}

template <class T>
Mask mask_view(const py::object& object, const std::vector<std::int64_t>& target,
               std::string_view function) {
  Mask mask;
  if (object.is_none()) return mask;
  const Argument argument{function, "mask"};
  const py::array array = as_array(object, argument);
  const bool boolean = has_dtype<bool>(array);
  if (!boolean && !has_dtype<T>(array)) {
    throw_dtype(
        argument, array,
        "bool, " + std::string(sizeof(T) == 4 ? "float32" : "float64") + " (the dtype of query)");
  }
  const auto rank = static_cast<std::size_t>(array.ndim());
  bool fits = rank >= 1 && rank <= target.size();
  for (std::size_t i = 0; fits && i < rank; ++i) {
    const std::int64_t length = array.shape(static_cast<py::ssize_t>(rank - 1 - i));
    fits = length == 1 || length == target[target.size() - 1 - i];
  }
  if (!fits) {
    throw py::value_error(argument.text() + " must broadcast to " + shape_text(target) + ", got " +
                          python::shape_text(array));
  }
  mask.kind = boolean ? MaskKind::boolean : MaskKind::additive;
  mask.data = boolean ? static_cast<const void*>(element_data<bool>(array, argument))
                      : static_cast<const void*>(element_data<T>(array, argument));
  // (T, S) of the target are the last two strides; (B, T, S) has no head axis.
  const int places4[] = {3, 2, 1, 0};
  const int places3[] = {3, 2, 0};
  for (std::size_t i = 0; i < rank; ++i) {
    const auto axis = static_cast<py::ssize_t>(rank - 1 - i);
    const int place = target.size() == 4 ? places4[i] : places3[i];
    mask.stride[place] = boolean ? element_stride<bool>(array, axis, argument)
                                 : element_stride<T>(array, axis, argument);
  }
  return mask;
}

template Mask mask_view<float>(const py::object&, const std::vector<std::int64_t>&,
                               std::string_view);
template Mask mask_view<double>(const py::object&, const std::vector<std::int64_t>&,
                                std::string_view);

std::vector<std::int64_t> lengths_of(const py::object& object, std::int64_t batch,
                                     std::int64_t keys, std::string_view function) {
  if (object.is_none()) return {};
  const Argument argument{function, "kv_lengths"};
  const py::array array = as_array(object, argument);
  const bool narrow = has_dtype<std::int32_t>(array);
  if (!narrow && !has_dtype<std::int64_t>(array)) throw_dtype(argument, array, "int32, int64");
  if (array.ndim() != 1 || array.shape(0) != batch) {
    throw py::value_error(argument.text() + " must have shape (" + std::to_string(batch) +
                          ",), got " + python::shape_text(array));
  }
  return narrow ? copy_lengths<std::int32_t>(array, keys, argument)
                : copy_lengths<std::int64_t>(array, keys, argument);
}

void check_depths(std::int64_t depth, std::int64_t value_depth, std::string_view function) {
  if (depth <= kMaxDepth && value_depth <= kMaxDepth) return;
  throw py::value_error(std::string(function) + ": a head size above " + std::to_string(kMaxDepth) +
                        " is not supported, got " + std::to_string(depth) + " and " +
                        std::to_string(value_depth));
}

}  // namespace pyattn::python

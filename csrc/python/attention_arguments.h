// What sdpa and additive have in common between Python and the kernels.
#pragma once

#include <string_view>
#include <vector>

#include "core/params.h"
#include "python/arrays.h"

namespace pyattn::python {

// The dtype of `query`, which must be one of `supported` and that of the others.
Element common_element(const std::vector<std::pair<std::string_view, const py::array*>>& arrays,
                       const std::vector<Element>& supported, std::string_view function);

// Right-aligned broadcast to `target` (rank 3 or 4, always mapped to the four strides of Mask with
// missing leading axes 0). Boolean, or X. A last axis shorter than that of the target, and not 1,
// is all there is of the keys: `keys` becomes its length.
template <class X>
Mask mask_view(const py::object& mask, const std::vector<std::int64_t>& target,
               std::string_view function, std::int64_t& keys);

// An int32 or int64 vector of `length`, copied to int64 and checked against least..most.
std::vector<std::int64_t> integers_of(const py::handle& object, std::int64_t length,
                                      std::int64_t least, std::int64_t most,
                                      const Argument& argument);

// An array of `shape` and of the elements of X, whatever its strides.
template <class X, int Rank>
View<const X, Rank> checked_view(const py::array& array, const std::vector<std::int64_t>& shape,
                                 const Argument& argument) {
  if (!has_dtype<X>(array)) throw_dtype(argument, array, element_name(element_for<X>()));
  bool fits = array.ndim() == Rank;
  for (std::size_t i = 0; fits && i < Rank; ++i) {
    fits = array.shape(static_cast<py::ssize_t>(i)) == shape[i];
  }
  if (!fits) {
    std::string wanted;
    for (const std::int64_t length : shape) {
      wanted += (wanted.empty() ? "" : ", ") + std::to_string(length);
    }
    throw py::value_error(argument.text() + " must have shape (" + wanted + "), got " +
                          shape_text(array));
  }
  return input_view<X, Rank>(array, argument);
}

// query (B, H, T, D), key (B, G, S, D) and value (B, G, S, E), H a multiple of G.
void check_shapes(const py::array& query, const py::array& key, const py::array& value,
                  std::string_view function);
// The same with G = H.
void check_own_keys(const py::array& query, const py::array& key, const py::array& value,
                    std::string_view function);

// Head sizes beyond this would overflow the size of the scratch memory.
void check_depths(std::int64_t depth, std::int64_t value_depth, std::string_view function);

}  // namespace pyattn::python

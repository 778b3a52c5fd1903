// What sdpa and additive have in common between Python and the kernels.
#pragma once

#include <string_view>
#include <vector>

#include "core/params.h"
#include "python/arrays.h"

namespace pyattn::python {

// "float32" or "float64" by the dtype of `query`; the others must agree with it.
enum class FloatType { float32, float64 };
FloatType common_float_type(const std::vector<std::pair<std::string_view, py::array>>& arrays,
                            std::string_view function);

// Right-aligned broadcast to `target` (rank 3 or 4, always mapped to the four strides of Mask with
// missing leading axes 0). Boolean, or the float type T.
template <class T>
Mask mask_view(const py::object& mask, const std::vector<std::int64_t>& target,
               std::string_view function);

// Valid keys of each batch entry, copied to int64, checked against 0..S. Empty for None.
std::vector<std::int64_t> lengths_of(const py::object& kv_lengths, std::int64_t batch,
                                     std::int64_t keys, std::string_view function);

// Head sizes beyond this would overflow the size of the scratch memory.
void check_depths(std::int64_t depth, std::int64_t value_depth, std::string_view function);

}  // namespace pyattn::python

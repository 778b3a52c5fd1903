// What predicts positions, for the calls that take it.
#pragma once

#include "core/position.h"
#include "python/sdpa_call.h"

namespace pyattn::python {

// The parameters and the memory that they point to; lengths and output are the caller's.
template <class T>
class PositionCall {
 public:
  PositionCall(const py::object& state, const py::object& weight, const py::object& v,
               std::int64_t keys, std::string_view function)
      : params{.state = view_of<3>(state, "(B, T, H)", {function, "state"}),
               .weight = view_of<2>(weight, "(P, H)", {function, "position_weight"}),
               .keys = keys},
        direction_(dense_vector<T>(v, params.weight.shape[0], {function, "position_v"})) {
    params.v = direction_.data();
    if (params.state.shape[2] != params.weight.shape[1] || params.state.stride[2] != 1 ||
        params.weight.stride[1] != 1) {
      throw py::value_error(std::string(function) +
                            ": state (B, T, H) and position_weight (P, H) must have H in common " +
                            "and unit stride along it");
    }
  }
  PositionCall(const PositionCall&) = delete;
  PositionCall& operator=(const PositionCall&) = delete;

  PositionParams<T> params;

 private:
  template <int Rank>
  static View<const T, Rank> view_of(const py::object& object, std::string_view dimensions,
                                     const Argument& argument) {
    const py::array array = as_array(object, argument);
    if (!has_dtype<T>(array)) throw_dtype(argument, array, element_name(element_for<T>()));
    check_rank(array, Rank, dimensions, argument);
    return input_view<T, Rank>(array, argument);
  }

  std::vector<T> direction_;
};

}  // namespace pyattn::python

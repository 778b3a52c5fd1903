#include "core/position.h"

#include <pybind11/pybind11.h>

#include "python/position_call.h"
#include "python/register.h"

namespace pyattn::python {
namespace {

constexpr std::string_view kName = "positions";

template <class T>
py::array positions_of(const py::object& state, const py::object& weight, const py::object& v,
                       std::int64_t keys, const py::object& kv_lengths) {
  PositionCall<T> call(state, weight, v, keys, kName);
  PositionParams<T>& params = call.params;
  const std::int64_t batch = params.state.shape[0];
  std::vector<std::int64_t> lengths;
  if (!kv_lengths.is_none()) {
    lengths = integers_of(kv_lengths, batch, 0, keys, {kName, "kv_lengths"});
    params.kv_lengths = lengths.data();
  }
  py::array centre = new_array<T>({batch, params.state.shape[1]}, kName);
  params.centre = output_view<T, 2>(centre);
  {
    const py::gil_scoped_release released;
    run_positions<T>(params);
  }
  return centre;
}

py::array positions(const py::object& state, const py::object& weight, const py::object& v,
                    std::int64_t keys, const py::object& kv_lengths) {
  const Argument argument{kName, "state"};
  const py::array array = as_array(state, argument);
  if (has_dtype<float>(array)) return positions_of<float>(state, weight, v, keys, kv_lengths);
  if (has_dtype<double>(array)) return positions_of<double>(state, weight, v, keys, kv_lengths);
  throw_dtype(argument, array, "float32, float64");
}

}  // namespace

void register_position(py::module_& module) {
  module.def("positions", &positions, py::arg("state"), py::arg("position_weight"),
             py::arg("position_v"), py::arg("keys"), py::arg("kv_lengths"),
             "keys sigmoid(position_v . tanh(position_weight state)).");
}

}  // namespace pyattn::python

#include "core/recurrent.h"

#include <pybind11/pybind11.h>

#include <algorithm>

#include "core/isa.h"
#include "python/arrays.h"
#include "python/register.h"

namespace pyattn::python {
namespace {

// A dense array of exactly this shape, or an error.
template <class T>
const T* dense(const py::object& object, const std::vector<std::int64_t>& shape,
               const Argument& argument) {
  const py::array array = as_array(object, argument);
  if (!has_dtype<T>(array)) throw_dtype(argument, array, sizeof(T) == 4 ? "float32" : "float64");
  const bool fits = array.ndim() == static_cast<py::ssize_t>(shape.size()) &&
                    std::equal(shape.begin(), shape.end(), array.shape());
  if (!fits || (array.flags() & py::array::c_style) == 0) {
    std::string expected;
    for (const std::int64_t size : shape) expected += std::to_string(size) + ", ";
    throw py::value_error(argument.text() + " must be dense, of shape (" + expected + "), got " +
                          shape_text(array));
  }
  return element_data<T>(array, argument);
}

// The same as memory that is only read: the kernels' parameters serve both directions.
template <class T>
T* kept(const py::object& object, const std::vector<std::int64_t>& shape,
        const Argument& argument) {
  return const_cast<T*>(dense<T>(object, shape, argument));
}

std::vector<std::int64_t> lengths_of(const py::object& object, std::int64_t batch,
                                     std::int64_t length, std::string_view function) {
  if (object.is_none()) return {};
  const Argument argument{function, "lengths"};
  const py::array array = as_array(object, argument);
  if (!has_dtype<std::int64_t>(array)) throw_dtype(argument, array, "int64");
  check_rank(array, 1, "(B,)", argument);
  const auto view = input_view<std::int64_t, 1>(array, argument);
  std::vector<std::int64_t> lengths;
  for (std::int64_t b = 0; b < view.shape[0]; ++b) {
    lengths.push_back(view.data[b * view.stride[0]]);
    if (lengths.back() < 0 || lengths.back() > length) {
      throw py::value_error(argument.text() + " must lie in 0.." + std::to_string(length) +
                            ", got " + std::to_string(lengths.back()));
    }
  }
  if (view.shape[0] != batch) {
    throw py::value_error(argument.text() + " must have shape (" + std::to_string(batch) +
                          ",), got " + shape_text(array));
  }
  return lengths;
}

// What all four functions are given. The sequence (B, T, any) is the input, or for a gradient the
// output.
struct Given {
  std::string_view function;
  std::string_view name;
  std::int64_t gates;
  py::array sequence;
  py::array weight;
  py::object h0;
  py::object lengths;
  bool reverse;
};

// A call with the sequence, weight and h0 checked.
template <class T>
class Call {
 public:
  explicit Call(const Given& given) : gates_(given.gates), function_(given.function) {
    check_rank(given.sequence, 3, "(B, T, any)", {function_, given.name});
    check_rank(given.weight, 2, "(gates * H, H)", {function_, "weight"});
    params.batch = given.sequence.shape(0);
    params.length = given.sequence.shape(1);
    params.size = given.weight.shape(1);
    params.reverse = given.reverse;
    params.weight =
        dense<T>(given.weight, {gates_ * params.size, params.size}, {function_, "weight"});
    params.h0 = dense<T>(given.h0, states(), {function_, "h0"});
    lengths_ = lengths_of(given.lengths, params.batch, params.length, function_);
    if (!lengths_.empty()) params.lengths = lengths_.data();
  }

  // What the forward pass reads more.
  void read(const py::array& x, const py::object& weight_input, const py::object& bias_input,
            const py::object& bias_hidden) {
    params.inputs = x.shape(2);
    params.x = dense<T>(x, {params.batch, params.length, params.inputs}, {function_, "x"});
    params.weight_input =
        dense<T>(weight_input, {gates_ * params.size, params.inputs}, {function_, "weight_input"});
    params.bias_input = bias(bias_input, "bias_input");
    params.bias_hidden = bias(bias_hidden, "bias_hidden");
  }

  // The gates of all steps.
  std::vector<std::int64_t> all_gates() const {
    return {(params.size + kGateUnits - 1) / kGateUnits, params.length, params.batch,
            gates_ * kGateUnits};
  }
  std::vector<std::int64_t> states() const { return {params.batch, params.size}; }
  std::vector<std::int64_t> steps(std::int64_t count = 1) const {
    return {params.batch, params.length, count * params.size};
  }

  py::array fresh(const std::vector<std::int64_t>& shape, T*& data) const {
    py::array array = new_array<T>(shape, function_);
    data = output_data<T>(array);
    return array;
  }

  // A copy of a state, which the kernel moves on.
  py::array moving(const py::object& state, std::string_view name, T*& data) const {
    const T* from = dense<T>(state, states(), {function_, name});
    py::array array = fresh(states(), data);
    std::copy_n(from, params.batch * params.size, data);
    return array;
  }

  RecurrentParams<T> params;

 private:
  const T* bias(const py::object& given, std::string_view name) const {
    return given.is_none() ? nullptr : dense<T>(given, {gates_ * params.size}, {function_, name});
  }

  std::int64_t gates_;
  std::string_view function_;
  std::vector<std::int64_t> lengths_;
};

// Calls body.template operator()<T>() for the float type of the sequence.
template <class Body>
py::tuple with_floats(const Given& given, const Body& body) {
  if (has_dtype<float>(given.sequence)) return body.template operator()<float>();
  if (has_dtype<double>(given.sequence)) return body.template operator()<double>();
  throw_dtype({given.function, given.name}, given.sequence, "float32, float64");
}

py::tuple gru(const py::object& x, const py::object& weight_input, const py::object& weight,
              const py::object& bias_input, const py::object& bias_hidden, const py::object& h0,
              const py::object& lengths, bool reverse, bool reset_after, bool keep) {
  const Given given{
      "gru", "x",     3,      as_array(x, {"gru", "x"}), as_array(weight, {"gru", "weight"}),
      h0,    lengths, reverse};
  return with_floats(given, [&]<class T>() {
    Call<T> call(given);
    call.read(given.sequence, weight_input, bias_input, bias_hidden);
    RecurrentParams<T>& params = call.params;
    params.reset_after = reset_after;
    params.keep = keep;
    T* last = nullptr;
    py::object gates = py::none();
    py::object inner = py::none();
    if (keep) gates = call.fresh(call.all_gates(), params.gates);
    py::array output = call.fresh(call.steps(), params.output);
    py::array state = call.fresh(call.states(), last);
    if (keep || !reset_after) {
      inner = call.fresh(keep ? call.steps() : call.states(), params.inner);
    }
    {
      const py::gil_scoped_release released;
      run_recurrent<T>(params, kernels_of<T>(kernels()).gru, 3);
      finish_recurrent<T>(params, last);
    }
    return py::make_tuple(std::move(output), std::move(state), std::move(gates), std::move(inner));
  });
}

py::tuple lstm(const py::object& x, const py::object& weight_input, const py::object& weight,
               const py::object& bias_input, const py::object& bias_hidden, const py::object& h0,
               const py::object& c0, const py::object& lengths, bool reverse, bool keep) {
  const Given given{
      "lstm", "x",     4,      as_array(x, {"lstm", "x"}), as_array(weight, {"lstm", "weight"}),
      h0,     lengths, reverse};
  return with_floats(given, [&]<class T>() {
    Call<T> call(given);
    call.read(given.sequence, weight_input, bias_input, bias_hidden);
    RecurrentParams<T>& params = call.params;
    params.keep = keep;
    T* last = nullptr;
    py::object gates = py::none();
    py::object cells = py::none();
    if (keep) gates = call.fresh(call.all_gates(), params.gates);
    py::array output = call.fresh(call.steps(), params.output);
    py::array state = call.fresh(call.states(), last);
    py::array cell = call.moving(c0, "c0", params.cell);
    if (keep) cells = call.fresh(call.steps(), params.cells);
    {
      const py::gil_scoped_release released;
      run_recurrent<T>(params, kernels_of<T>(kernels()).lstm, 4);
      finish_recurrent<T>(params, last);
    }
    return py::make_tuple(std::move(output), std::move(state), std::move(cell), std::move(gates),
                          std::move(cells));
  });
}

py::tuple gru_gradient(const py::object& gates, const py::object& weight, const py::object& h0,
                       const py::object& lengths, bool reverse, bool reset_after,
                       const py::object& output, const py::object& inner,
                       const py::object& grad_output, const py::object& grad_state) {
  constexpr std::string_view kName = "gru_gradient";
  const Given given{kName,
                    "output",
                    3,
                    as_array(output, {kName, "output"}),
                    as_array(weight, {kName, "weight"}),
                    h0,
                    lengths,
                    reverse};
  return with_floats(given, [&]<class T>() {
    Call<T> call(given);
    RecurrentParams<T>& params = call.params;
    params.reset_after = reset_after;
    params.keep = true;
    params.gates = kept<T>(gates, call.all_gates(), {kName, "gates"});
    params.output = kept<T>(output, call.steps(), {kName, "output"});
    params.inner = kept<T>(inner, call.steps(), {kName, "inner"});
    params.grad_output = dense<T>(grad_output, call.steps(), {kName, "grad_output"});
    py::array state = call.moving(grad_state, "grad_state", params.grad_state);
    py::array sums = call.fresh(call.steps(4), params.grad_gates);
    {
      const py::gil_scoped_release released;
      run_recurrent<T>(params, kernels_of<T>(kernels()).gru_gradient, 3);
    }
    return py::make_tuple(std::move(sums), std::move(state));
  });
}

py::tuple lstm_gradient(const py::object& gates, const py::object& weight, const py::object& h0,
                        const py::object& c0, const py::object& lengths, bool reverse,
                        const py::object& cells, const py::object& grad_output,
                        const py::object& grad_state, const py::object& grad_cell) {
  constexpr std::string_view kName = "lstm_gradient";
  const Given given{kName,
                    "cells",
                    4,
                    as_array(cells, {kName, "cells"}),
                    as_array(weight, {kName, "weight"}),
                    h0,
                    lengths,
                    reverse};
  return with_floats(given, [&]<class T>() {
    Call<T> call(given);
    RecurrentParams<T>& params = call.params;
    params.keep = true;
    params.c0 = dense<T>(c0, call.states(), {kName, "c0"});
    params.gates = kept<T>(gates, call.all_gates(), {kName, "gates"});
    params.cells = kept<T>(cells, call.steps(), {kName, "cells"});
    params.grad_output = dense<T>(grad_output, call.steps(), {kName, "grad_output"});
    py::array state = call.moving(grad_state, "grad_state", params.grad_state);
    py::array cell = call.moving(grad_cell, "grad_cell", params.grad_cell);
    py::array sums = call.fresh(call.steps(4), params.grad_gates);
    {
      const py::gil_scoped_release released;
      run_recurrent<T>(params, kernels_of<T>(kernels()).lstm_gradient, 4);
    }
    return py::make_tuple(std::move(sums), std::move(state), std::move(cell));
  });
}

}  // namespace

void register_recurrent(py::module_& module) {
  module.def("gru", &gru, py::arg("x"), py::arg("weight_input"), py::arg("weight"),
             py::arg("bias_input"), py::arg("bias_hidden"), py::arg("h0"), py::arg("lengths"),
             py::arg("reverse"), py::arg("reset_after"), py::arg("keep"),
             "The states after the steps of a GRU, and what its gradient needs.");
  module.def("lstm", &lstm, py::arg("x"), py::arg("weight_input"), py::arg("weight"),
             py::arg("bias_input"), py::arg("bias_hidden"), py::arg("h0"), py::arg("c0"),
             py::arg("lengths"), py::arg("reverse"), py::arg("keep"),
             "The states after the steps of an LSTM, and what its gradient needs.");
  module.def("gru_gradient", &gru_gradient, py::arg("gates"), py::arg("weight"), py::arg("h0"),
             py::arg("lengths"), py::arg("reverse"), py::arg("reset_after"), py::arg("output"),
             py::arg("inner"), py::arg("grad_output"), py::arg("grad_state"),
             "The gradients inside the gates of a GRU, and of h0.");
  module.def("lstm_gradient", &lstm_gradient, py::arg("gates"), py::arg("weight"), py::arg("h0"),
             py::arg("c0"), py::arg("lengths"), py::arg("reverse"), py::arg("cells"),
             py::arg("grad_output"), py::arg("grad_state"), py::arg("grad_cell"),
             "The gradients inside the gates of an LSTM, and of h0 and c0.");
}

}  // namespace pyattn::python

#include "core/local.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <set>

#include "core/isa.h"
#include "python/position_call.h"
#include "python/register.h"

namespace pyattn::python {
namespace {

constexpr std::string_view kName = "local";
constexpr std::string_view kGradient = "local_backward";
constexpr std::int64_t kWidest = std::int64_t{1} << 40;

// The arrays of a call, for whichever element type.
struct LocalArrays {
  std::string_view function;
  py::array query;
  py::array key;
  py::array value;
  py::object centre;  // (B, T), or the state, the weight and the v that predict it
  std::int64_t half_width;
  bool renormalize;
  py::object v;
  py::object mask;
  py::object kv_lengths;

  void check() const {
    const py::ssize_t sizes[] = {query.shape(0), key.shape(1), query.shape(2)};
    if (key.shape(0) != sizes[0] || value.shape(0) != sizes[0] || value.shape(1) != sizes[1] ||
        key.shape(2) != sizes[2]) {
      throw py::value_error(std::string(function) + ": query (B, T, D), key (B, S, D) and value " +
                            "(B, S, E) must fit each other; got query " + shape_text(query) +
                            ", key " + shape_text(key) + ", value " + shape_text(value));
    }
    check_depths(query.shape(2), value.shape(2), function);
    if (half_width < 1 || half_width > kWidest) {
      throw py::value_error(std::string(function) + ": half_width must lie in 1.." +
                            std::to_string(kWidest) + ", got " + std::to_string(half_width));
    }
  }
};

LocalArrays local_arrays(std::string_view function, const py::object& query, const py::object& key,
                         const py::object& value, const py::object& centre, std::int64_t half_width,
                         bool renormalize, const py::object& v, const py::object& mask,
                         const py::object& kv_lengths) {
  LocalArrays arrays{.function = function,
                     .query = as_array(query, {function, "query"}),
                     .key = as_array(key, {function, "key"}),
                     .value = as_array(value, {function, "value"}),
                     .centre = centre,
                     .half_width = half_width,
                     .renormalize = renormalize,
                     .v = v,
                     .mask = mask,
                     .kv_lengths = kv_lengths};
  check_rank(arrays.query, 3, "(B, T, D)", {function, "query"});
  check_rank(arrays.key, 3, "(B, S, D)", {function, "key"});
  check_rank(arrays.value, 3, "(B, S, E)", {function, "value"});
  arrays.check();
  return arrays;
}

// The parameters of a call and the memory that they point to.
template <class X>
class LocalCall {
 public:
  using T = Compute<X>;

  explicit LocalCall(const LocalArrays& given) {
    const std::string_view name = given.function;
    const std::int64_t batch = given.query.shape(0);
    const std::int64_t rows = given.query.shape(1);
    const std::int64_t keys = given.key.shape(1);
    params = {.query = input_view<X, 3>(given.query, {name, "query"}),
              .key = input_view<X, 3>(given.key, {name, "key"}),
              .value = input_view<X, 3>(given.value, {name, "value"}),
              .keys = keys,
              .half_width = given.half_width,
              .renormalize = given.renormalize};
    set_centre(given);
    params.mask = mask_view<X>(given.mask, {batch, rows, keys}, name, params.keys);
    if (!given.kv_lengths.is_none()) {
      lengths_ = integers_of(given.kv_lengths, batch, 0, keys, {name, "kv_lengths"});
      params.kv_lengths = lengths_.data();
    }
    if (!given.v.is_none()) {
      direction_ = dense_vector<T>(given.v, given.query.shape(2), {name, "v"});
      // An empty vector has no address, by which the score is told.
      direction_.reserve(1);
      params.v = direction_.data();
    }
  }
  LocalCall(const LocalCall&) = delete;
  LocalCall& operator=(const LocalCall&) = delete;

  void run() {
    if (position_) {
      position_->params.kv_lengths = params.kv_lengths;
      run_positions<T>(position_->params);
    }
    run_local(params);
  }

  LocalParams<X> params;

 private:
  void set_centre(const LocalArrays& given) {
    const std::int64_t batch = params.query.shape[0];
    const std::int64_t rows = params.query.shape[1];
    if (!py::isinstance<py::tuple>(given.centre)) {
      const Argument argument{given.function, "centre"};
      params.centre = checked_view<T, 2>(as_array(given.centre, argument), {batch, rows}, argument);
      return;
    }
    const auto parts = py::reinterpret_borrow<py::tuple>(given.centre);
    if (parts.size() != 3) {
      throw py::type_error(std::string(given.function) + ": centre must be an array or three");
    }
    position_.emplace(parts[0], parts[1], parts[2], params.key.shape[1], given.function);
    PositionParams<T>& position = position_->params;
    if (position.state.shape[0] != batch || position.state.shape[1] != rows) {
      throw py::value_error(std::string(given.function) + ": state must have B and T of the query");
    }
    centre_.resize(static_cast<std::size_t>(batch * rows));
    position.centre = {.data = centre_.data(), .shape = {batch, rows}, .stride = {rows, 1}};
    params.centre = {.data = centre_.data(), .shape = {batch, rows}, .stride = {rows, 1}};
  }

  std::optional<PositionCall<T>> position_;
  std::vector<T> centre_;
  std::vector<T> direction_;
  std::vector<std::int64_t> lengths_;
};

Element element_of_arrays(const LocalArrays& given) {
  return common_element({{"query", &given.query}, {"key", &given.key}, {"value", &given.value}},
                        kFloats, given.function);
}

template <class U, int Rank>
py::array new_output(const std::vector<std::int64_t>& shape, View<U, Rank>& view,
                     std::string_view function) {
  py::array array = new_array<U>(shape, function);
  view = output_view<U, Rank>(array);
  return array;
}

template <class X>
py::object run_local_of(const LocalArrays& given, const py::object& aux) {
  LocalCall<X> call(given);
  LocalParams<X>& p = call.params;
  const std::int64_t batch = p.query.shape[0];
  const std::int64_t rows = p.query.shape[1];
  py::list results;
  results.append(new_output(std::vector{batch, rows, p.value.shape[2]}, p.out, kName));
  if (!aux.is_none()) {
    for (const py::handle item : aux) {
      const auto name = item.cast<std::string>();
      if (name == "lse") {
        results.append(new_output(std::vector{batch, rows}, p.lse, kName));
      } else if (name == "weights") {
        results.append(new_output(std::vector{batch, rows, p.key.shape[1]}, p.weights, kName));
      } else if (name == "window_weights") {
        const std::int64_t width = 2 * p.half_width + 1;
        results.append(new_output(std::vector{batch, rows, width}, p.window_weights, kName));
      } else {
        throw py::value_error(std::string(kName) + ": unknown output " + name);
      }
    }
  }
  {
    const py::gil_scoped_release released;
    call.run();
  }
  if (aux.is_none()) return py::object(results[0]);
  return py::tuple(results);
}

py::object local(const py::object& query, const py::object& key, const py::object& value,
                 const py::object& centre, std::int64_t half_width, bool renormalize,
                 const py::object& v, const py::object& mask, const py::object& kv_lengths,
                 const py::object& aux) {
  const LocalArrays given =
      local_arrays(kName, query, key, value, centre, half_width, renormalize, v, mask, kv_lengths);
  return with_element(element_of_arrays(given),
                      [&]<class X>() { return run_local_of<X>(given, aux); });
}

// Gradients of the outputs: None for 0.
struct LocalResults {
  py::object out;
  py::object lse;
  py::object weights;
  py::object window_weights;
};

template <class U, int Rank>
View<const U, Rank> optional_view(const py::object& object, const std::vector<std::int64_t>& shape,
                                  const Argument& argument) {
  if (object.is_none()) return {};
  return checked_view<U, Rank>(as_array(object, argument), shape, argument);
}

template <class X>
py::object run_gradient_of(const LocalArrays& given, const LocalResults& results,
                           const std::set<std::string>& want) {
  using T = Compute<X>;
  LocalCall<X> call(given);
  const LocalParams<X>& p = call.params;
  const std::int64_t batch = p.query.shape[0];
  const std::int64_t rows = p.query.shape[1];
  const std::int64_t keys = p.key.shape[1];
  const std::int64_t depth = p.query.shape[2];
  const std::int64_t columns = p.value.shape[2];
  const Argument out{kGradient, "grad_out"};
  LocalGradientParams<X> params{
      .forward = p,
      .grad_out = checked_view<X, 3>(as_array(results.out, out), {batch, rows, columns}, out),
      .grad_lse = optional_view<T, 2>(results.lse, {batch, rows}, {kGradient, "grad_lse"}),
      .grad_weights =
          optional_view<X, 3>(results.weights, {batch, rows, keys}, {kGradient, "grad_weights"}),
      .grad_window_weights =
          optional_view<X, 3>(results.window_weights, {batch, rows, 2 * p.half_width + 1},
                              {kGradient, "grad_window_weights"}),
  };
  std::vector<py::object> found(5, py::none());
  const auto make = [&](const char* name, std::size_t place, auto& view,
                        const std::vector<std::int64_t>& shape) {
    if (want.contains(name)) found[place] = new_output(shape, view, kGradient);
  };
  make("query", 0, params.grad_query, {batch, rows, depth});
  make("key", 1, params.grad_key, {batch, keys, depth});
  make("value", 2, params.grad_value, {batch, keys, columns});
  make("centre", 3, params.grad_centre, {batch, rows});
  if (want.contains("v") && p.v != nullptr) {
    py::array array = new_array<T>({depth}, kGradient);
    params.grad_v = output_data<T>(array);
    found[4] = std::move(array);
  }
  {
    const py::gil_scoped_release released;
    run_local_gradient(params);
  }
  return py::tuple(py::cast(found));
}

py::object local_backward(const py::object& query, const py::object& key, const py::object& value,
                          const py::object& centre, std::int64_t half_width, bool renormalize,
                          const py::object& v, const py::object& mask, const py::object& kv_lengths,
                          const py::object& grad_out, const py::object& grad_lse,
                          const py::object& grad_weights, const py::object& grad_window_weights,
                          const std::set<std::string>& want) {
  as_array(centre, {kGradient, "centre"});  // that of a position is the caller's to follow
  const LocalArrays given = local_arrays(kGradient, query, key, value, centre, half_width,
                                         renormalize, v, mask, kv_lengths);
  const LocalResults results{grad_out, grad_lse, grad_weights, grad_window_weights};
  return with_element(element_of_arrays(given),
                      [&]<class X>() { return run_gradient_of<X>(given, results, want); });
}

}  // namespace

void register_local(py::module_& module) {
  module.def("local", &local, py::arg("query"), py::arg("key"), py::arg("value"), py::arg("centre"),
             py::arg("half_width"), py::arg("renormalize"), py::arg("v"), py::arg("mask"),
             py::arg("kv_lengths"), py::arg("aux"),
             "Attention to the keys within half_width of each row's centre, and what aux names. "
             "centre may be (state, position_weight, position_v), which predict it.");
  module.def("local_backward", &local_backward, py::arg("query"), py::arg("key"), py::arg("value"),
             py::arg("centre"), py::arg("half_width"), py::arg("renormalize"), py::arg("v"),
             py::arg("mask"), py::arg("kv_lengths"), py::arg("grad_out"), py::arg("grad_lse"),
             py::arg("grad_weights"), py::arg("grad_window_weights"), py::arg("want"),
             "Gradients of local: (query, key, value, centre, v), None if not in want.");
}

}  // namespace pyattn::python

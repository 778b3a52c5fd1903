// What every mechanism of attention on dense arrays does between Python and its kernel: the
// outputs, the call.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "python/sdpa_call.h"

namespace pyattn::python {

// The caller's array for the output, of the right dtype, shape and layout.
template <class X>
void view_out(const py::object& object, const std::vector<std::int64_t>& shape, View<X, 4>& view,
              std::string_view function) {
  const Argument argument{function, "out"};
  py::array array = as_array(object, argument);
  if (!has_dtype<X>(array)) throw_dtype(argument, array, element_name(element_for<X>()));
  bool fits = array.ndim() == 4;
  for (py::ssize_t i = 0; fits && i < 4; ++i) {
    fits = array.shape(i) == shape[static_cast<std::size_t>(i)];
  }
  if (!fits) {
    throw py::value_error(argument.text() + " must have the shape of the output; got " +
                          shape_text(array));
  }
  const auto input = input_view<X, 4>(array, argument);
  if (input.stride[3] != 1) {
    throw py::value_error(argument.text() + " must be contiguous along its last axis");
  }
  view.data = static_cast<X*>(array.mutable_data());
  for (int i = 0; i < 4; ++i) {
    view.shape[i] = input.shape[i];
    view.stride[i] = input.stride[i];
  }
}

// The outputs that `aux` names, in its order, behind the first.
template <class X>
class Outputs {
 public:
  using T = Compute<X>;

  Outputs(AttentionParams<X>& params, std::int64_t keys, std::int64_t top_k,
          std::string_view function)
      : params_(params),
        name_(function),
        rows_{params.batch, params.query.shape[1], params.query.shape[2]},
        scores_{rows_[0], rows_[1], rows_[2], keys},
        top_k_(top_k) {}

  py::array add_out(const py::object& given, std::int64_t columns) {
    const std::vector<std::int64_t> shape = {rows_[0], rows_[1], rows_[2], columns};
    if (!given.is_none()) {
      view_out<X>(given, shape, params_.out, name_);
      return py::reinterpret_borrow<py::array>(given);
    }
    auto array = new_array<X>(shape, name_);
    params_.out = output_view<X, 4>(array);
    return array;
  }

  py::array add(const std::string& name) {
    if (name == "lse") return vector(params_.lse);
    if (name == "max") return vector(params_.max);
    if (name == "entropy") return vector(params_.entropy);
    if (name == "weights") return matrix(params_.weights);
    if (name == "scores") return extra(ScoreStage::plain);
    if (name == "capped_scores") return extra(ScoreStage::capped);
    if (name == "biased_scores") return extra(ScoreStage::biased);
    if (name == "top_weights" || name == "top_indices") return top(name == "top_weights");
    throw py::value_error(std::string(name_) + ": unknown output " + name);
  }

  // The scores before the softmax are runs of their own, without an output.
  template <class Run>
  void run_extra(const Run& run) {
    const AttentionParams<X> all = params_;
    for (const auto& [stage, view] : extra_) {
      params_ = scores_of(all, stage, view);
      run();
    }
    params_ = all;
  }

 private:
  py::array vector(View<T, 3>& view) {
    auto array = new_array<T>(rows_, name_);
    view = output_view<T, 3>(array);
    return array;
  }
  py::array matrix(View<X, 4>& view) {
    auto array = new_array<X>(scores_, name_);
    view = output_view<X, 4>(array);
    return array;
  }
  py::array extra(ScoreStage stage) {
    View<X, 4> view;
    auto array = matrix(view);
    extra_.push_back({stage, view});
    return array;
  }
  // Both are made when the first is asked for.
  py::array top(bool weights) {
    if (!top_weights_) {
      const std::vector<std::int64_t> shape = {rows_[0], rows_[1], rows_[2], top_k_};
      top_weights_ = std::make_unique<py::array>(new_array<T>(shape, name_));
      top_indices_ = std::make_unique<py::array>(new_array<std::int64_t>(shape, name_));
      params_.top_weights = output_view<T, 4>(*top_weights_);
      params_.top_indices = output_view<std::int64_t, 4>(*top_indices_);
    }
    return weights ? *top_weights_ : *top_indices_;
  }

  AttentionParams<X>& params_;
  std::string_view name_;
  std::vector<std::int64_t> rows_;
  std::vector<std::int64_t> scores_;
  std::int64_t top_k_;
  std::vector<std::pair<ScoreStage, View<X, 4>>> extra_;
  std::unique_ptr<py::array> top_weights_;
  std::unique_ptr<py::array> top_indices_;
};

// `v`: that of additive attention, (H, A) without gaps, or null.
template <class X>
py::object run_dense(const py::array& query, const py::array& key, const py::array& value,
                     const Compute<X>* v, const py::object& mask, const SdpaOptions& options,
                     const py::object& aux, std::string_view function) {
  const std::int64_t keys = key.shape(2);
  AttentionParams<X> given{
      .query = input_view<X, 4>(query, {function, "query"}),
      .key = input_view<X, 4>(key, {function, "key"}),
      .value = input_view<X, 4>(value, {function, "value"}),
      .batch = query.shape(0),
      .keys = keys,
      .v = v,
  };
  given.mask = mask_view<X>(mask, {query.shape(0), query.shape(1), query.shape(2), keys}, function,
                            given.keys);
  SdpaCall<X> call(given, options, function);
  call.set_lengths(keys);
  call.set_rows(query.shape(2));
  call.set_rotary();
  AttentionParams<X>& params = call.params();
  Outputs<X> outputs(params, keys, options.top_k, function);
  py::array out = outputs.add_out(options.out, value.shape(3));
  if (aux.is_none()) {
    call.run();
    return out;
  }
  py::list results;
  results.append(std::move(out));
  for (const py::handle name : aux) results.append(outputs.add(name.cast<std::string>()));
  call.run();
  outputs.run_extra([&] { call.run(); });
  return py::tuple(results);
}

}  // namespace pyattn::python

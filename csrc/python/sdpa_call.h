// What the dense, packed and paged forms of scaled dot-product attention have in common between
// Python and the kernels: the optional arguments, the outputs, the call.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "core/attention.h"
#include "core/isa.h"
#include "python/attention_arguments.h"

namespace pyattn::python {

// Everything beside the arrays and the mask. The objects are checked where the dtype is known.
struct SdpaOptions {
  double scale = 1;
  double softcap = 0;
  std::int64_t left = kUnbounded;
  std::int64_t right = kUnbounded;
  double dropout = 0;
  std::uint64_t seed = 0;
  std::int64_t top_k = 0;
  py::object kv_lengths = py::none();
  py::object query_starts = py::none();
  py::object slopes = py::none();
  py::object sinks = py::none();
  py::object rows = py::none();
  py::object lse = py::none();
  py::object out = py::none();
  py::object rotary = py::none();  // (cosines, sines, interleaved, whether keys are turned too)
};

// From a dictionary with some of the names above, or None. Throws TypeError for another name.
SdpaOptions sdpa_options(const py::object& dictionary, double scale, std::int64_t right,
                         std::string_view function);

// (H,) or (A,): a dense copy in the type of the arithmetic.
template <class T>
std::vector<T> dense_vector(const py::object& object, std::int64_t length,
                            const Argument& argument) {
  const py::array array = as_array(object, argument);
  if (!has_dtype<T>(array)) throw_dtype(argument, array, element_name(element_for<T>()));
  if (array.ndim() != 1 || array.shape(0) != length) {
    throw py::value_error(argument.text() + " must have shape (" + std::to_string(length) +
                          ",), got " + shape_text(array));
  }
  const auto view = input_view<T, 1>(array, argument);
  std::vector<T> copy;
  copy.reserve(static_cast<std::size_t>(length));
  for (std::int64_t i = 0; i < length; ++i) copy.push_back(view.data[i * view.stride[0]]);
  return copy;
}

// The v of additive attention, (H, A): a copy without gaps.
template <class T>
std::vector<T> dense_rows(const py::object& object, std::int64_t heads, std::int64_t length,
                          std::string_view function) {
  const Argument argument{function, "v"};
  const auto view = checked_view<T, 2>(as_array(object, argument), {heads, length}, argument);
  std::vector<T> copy;
  copy.reserve(static_cast<std::size_t>(heads * length));
  for (std::int64_t h = 0; h < heads; ++h) {
    for (std::int64_t a = 0; a < length; ++a) {
      copy.push_back(view.data[h * view.stride[0] + a * view.stride[1]]);
    }
  }
  return copy;
}

// A call in the making: parameters, the memory that they point to, and the outputs.
template <class X>
class SdpaCall {
 public:
  using T = Compute<X>;

  SdpaCall(AttentionParams<X> params, const SdpaOptions& options, std::string_view function)
      : params_(params), options_(options), name_(function) {
    const std::int64_t heads = params_.query.shape[1];
    params_.scale = static_cast<T>(options.scale);
    if (!std::isfinite(params_.scale)) {
      throw py::value_error(std::string(function) + ": scale must be finite, got " +
                            std::to_string(options.scale));
    }
    params_.softcap = static_cast<T>(options.softcap);
    params_.left = options.left;
    params_.right = options.right;
    if (options.dropout > 0) {
      params_.dropout = {.on = true,
                         .threshold = static_cast<std::uint32_t>(options.dropout * 4294967296.0),
                         .seed = options.seed,
                         .factor = static_cast<T>(1 / (1 - options.dropout))};
    }
    if (!options.slopes.is_none()) {
      slopes_ = dense_vector<T>(options.slopes, heads, {name_, "alibi_slopes"});
      params_.slopes = slopes_.data();
    }
    if (!options.sinks.is_none()) {
      sinks_ = dense_vector<T>(options.sinks, heads, {name_, "sinks"});
      params_.sinks = sinks_.data();
    }
    if (!options.query_starts.is_none()) {
      starts_ = integers_of(options.query_starts, params_.batch, -kFarthest, kFarthest,
                            {name_, "query_starts"});
      params_.query_starts = starts_.data();
    }
  }

  AttentionParams<X>& params() { return params_; }

  void set_lengths(std::int64_t most) {
    if (options_.kv_lengths.is_none()) return;
    lengths_ = integers_of(options_.kv_lengths, params_.batch, 0, most, {name_, "kv_lengths"});
    params_.kv_lengths = lengths_.data();
  }

  // The number of output rows per head: those of `rows`, or all.
  void set_rows(std::int64_t length) {
    if (options_.rows.is_none()) return;
    const py::array array = as_array(options_.rows, {name_, "rows"});
    if (array.ndim() != 1) {
      throw py::value_error(std::string(name_) + ": rows must be a vector, got " +
                            shape_text(array));
    }
    rows_ = integers_of(array, array.shape(0), 0, length - 1, {name_, "rows"});
    params_.rows = rows_.data();
    params_.query.shape[2] = array.shape(0);
  }

  // The others are set by now: which positions there are depends on them.
  void set_rotary() {
    if (options_.rotary.is_none()) return;
    std::int64_t first = 0;
    std::int64_t end = 0;
    if (!starts_.empty()) {
      const auto [least, most] = std::minmax_element(starts_.begin(), starts_.end());
      first = *least;
      end = *most;
    }
    if (first < 0 || params_.query.stride[3] != 1 || params_.key.stride[3] != 1) {
      throw py::value_error(std::string(name_) +
                            ": rotary takes positions from 0 on, and rows of query and key "
                            "without gaps between their numbers");
    }
    const auto given = options_.rotary.cast<py::tuple>();
    const auto cosine = table(given[0], {name_, "rotary cosines"});
    const auto sine = table(given[1], {name_, "rotary sines"});
    const bool interleaved = given[2].cast<bool>();
    const bool keys = given[3].cast<bool>();
    end = std::max(end + params_.query.shape[2], keys ? params_.key.shape[2] : 0);
    if (cosine.shape[0] < end || sine.shape[0] < end || cosine.shape[1] != sine.shape[1] ||
        cosine.stride[0] != sine.stride[0] || sine.stride[1] != 1 || cosine.stride[1] != 1) {
      throw py::value_error(std::string(name_) + ": rotary tables must have " +
                            std::to_string(end) + " rows of the same length and layout");
    }
    const std::int64_t pairs = interleaved ? cosine.shape[1] / 2 : cosine.shape[1];
    if (2 * pairs > params_.query.shape[3]) {
      throw py::value_error(std::string(name_) + ": rotary tables must have 2 * pairs <= D");
    }
    params_.turn = {.cosine = cosine.data,
                    .sine = sine.data,
                    .stride = cosine.stride[0],
                    .pairs = pairs,
                    .interleaved = interleaved,
                    .keys = keys};
  }

  void run() {
    const py::gil_scoped_release released;
    run_mechanism(params_);
  }

 private:
  View<const T, 2> table(const py::object& object, const Argument& argument) const {
    const py::array array = as_array(object, argument);
    if (!has_dtype<T>(array)) throw_dtype(argument, array, element_name(element_for<T>()));
    check_rank(array, 2, "(positions, pairs)", argument);
    return input_view<T, 2>(array, argument);
  }

  static constexpr std::int64_t kFarthest = std::int64_t{1} << 40;

  AttentionParams<X> params_;
  const SdpaOptions& options_;
  std::string_view name_;
  std::vector<T> slopes_;
  std::vector<T> sinks_;
  std::vector<std::int64_t> starts_;
  std::vector<std::int64_t> lengths_;
  std::vector<std::int64_t> rows_;
};

// Calls body.template operator()<X>() for the storage type that `element` names.
template <class Body>
py::object with_element(Element element, const Body& body) {
  switch (element) {
    case Element::float32:
      return body.template operator()<float>();
    case Element::float64:
      return body.template operator()<double>();
    case Element::float16:
      return body.template operator()<Half>();
    default:
      return body.template operator()<BFloat16>();
  }
}

inline const std::vector<Element> kFloats = {Element::float32, Element::float64, Element::float16,
                                             Element::bfloat16};

}  // namespace pyattn::python

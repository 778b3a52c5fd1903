// pyattn_serving._json: the arrays of an infer request in JSON, read without Python numbers.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <stdexcept>

#include "json/read.h"
#include "json/scan.h"

namespace py = pybind11;

namespace pyattn::json {
namespace {

std::string_view text_of(const py::buffer_info& buffer) {
  if (buffer.ndim != 1 || buffer.itemsize != 1 || (buffer.size > 1 && buffer.strides[0] != 1)) {
    throw std::invalid_argument("the text must be contiguous bytes");
  }
  return {static_cast<const char*>(buffer.ptr), static_cast<std::size_t>(buffer.size)};
}

// Positions are told in characters, as people count.
std::int64_t characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

// Lets other threads run while a long text is read. For a short one it would cost more than it
// gives: whoever takes the lock meanwhile keeps it for up to some milliseconds.
class MaybeReleased {
 public:
  explicit MaybeReleased(std::size_t bytes) {
    if (bytes > kShortText) released_.emplace();
  }

 private:
  static constexpr std::size_t kShortText = std::size_t{1} << 15;
  std::optional<py::gil_scoped_release> released_;
};

py::tuple split_request(const py::buffer& text, int depth, std::size_t envelope) {
  const py::buffer_info buffer = text.request();
  const std::string_view view = text_of(buffer);
  Parts parts;
  Fault fault;
  {
    const MaybeReleased released(view.size());
    fault = split(view, {depth, envelope}, parts);
  }
  py::list spans;
  for (const Span& span : parts.data) spans.append(py::make_tuple(span.begin, span.end));
  return py::make_tuple(fault.reason == nullptr ? "" : fault.reason,
                        py::make_tuple(fault.position, characters(view.substr(0, fault.position))),
                        py::bytes(parts.envelope), spans);
}

const char* outcome_name(Outcome outcome) {
  switch (outcome) {
    case Outcome::kDone:
      return "done";
    case Outcome::kNoList:
      return "no list";
    case Outcome::kNesting:
      return "nesting";
    case Outcome::kCount:
      return "count";
    case Outcome::kType:
      return "type";
    case Outcome::kRange:
      return "range";
    case Outcome::kTooLarge:
      return "too large";
    case Outcome::kBeyondDouble:
      break;
  }
  return "beyond double";
}

template <class T>
Reading read_as(std::string_view text, const Span& span, const std::vector<std::int64_t>& shape,
                py::array* out) {
  T* data = out == nullptr ? nullptr : static_cast<T*>(out->mutable_data());
  const MaybeReleased released(span.end - span.begin);
  return read<T>(text, span, shape, data);
}

using Read = Reading (*)(std::string_view, const Span&, const std::vector<std::int64_t>&,
                         py::array*);

Read reader_for(const py::dtype& dtype) {
  switch (dtype.num()) {
    case py::detail::npy_api::NPY_BOOL_:
      return &read_as<bool>;
    case py::detail::npy_api::NPY_FLOAT_:
      return &read_as<float>;
    case py::detail::npy_api::NPY_DOUBLE_:
      return &read_as<double>;
    default:
      break;
  }
  switch (dtype.kind() == 'i' || dtype.kind() == 'u' ? dtype.kind() + dtype.itemsize() : 0) {
    case 'i' + 1:
      return &read_as<std::int8_t>;
    case 'i' + 2:
      return &read_as<std::int16_t>;
    case 'i' + 4:
      return &read_as<std::int32_t>;
    case 'i' + 8:
      return &read_as<std::int64_t>;
    case 'u' + 1:
      return &read_as<std::uint8_t>;
    case 'u' + 2:
      return &read_as<std::uint16_t>;
    case 'u' + 4:
      return &read_as<std::uint32_t>;
    case 'u' + 8:
      return &read_as<std::uint64_t>;
    default:
      throw py::type_error("no array of this dtype can be read from JSON");
  }
}

py::tuple read_array(const py::buffer& text, std::size_t begin, std::size_t end,
                     const std::vector<std::int64_t>& shape, const py::object& out) {
  const py::buffer_info buffer = text.request();
  const std::string_view view = text_of(buffer);
  if (begin >= end || end > view.size()) throw std::invalid_argument("no such part of the text");
  Reading reading;
  if (out.is_none()) {
    reading = read_as<bool>(view, {begin, end}, shape, nullptr);
  } else {
    py::array array = py::cast<py::array>(out);
    std::int64_t size = 1;
    for (const std::int64_t length : shape) size *= length;
    if ((array.flags() & py::array::c_style) == 0 || array.size() != size) {
      throw std::invalid_argument("out must be contiguous and of the size of the shape");
    }
    reading = reader_for(array.dtype())(view, {begin, end}, shape, &array);
  }
  return py::make_tuple(outcome_name(reading.outcome), reading.count, reading.element,
                        py::make_tuple(reading.token.begin, reading.token.end));
}

}  // namespace
}  // namespace pyattn::json

PYBIND11_MODULE(_json, module, py::mod_gil_not_used()) {
  module.doc() = "The arrays of an infer request in JSON, read without Python numbers.";
  module.def(
      "split", &pyattn::json::split_request, py::arg("text"), py::arg("depth"), py::arg("envelope"),
      "(why this is not JSON or \"\", (byte, character), the JSON without the values of 'data', "
      "their spans).");
  module.def("read", &pyattn::json::read_array, py::arg("text"), py::arg("begin"), py::arg("end"),
             py::arg("shape"), py::arg("out"),
             "(outcome, count, element, span): read a list into `out`, or count it for None.");
}

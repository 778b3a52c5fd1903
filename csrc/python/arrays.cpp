#include "python/arrays.h"

#include <pybind11/gil_safe_call_once.h>

#include <algorithm>
#include <bit>
#include <utility>

namespace pyattn::python {
namespace {

// Smaller arrays come from memory that the C library keeps at hand.
constexpr std::int64_t kLeastBytes = std::int64_t{1} << 17;
// Of the memory of results, this much is remembered at most, in so many arrays.
constexpr std::int64_t kMostBytes = std::int64_t{1} << 26;
constexpr std::size_t kMostArrays = 32;

// The memory of large results, in use or not, what was used last at the end. An array that nobody
// else refers to, no view of it either, is given out again. The oldest are forgotten for new ones:
// no more than kMostBytes are kept of what is not in use.
class ResultMemory {
 public:
  // A flat array.
  py::array take(const py::dtype& dtype, py::ssize_t count, std::int64_t bytes) {
    if (bytes > kMostBytes) return {dtype, count};
    const auto fits = [&](const py::array& array) {
      return array.ref_count() == 1 && array.size() == count && array.dtype().num() == dtype.num();
    };
    const auto found = std::find_if(arrays_.begin(), arrays_.end(), fits);
    if (found != arrays_.end()) {
      std::rotate(found, found + 1, arrays_.end());
      return arrays_.back();
    }
    while (!arrays_.empty() && (bytes_ + bytes > kMostBytes || arrays_.size() == kMostArrays)) {
      const py::array oldest = std::move(arrays_.front());  // freed when the list is in order
      arrays_.erase(arrays_.begin());
      bytes_ -= oldest.nbytes();
    }
    py::array array(dtype, count);
    arrays_.push_back(array);
    bytes_ += bytes;
    return array;
  }

 private:
  std::vector<py::array> arrays_;
  std::int64_t bytes_ = 0;
};

// From NumPy's list of type numbers.
constexpr int kBool = 0;
constexpr int kFloat = 11;
constexpr int kDouble = 12;
constexpr int kHalf = 23;
constexpr int kFirstRegistered = 256;

// Looked up when the first array of a type that NumPy does not have itself comes along.
const py::dtype& bfloat16() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::dtype> storage;
  return storage
      .call_once_and_store_result(
          [] { return py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16")); })
      .get_stored();
}

}  // namespace

py::array array_in_memory(const py::dtype& dtype, const std::vector<py::ssize_t>& shape,
                          std::int64_t bytes) {
  if (bytes < kLeastBytes) return {dtype, shape};
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<ResultMemory> storage;
  ResultMemory& memory =
      storage.call_once_and_store_result([] { return ResultMemory(); }).get_stored();
  const py::array flat = memory.take(dtype, bytes / dtype.itemsize(), bytes);
  return {dtype, shape, flat.data(), flat};
}

Element element_of(const py::array& array) {
  const py::dtype dtype = array.dtype();
  constexpr char kSwapped = std::endian::native == std::endian::little ? '>' : '<';
  if (dtype.byteorder() == kSwapped) return Element::other;
  const int number = dtype.num();
  if (number == kFloat) return Element::float32;
  if (number == kDouble) return Element::float64;
  if (number == kHalf) return Element::float16;
  if (number == kBool) return Element::boolean;
  if (dtype.kind() == 'i') {
    if (dtype.itemsize() == 4) return Element::int32;
    return dtype.itemsize() == 8 ? Element::int64 : Element::other;
  }
  const bool found = number >= kFirstRegistered && number == bfloat16().num();
  return found ? Element::bfloat16 : Element::other;
}

const char* element_name(Element element) {
  switch (element) {
    case Element::float32:
      return "float32";
    case Element::float64:
      return "float64";
    case Element::float16:
      return "float16";
    case Element::bfloat16:
      return "bfloat16";
    case Element::boolean:
      return "bool";
    case Element::int32:
      return "int32";
    case Element::int64:
      return "int64";
    case Element::other:
      break;
  }
  return "other";
}

py::dtype dtype_for(Element element) {
  switch (element) {
    case Element::float32:
      return py::dtype(kFloat);
    case Element::float64:
      return py::dtype(kDouble);
    case Element::float16:
      return py::dtype(kHalf);
    case Element::bfloat16:
      return bfloat16();
    default:
      return py::dtype(element_name(element));
  }
}

}  // namespace pyattn::python

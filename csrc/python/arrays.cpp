#include "python/arrays.h"

#include <pybind11/gil_safe_call_once.h>

#include <bit>

namespace pyattn::python {
namespace {

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

// NumPy's arrays for other libraries.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "python/dlpack.h"

namespace pyattn::python {
namespace {

using dlpack::DataType;
using dlpack::UnversionedTensor;
using dlpack::VersionedTensor;

DataType dlpack_dtype(const py::dtype& dtype) {
  const auto bits = static_cast<std::uint8_t>(dtype.itemsize() * 8);
  const bool native = dtype.byteorder() == '=' || dtype.byteorder() == '|';
  const char kind = dtype.kind();
  if (native && dtype.itemsize() <= 8) {
    if (kind == 'f') return {dlpack::kFloat, bits, 1};
    if (kind == 'i') return {dlpack::kInt, bits, 1};
    if (kind == 'u') return {dlpack::kUInt, bits, 1};
    if (kind == 'b') return {dlpack::kBool, bits, 1};
    // Only ml_dtypes makes bfloat16, so that here it is imported already or this is another type.
    const bool registered = kind == 'V' && bits == 16;
    if (registered && dtype.equal(dlpack::bfloat16())) return {dlpack::kBfloat, bits, 1};
  }
  throw py::type_error("to_dlpack: array has dtype " +
                       py::str(static_cast<const py::object&>(dtype)).cast<std::string>() +
                       "; supported, in native byte order: float16, bfloat16, float32, float64, "
                       "bool, integers");
}

// What a capsule points to, and what it keeps alive.
template <class Managed>
struct Export {
  Managed managed{};
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;
  py::array array;
};

// Called by a consumer, from any thread.
template <class Managed>
void destroy(Managed* managed) {
  if (Py_IsInitialized() == 0) return;  // the array went with the interpreter
  const py::gil_scoped_acquire acquired;
  const py::error_scope kept;
  delete static_cast<Export<Managed>*>(managed->context);
}

template <class Managed>
void destroy_unused(PyObject* capsule) {
  if (PyCapsule_IsValid(capsule, Managed::kName) == 0) return;  // a consumer took it over
  destroy(static_cast<Managed*>(PyCapsule_GetPointer(capsule, Managed::kName)));
}

bool has_element_strides(const py::array& array) {
  for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
    if (array.strides(axis) % array.itemsize() != 0) return false;
  }
  return true;
}

template <class Managed>
void describe(Export<Managed>& out, const DataType& dtype) {
  const py::array& array = out.array;
  const bool ordered = (array.flags() & py::array::c_style) != 0;
  std::int64_t step = 1;
  out.shape.assign(array.shape(), array.shape() + array.ndim());
  out.strides.resize(out.shape.size());
  for (std::size_t axis = out.shape.size(); axis-- > 0;) {
    // NumPy leaves any stride on an axis of one element; some consumers insist on C order there.
    const auto stride = array.strides(static_cast<py::ssize_t>(axis)) / array.itemsize();
    out.strides[axis] = ordered ? step : stride;
    step *= out.shape[axis] > 1 ? out.shape[axis] : 1;
  }
  out.managed.context = &out;
  out.managed.deleter = &destroy<Managed>;
  out.managed.tensor = {
      .data = const_cast<void*>(array.data()),
      .device = {dlpack::kCpu, 0},
      .ndim = static_cast<std::int32_t>(array.ndim()),
      .dtype = dtype,
      .shape = out.shape.data(),
      .strides = out.strides.data(),
      .byte_offset = 0,
  };
}

void describe_version(UnversionedTensor&, bool, bool) {}
void describe_version(VersionedTensor& managed, bool read_only, bool copied) {
  managed.version = dlpack::kVersion;
  managed.flags = (read_only ? dlpack::kReadOnly : 0) | (copied ? dlpack::kCopied : 0);
}

template <class Managed>
std::unique_ptr<Export<Managed>> make_export(py::array array, const DataType& dtype, bool copied) {
  auto out = std::make_unique<Export<Managed>>();
  out->array = std::move(array);
  describe(*out, dtype);
  describe_version(out->managed, !out->array.writeable(), copied);
  return out;
}

template <class Managed>
py::object export_capsule(const py::array& array, const DataType& dtype, bool copied) {
  auto out = make_export<Managed>(array, dtype, copied);
  auto capsule = py::reinterpret_steal<py::object>(
      PyCapsule_New(&out->managed, Managed::kName, &destroy_unused<Managed>));
  if (!capsule) throw py::error_already_set();
  static_cast<void>(out.release());
  return capsule;
}

}  // namespace

DlpackArray::DlpackArray(py::array array)
    : array_(std::move(array)), dtype_(dlpack_dtype(array_.dtype())) {}

py::object DlpackArray::capsule(const py::object& stream, const py::object& max_version,
                                const py::object& dl_device, const py::object& copy) const {
  if (!stream.is_none()) throw py::value_error("__dlpack__: the CPU has no streams; got a stream");
  if (!dl_device.is_none() &&
      dl_device.cast<std::pair<std::int32_t, std::int32_t>>().first != dlpack::kCpu) {
    throw py::buffer_error("__dlpack__: the array is on the CPU and stays there");
  }
  const bool versioned =
      !max_version.is_none() &&
      max_version.cast<std::pair<std::uint32_t, std::uint32_t>>().first >= dlpack::kVersion.major;
  // Only version 1 can say "read-only"; strides always count elements.
  const bool as_is = has_element_strides(array_) && (versioned || array_.writeable());
  const bool wanted = !copy.is_none() && copy.cast<bool>();
  if (!as_is && !copy.is_none() && !wanted) {
    throw py::buffer_error("__dlpack__: this array cannot be exported without a copy");
  }
  const bool copied = wanted || !as_is;
  const py::array array = copied ? array_.attr("copy")() : py::object(array_);
  return versioned ? export_capsule<VersionedTensor>(array, dtype_, copied)
                   : export_capsule<UnversionedTensor>(array, dtype_, copied);
}

py::object same_kind(const py::object& original, const py::array& array) {
  const dlpack::ExchangeApi* api = dlpack::exchange_api(original);
  if (api == nullptr || !has_element_strides(array)) return py::none();
  auto out = make_export<VersionedTensor>(array, dlpack_dtype(array.dtype()), false);
  void* result = nullptr;
  // The callee owns what it is given, even where it fails.
  if (api->to_object(&out.release()->managed, &result) != 0) dlpack::throw_exchange_error();
  return py::reinterpret_steal<py::object>(static_cast<PyObject*>(result));
}

}  // namespace pyattn::python

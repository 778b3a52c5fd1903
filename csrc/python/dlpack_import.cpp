// Arrays of other libraries as views of NumPy's.
#include <limits>
#include <string>
#include <vector>

#include "python/dlpack.h"

namespace pyattn::python {
namespace {

using dlpack::DataType;
using dlpack::Tensor;
using dlpack::UnversionedTensor;
using dlpack::VersionedTensor;

constexpr int kNumPyHalf = 23;  // NPY_HALF, fixed by NumPy's binary interface

py::dtype signed_dtype(int bits) {
  if (bits == 8) return py::dtype::of<std::int8_t>();
  if (bits == 16) return py::dtype::of<std::int16_t>();
  return bits == 32 ? py::dtype::of<std::int32_t>() : py::dtype::of<std::int64_t>();
}

py::dtype unsigned_dtype(int bits) {
  if (bits == 8) return py::dtype::of<std::uint8_t>();
  if (bits == 16) return py::dtype::of<std::uint16_t>();
  return bits == 32 ? py::dtype::of<std::uint32_t>() : py::dtype::of<std::uint64_t>();
}

py::dtype numpy_dtype(const DataType& type) {
  const int bits = type.bits;
  if (type.lanes == 1) {
    const bool whole = bits == 8 || bits == 16 || bits == 32 || bits == 64;
    if (type.code == dlpack::kFloat && bits == 32) return py::dtype::of<float>();
    if (type.code == dlpack::kFloat && bits == 64) return py::dtype::of<double>();
    if (type.code == dlpack::kFloat && bits == 16) return py::dtype(kNumPyHalf);
    if (type.code == dlpack::kBfloat && bits == 16) return dlpack::bfloat16();
    if (type.code == dlpack::kBool && bits == 8) return py::dtype::of<bool>();
    if (type.code == dlpack::kInt && whole) return signed_dtype(bits);
    if (type.code == dlpack::kUInt && whole) return unsigned_dtype(bits);
  }
  throw py::type_error("the DLPack dtype with code " + std::to_string(type.code) + ", " +
                       std::to_string(bits) + " bits and " + std::to_string(type.lanes) +
                       " lanes is not supported; supported: float16, bfloat16, float32, float64, "
                       "bool, integers");
}

std::string device_name(const dlpack::Device& device) {
  const std::string id = std::to_string(device.id);
  if (device.type == 2) return "CUDA device " + id;
  if (device.type == 8) return "Metal device " + id;
  if (device.type == 10) return "ROCm device " + id;
  return "device " + id + " of DLPack's type " + std::to_string(device.type);
}

void check_device(const dlpack::Device& device) {
  if (device.type == dlpack::kCpu || device.type == dlpack::kCudaHost ||
      device.type == dlpack::kRocmHost) {
    return;
  }
  throw py::value_error("must be in the memory of the CPU; got an array on " + device_name(device));
}

// Byte strides; C order where the exporter gives none.
std::vector<py::ssize_t> byte_strides(const Tensor& tensor, const std::vector<py::ssize_t>& shape,
                                      py::ssize_t item) {
  std::vector<py::ssize_t> strides(shape.size());
  py::ssize_t step = item;
  constexpr py::ssize_t kMost = std::numeric_limits<py::ssize_t>::max();
  for (std::size_t axis = shape.size(); axis-- > 0;) {
    if (tensor.strides == nullptr) {
      strides[axis] = step;
      const py::ssize_t length = shape[axis] > 1 ? shape[axis] : 1;
      if (step > kMost / length) throw py::value_error("has too many elements");
      step *= length;
      continue;
    }
    const std::int64_t stride = tensor.strides[axis];
    if (stride > kMost / item || stride < -(kMost / item)) {
      throw py::value_error("has a stride of " + std::to_string(stride) + " elements on axis " +
                            std::to_string(axis) + ", which is too large");
    }
    strides[axis] = stride * item;
  }
  return strides;
}

struct Layout {
  py::dtype dtype;
  std::vector<py::ssize_t> shape;
  std::vector<py::ssize_t> strides;
  const char* data;
};

Layout layout_of(const Tensor& tensor) {
  check_device(tensor.device);
  Layout layout{.dtype = numpy_dtype(tensor.dtype), .shape = {}, .strides = {}, .data = nullptr};
  bool empty = false;
  for (std::int32_t axis = 0; axis < tensor.ndim; ++axis) {
    if (tensor.shape[axis] < 0) {
      throw py::value_error("has a negative size, " + std::to_string(tensor.shape[axis]) +
                            ", on axis " + std::to_string(axis));
    }
    empty |= tensor.shape[axis] == 0;
    layout.shape.push_back(tensor.shape[axis]);
  }
  layout.strides = byte_strides(tensor, layout.shape, layout.dtype.itemsize());
  if (tensor.data != nullptr) {
    layout.data = static_cast<const char*>(tensor.data) + tensor.byte_offset;
  } else if (!empty) {
    throw py::value_error("has no memory: its data pointer is NULL");
  }
  return layout;
}

void check_version(const UnversionedTensor&) {}

// Of another major version nothing but the deleter may be touched.
void check_version(const VersionedTensor& managed) {
  if (managed.version.major == dlpack::kVersion.major) return;
  throw py::value_error("exports DLPack version " + std::to_string(managed.version.major) + "." +
                        std::to_string(managed.version.minor) + "; supported: 1");
}

// Without the versioned protocol there is no telling, so that nothing is written to.
bool is_read_only(const UnversionedTensor&) { return true; }
bool is_read_only(const VersionedTensor& managed) {
  return (managed.flags & dlpack::kReadOnly) != 0;
}

template <class Managed>
void release(PyObject* owner) {
  const py::error_scope kept;  // the exporter's code runs inside whatever freed the array
  auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(owner, nullptr));
  if (managed->deleter != nullptr) managed->deleter(managed);
}

// From here on the deleter is ours to call, which the base of the view does.
template <class Managed>
py::object owner_of(Managed* managed) {
  auto owner =
      py::reinterpret_steal<py::object>(PyCapsule_New(managed, nullptr, &release<Managed>));
  if (owner) return owner;
  const py::error_already_set error;
  if (managed->deleter != nullptr) managed->deleter(managed);
  throw error;
}

template <class Managed>
py::array view_of(Managed* managed) {
  const py::object owner = owner_of(managed);
  check_version(*managed);
  const Layout layout = layout_of(managed->tensor);
  py::array view(layout.dtype, layout.shape, layout.strides, layout.data, owner);
  if (is_read_only(*managed)) view.attr("setflags")(py::arg("write") = false);
  return view;
}

template <class Managed>
py::array adopt(const py::object& capsule) {
  auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule.ptr(), Managed::kName));
  if (PyCapsule_SetName(capsule.ptr(), Managed::kUsed) != 0) throw py::error_already_set();
  return view_of(managed);
}

// Exporters that know version 1 are asked for it by a keyword that older ones do not know.
py::object request(const py::object& source) {
  const py::object method = source.attr("__dlpack__");
  try {
    return method(py::arg("max_version") =
                      py::make_tuple(dlpack::kVersion.major, dlpack::kVersion.minor));
  } catch (const py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
  }
  return method();
}

}  // namespace

py::array from_dlpack(const py::object& source) {
  if (const dlpack::ExchangeApi* api = dlpack::exchange_api(source)) {
    VersionedTensor* managed = nullptr;
    if (api->from_object(source.ptr(), &managed) != 0) dlpack::throw_exchange_error();
    return view_of(managed);
  }
  const py::object capsule = request(source);
  if (PyCapsule_IsValid(capsule.ptr(), VersionedTensor::kName) != 0) {
    return adopt<VersionedTensor>(capsule);
  }
  if (PyCapsule_IsValid(capsule.ptr(), UnversionedTensor::kName) != 0) {
    return adopt<UnversionedTensor>(capsule);
  }
  throw py::type_error("__dlpack__ gave no DLPack capsule, or one that was used before");
}

}  // namespace pyattn::python

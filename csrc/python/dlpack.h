// Arrays of other libraries, in and out, without a copy: the DLPack protocol, version 1.
//
// The structures are laid out as its specification says
// (https://dmlc.github.io/dlpack/latest/c_api.html); what a capsule is called and who calls its
// deleter is in the Python part of it (https://dmlc.github.io/dlpack/latest/python_spec.html).
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>

namespace pyattn::python {

namespace py = pybind11;

namespace dlpack {

enum DeviceType : std::int32_t { kCpu = 1, kCudaHost = 3, kRocmHost = 11 };

enum TypeCode : std::uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6 };

struct Device {
  std::int32_t type;
  std::int32_t id;
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; NULL before version 1.2 for C order
  std::uint64_t byte_offset;
};

struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};

// What a capsule of either protocol points to. It stays the exporter's until the capsule is renamed
// to kUsed; from then on whoever renamed it has to call the deleter, once.
struct UnversionedTensor {
  static constexpr const char* kName = "dltensor";
  static constexpr const char* kUsed = "used_dltensor";

  Tensor tensor;
  void* context;
  void (*deleter)(UnversionedTensor* self);
};

struct VersionedTensor {
  static constexpr const char* kName = "dltensor_versioned";
  static constexpr const char* kUsed = "used_dltensor_versioned";

  Version version;
  void* context;
  void (*deleter)(VersionedTensor* self);
  std::uint64_t flags;
  Tensor tensor;
};

// Functions that a type of arrays may offer in its attribute __dlpack_c_exchange_api__, which spare
// the calls of Python methods. 0 is success; otherwise a Python error is set.
struct ExchangeApiHeader {
  Version version;
  ExchangeApiHeader* older;
};

struct ExchangeApi {
  ExchangeApiHeader header;
  void* allocate;
  int (*from_object)(void* object, VersionedTensor** out);
  int (*to_object)(VersionedTensor* tensor, void** out_object);
  void* borrow;
  void* current_stream;
};

constexpr Version kVersion{1, 0};
constexpr std::uint64_t kReadOnly = 1;
constexpr std::uint64_t kCopied = 2;

static_assert(sizeof(void*) != 8 || sizeof(Tensor) == 48);
static_assert(sizeof(void*) != 8 || sizeof(UnversionedTensor) == 64);
static_assert(sizeof(void*) != 8 || sizeof(VersionedTensor) == 80);

static_assert(sizeof(void*) != 8 || sizeof(ExchangeApi) == 56);

// The functions of the type of `array`, or nullptr.
const ExchangeApi* exchange_api(const py::object& array);

// After one of them returned anything but 0.
[[noreturn]] void throw_exchange_error();

// ml_dtypes.bfloat16, imported when it is first asked for.
const py::dtype& bfloat16();

}  // namespace dlpack

// A view of an object that has __dlpack__. The view owns the object's memory through its base.
py::array from_dlpack(const py::object& source);

// An array that offers itself through __dlpack__; unlike NumPy's own, bfloat16 too.
class DlpackArray {
 public:
  explicit DlpackArray(py::array array);

  py::object capsule(const py::object& stream, const py::object& max_version,
                     const py::object& dl_device, const py::object& copy) const;

 private:
  py::array array_;
  dlpack::DataType dtype_;
};

// An array of the type of `original` that shares the memory of `array`, or None where the type
// offers no exchange functions.
py::object same_kind(const py::object& original, const py::array& array);

}  // namespace pyattn::python

#include "python/dlpack.h"

#include <stdexcept>

#include "python/arrays.h"
#include "python/register.h"

namespace pyattn::python {

const py::dtype& dlpack::bfloat16() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::dtype> storage;
  return storage
      .call_once_and_store_result(
          [] { return py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16")); })
      .get_stored();
}

// Looked up in the type's own dictionary: a subclass may have a __dlpack__ of its own, and for most
// types there is nothing to find.
const dlpack::ExchangeApi* dlpack::exchange_api(const py::object& array) {
  PyTypeObject* type = Py_TYPE(array.ptr());
  if (type->tp_dict == nullptr) return nullptr;
  PyObject* capsule = PyDict_GetItemString(type->tp_dict, "__dlpack_c_exchange_api__");
  constexpr const char* kName = "dlpack_exchange_api";
  if (capsule == nullptr || PyCapsule_IsValid(capsule, kName) == 0) return nullptr;
  auto* header = static_cast<ExchangeApiHeader*>(PyCapsule_GetPointer(capsule, kName));
  while (header != nullptr && header->version.major != kVersion.major) header = header->older;
  return reinterpret_cast<const ExchangeApi*>(header);
}

void dlpack::throw_exchange_error() {
  if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  throw std::runtime_error("the array's DLPack exchange functions failed without an error");
}

void register_dlpack(py::module_& module) {
  py::class_<DlpackArray>(module, "DlpackArray", "A NumPy array to be read through DLPack.")
      .def("__dlpack__", &DlpackArray::capsule, py::kw_only(), py::arg("stream") = py::none(),
           py::arg("max_version") = py::none(), py::arg("dl_device") = py::none(),
           py::arg("copy") = py::none(), "A capsule that views the array, or a copy of it.")
      .def(
          "__dlpack_device__",
          [](const DlpackArray&) { return py::make_tuple(std::int32_t{dlpack::kCpu}, 0); },
          "The CPU.");
  module.def("from_dlpack", &from_dlpack, py::arg("source"),
             "A view of the memory of an object that has __dlpack__.");
  module.def("same_kind", &same_kind, py::arg("original"), py::arg("array"),
             "The array as one of the type of `original`, or None where that needs from_dlpack.");
  module.def(
      "to_dlpack",
      [](const py::object& array) { return DlpackArray(as_array(array, {"to_dlpack", "array"})); },
      py::arg("array"), "An object that offers the array through __dlpack__.");
}

}  // namespace pyattn::python

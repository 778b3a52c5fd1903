#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "core/environment.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "python/register.h"

namespace pyattn::python {
namespace {

namespace py = pybind11;

#if defined(__clang__)
constexpr const char* kCompiler = "Clang " __clang_version__;
#elif defined(__GNUC__)
constexpr const char* kCompiler = "GCC " __VERSION__;
#else
constexpr const char* kCompiler = "MSVC";
#endif

py::dict build_info() {
  py::dict flags;
  py::list built;
  for (const IsaEntry& entry : built_isas()) {
    built.append(entry.table->name);
    flags[entry.table->name] = entry.table->flags;
  }
  py::dict info;
  info["version"] = PYATTN_VERSION;
  info["compiler"] = kCompiler;
  info["build_type"] = PYATTN_BUILD_TYPE;
  info["platform"] = PYATTN_PLATFORM;
  info["pybind11"] = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(
      PYBIND11_VERSION_MINOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_PATCH);
  info["isas"] = built;
  info["isa_flags"] = flags;
  return info;
}

}  // namespace

void register_runtime(py::module_& module) {
  read_environment();
  module.def(
      "isa", [] { return std::string(kernels().name); },
      "Name of the instruction set whose kernels run.");
  module.def(
      "set_isa", [](const std::string& name) { set_isa(name); }, py::arg("name"),
      "Use the kernels of another instruction set of available_isas().");
  module.def("available_isas", &available_isas, "What this machine can run, best first.");
  module.def("threads", &threads, "Most threads that a call uses.");
  module.def("set_threads", &set_threads, py::arg("n"), "Sets threads(), 1 to 1024.");
  module.def("build_info", &build_info, "How this library was built.");
}

}  // namespace pyattn::python

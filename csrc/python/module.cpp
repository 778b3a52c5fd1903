// pyattn._core: the kernels, checked for memory safety and nothing more. The friendly interface is
// pyattn's Python.
#include <pybind11/pybind11.h>

#include "python/register.h"

PYBIND11_MODULE(_core, module, pybind11::mod_gil_not_used()) {
  module.doc() = "Kernels of pyattn on NumPy arrays.";
  pyattn::python::register_runtime(module);
  pyattn::python::register_sdpa(module);
  pyattn::python::register_backward(module);
  pyattn::python::register_varlen(module);
  pyattn::python::register_paged(module);
  pyattn::python::register_additive(module);
  pyattn::python::register_local(module);
  pyattn::python::register_elementwise(module);
  pyattn::python::register_normalisation(module);
  pyattn::python::register_rotary(module);
  pyattn::python::register_recurrent(module);
  pyattn::python::register_position(module);
  pyattn::python::register_product(module);
  pyattn::python::register_dlpack(module);
}

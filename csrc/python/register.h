#pragma once

#include <pybind11/pybind11.h>

namespace pyattn::python {

void register_sdpa(pybind11::module_& module);
void register_backward(pybind11::module_& module);
void register_varlen(pybind11::module_& module);
void register_paged(pybind11::module_& module);
void register_additive(pybind11::module_& module);
void register_local(pybind11::module_& module);
void register_elementwise(pybind11::module_& module);
void register_normalisation(pybind11::module_& module);
void register_rotary(pybind11::module_& module);
void register_recurrent(pybind11::module_& module);
void register_position(pybind11::module_& module);
void register_product(pybind11::module_& module);
void register_dlpack(pybind11::module_& module);
void register_runtime(pybind11::module_& module);

}  // namespace pyattn::python

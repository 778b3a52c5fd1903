// Which instruction set runs: chosen once at load from what the processor has, or forced by name.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/kernels.h"

namespace pyattn {

// An entry of the list in csrc/cpu/tables.cpp, best first.
struct IsaEntry {
  const KernelTable* table;
  bool (*supported)();
};

// Every instruction set this library was built with; defined in csrc/cpu/tables.cpp.
std::vector<IsaEntry> built_isas();

// Names of the ones this machine can run, best first; "scalar" is always there.
std::vector<std::string> available_isas();

const KernelTable& kernels();

// Throws std::invalid_argument naming the available ones.
void set_isa(std::string_view name);

template <class T>
const Kernels<T>& kernels_of(const KernelTable& table);
template <>
inline const Kernels<float>& kernels_of<float>(const KernelTable& table) {
  return table.f32;
}
template <>
inline const Kernels<double>& kernels_of<double>(const KernelTable& table) {
  return table.f64;
}

template <class X>
const AttentionKernels<X>& attention_kernels_of(const KernelTable& table);
template <>
inline const AttentionKernels<float>& attention_kernels_of<float>(const KernelTable& table) {
  return table.attention_f32;
}
template <>
inline const AttentionKernels<double>& attention_kernels_of<double>(const KernelTable& table) {
  return table.attention_f64;
}
template <>
inline const AttentionKernels<Half>& attention_kernels_of<Half>(const KernelTable& table) {
  return table.attention_f16;
}
template <>
inline const AttentionKernels<BFloat16>& attention_kernels_of<BFloat16>(const KernelTable& table) {
  return table.attention_bf16;
}

}  // namespace pyattn

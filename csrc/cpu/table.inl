// Instantiates every kernel for a pair of Vec types. The flags come from CMakeLists.txt.
#pragma once

#include "core/kernels.h"
#include "cpu/additive.inl"
#include "cpu/elementwise.inl"
#include "cpu/normalisation.inl"
#include "cpu/sdpa.inl"

#ifndef PYATTN_ISA_FLAGS
#define PYATTN_ISA_FLAGS ""
#endif

namespace pyattn {
namespace {

template <class V>
constexpr Kernels<typename V::Scalar> kernels_for() {
  return {.sdpa = sdpa<V>,
          .additive = additive<V>,
          .erf = erf_array<V>,
          .gelu = gelu_array<V>,
          .softmax = softmax_rows<V>,
          .layer_norm = layer_norm_rows<V>};
}

template <class VecFloat, class VecDouble>
constexpr KernelTable make_table(const char* name) {
  return {.name = name,
          .flags = PYATTN_ISA_FLAGS,
          .f32 = kernels_for<VecFloat>(),
          .f64 = kernels_for<VecDouble>()};
}

}  // namespace
}  // namespace pyattn

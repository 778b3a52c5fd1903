// The table of kernels: one per instruction set, filled in by csrc/cpu/isa_*.cpp, which export
// nothing else. Kernels are noexcept, check nothing and allocate nothing.
#pragma once

#include <cstdint>

#include "core/params.h"

namespace pyattn {

template <class T>
struct Kernels {
  using Attention = void (*)(const AttentionParams<T>&, const AttentionBlock&, T* scratch) noexcept;
  using Pointwise = void (*)(const T* input, T* output, std::int64_t count) noexcept;

  Attention sdpa;
  Attention additive;
  Pointwise erf;
  Pointwise gelu;
  void (*softmax)(const Rows<T>&) noexcept;
  void (*layer_norm)(const Rows<T>&, const LayerNormParams<T>&) noexcept;
};

struct KernelTable {
  const char* name;
  const char* flags;  // what the compiler was told, for build_info()
  Kernels<float> f32;
  Kernels<double> f64;
};

}  // namespace pyattn

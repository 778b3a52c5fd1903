// What test_vec.cpp calls: the operations of a Vec over arrays, and the functions written against
// it, as compiled for one instruction set. No kernel has them as its whole result.
#pragma once

#include <cstdint>

#include "core/params.h"

namespace pyattn::testing {

// Arrays of `lanes` elements, except where there is a count.
template <class T>
struct VecFunctions {
  using Pointwise = void (*)(const T* input, T* output, std::int64_t count);
  using Binary = void (*)(const T* a, const T* b, T* output);
  using Compare = std::uint64_t (*)(const T* a, const T* b);

  int lanes;
  Pointwise exp_fast, exp_accurate, tanh_accurate, reciprocal;
  Pointwise copy;  // load and store, with a count for what is left
  Binary max, min;
  Compare less, equal;
  void (*fma)(const T* a, const T* b, const T* c, T* output);
  void (*fnma)(const T* a, const T* b, const T* c, T* output);
  std::uint64_t (*mask_bits)(std::uint64_t bits);
  void (*select)(std::uint64_t bits, const T* yes, const T* no, T* output);
  void (*transpose)(T* square);
  void (*sum_each)(const T* square, T* sums);
  T (*sum_lanes)(const T* a);
  T (*max_lanes)(const T* a);
};

// Conversions of `count` numbers.
template <class X>
struct StorageFunctions {
  void (*load)(const X* input, float* output, std::int64_t count);
  void (*store)(const float* input, X* output, std::int64_t count);
};

struct IsaFunctions {
  const char* name;
  VecFunctions<float> f32;
  VecFunctions<double> f64;
  StorageFunctions<Half> f16;
  StorageFunctions<BFloat16> bf16;
  // words[k][i] = word k for counter first + i
  void (*philox)(std::uint64_t seed, std::int64_t batch, std::int64_t head, std::int64_t row,
                 std::int64_t first, std::uint64_t (&words)[4][16]);
  std::uint64_t (*kept_keys)(std::uint64_t seed, std::int64_t batch, std::int64_t head,
                             std::int64_t row, std::int64_t first, std::uint64_t threshold);
};

extern const IsaFunctions scalar_functions;
extern const IsaFunctions avx2_functions;
extern const IsaFunctions avx512_functions;
extern const IsaFunctions neon_functions;

}  // namespace pyattn::testing

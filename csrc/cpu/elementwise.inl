// erf, and gelu(x) = x (1 + erf(x / sqrt 2)) / 2 (Hendrycks and Gimpel 2016, arXiv:1606.08415),
// without the tanh approximation. The tail of an array goes through the same registers as the rest,
// so the value of an element does not depend on where it lies.
#pragma once

#include "cpu/math.inl"

namespace pyattn {
namespace {

template <class V, class F>
PYATTN_INLINE void map(const typename V::Scalar* input, typename V::Scalar* output,
                       std::int64_t count, F function) {
  std::int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) function(V::load(input + i)).store(output + i);
  if (i == count) return;
  const int left = static_cast<int>(count - i);
  function(V::load(input + i, left)).store(output + i, left);
}

template <class V>
void erf_array(const typename V::Scalar* input, typename V::Scalar* output,
               std::int64_t count) noexcept {
  map<V>(input, output, count, [](V x) { return erf(x); });
}

template <class V>
void gelu_array(const typename V::Scalar* input, typename V::Scalar* output,
                std::int64_t count) noexcept {
  using T = typename V::Scalar;
  map<V>(input, output, count, [](V x) {
    const V half = x * V::broadcast(T(0.5));
    return V::fma(half, erf(x * V::broadcast(T(0.7071067811865476))), half);
  });
}

}  // namespace
}  // namespace pyattn

// One step of the online softmax on a tile of scores: masks, running maximum, numerators, sum.
// The recurrence is described in attention.inl.
#pragma once

#include "cpu/tile.inl"

namespace pyattn {
namespace {

// s = s + bias, and -inf where masked; `bias` and `scores` start at the panel of `lane`.
template <class V, int NV>
void mask_scores(const Tile<typename V::Scalar>& tile, int lane, int keys,
                 const typename V::Scalar* bias, typename V::Scalar* scores) {
  using T = typename V::Scalar;
  const V masked = V::broadcast(-static_cast<T>(HUGE_VAL));
  for (int k = 0; k < keys; ++k) {
    for (int v = 0; v < NV; ++v) {
      const int at = v * V::kLanes;
      T* place = scores + k * kPanel<V> + at;
      V s = V::load(place);
      if (tile.biased) s = s + V::load(bias + tile.index[k] * kPanel<V> + at);
      s = V::select(V::from_bits(tile.bits[k] >> (lane + at)), s, masked);
      s.store(place);
    }
  }
}

// The exponents are taken relative to this: 0 where no key was allowed yet.
template <class V>
PYATTN_INLINE V finite_max(V max) {
  using T = typename V::Scalar;
  const V masked = V::broadcast(-static_cast<T>(HUGE_VAL));
  return V::select(V::equal(max, masked), V::broadcast(T(0)), max);
}

// Scores to numerators in place; updates m and l and leaves a in `scale`.
template <class V, int NV>
void softmax_step(int keys, typename V::Scalar* scores, typename V::Scalar* max,
                  typename V::Scalar* sum, typename V::Scalar* scale) {
  using T = typename V::Scalar;
  V top[NV];
  V total[NV];
  PYATTN_UNROLL
  for (int v = 0; v < NV; ++v) top[v] = V::load(max + v * V::kLanes);
  for (int k = 0; k < keys; ++k) {
    PYATTN_UNROLL
    for (int v = 0; v < NV; ++v) {
      // This order drops a NaN from the maximum; it comes back in the exponential.
      top[v] = V::max(V::load(scores + k * kPanel<V> + v * V::kLanes), top[v]);
    }
  }
  PYATTN_UNROLL
  for (int v = 0; v < NV; ++v) {
    const V before = V::load(max + v * V::kLanes);
    top[v].store(max + v * V::kLanes);
    top[v] = finite_max(top[v]);
    exp_fast(before - top[v]).store(scale + v * V::kLanes);
    total[v] = V::broadcast(T(0));
  }
  for (int k = 0; k < keys; ++k) {
    PYATTN_UNROLL
    for (int v = 0; v < NV; ++v) {
      T* place = scores + k * kPanel<V> + v * V::kLanes;
      const V numerator = exp_fast(V::load(place) - top[v]);
      numerator.store(place);
      total[v] = total[v] + numerator;
    }
  }
  PYATTN_UNROLL
  for (int v = 0; v < NV; ++v) {
    const V l = V::load(sum + v * V::kLanes);
    V::fma(l, V::load(scale + v * V::kLanes), total[v]).store(sum + v * V::kLanes);
  }
}

}  // namespace
}  // namespace pyattn

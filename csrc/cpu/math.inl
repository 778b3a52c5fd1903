// Elementary functions over a Vec.
//
// exp, float: 2^(x log2 e) = 2^n * p(r), r the fraction, p the minimax polynomial of degree 6
//   (relative error 1.9e-9, so rounding dominates). Degree 5 (7.5e-8) made attention 1 % faster.
// exp, double: 2^n * p(r), r = x - n ln 2 with ln 2 in two parts, the upper of which n multiplies
//   exactly, and p of degree 11 (relative error 3.6e-18). It errs by at most 1.2 units in the last
//   place, 0.9 with a fused multiply-add. On Zen 5 a register of 8 takes 11 cycles (AVX-512), one
//   of 4 takes 10 (AVX2); the C library takes 11 for a single number.
// tanh: 1 - 2 / (1 + e^2x), absolute error about 1.5e-7; there is no relative accuracy near 0,
//   where a score of additive attention, a sum of such terms, has none either.
// tanh_accurate: the same beyond 0.625, x p(x^2) up to there (relative error 4.4e-9). A single
//   rational function needs fewer operations, but every rounding in it shows near 1, where it erred
//   by 6 units in the last place; this errs by 1.9 and ends in exactly 1.
// erf: x p(x^2) up to 1 (relative error 1.2e-9); beyond, 1 - exp(q(|x|)) with q fitted to log erfc
//   on [0.9, 4] (absolute error 1.1e-9), after which erf is 1 in single precision.
// The coefficients are our own weighted least-squares fits iterated to the minimax error.
#pragma once

#include "cpu/vec_scalar.h"

#ifdef __GNUC__
#define PYATTN_UNROLL _Pragma("GCC unroll 16")
#define PYATTN_LOOP _Pragma("GCC unroll 1")  // left for the vectoriser
#define PYATTN_INLINE inline __attribute__((always_inline))
#define PYATTN_PREFETCH(address) __builtin_prefetch(address)
#else
#define PYATTN_UNROLL
#define PYATTN_LOOP
#define PYATTN_INLINE inline
#define PYATTN_PREFETCH(address) static_cast<void>(address)
#endif

namespace pyattn {
namespace {

template <class V, int N>
PYATTN_INLINE V polynomial(V x, const double (&coefficient)[N]) {
  using T = typename V::Scalar;
  V sum = V::broadcast(static_cast<T>(coefficient[N - 1]));
  PYATTN_UNROLL
  for (int i = N - 2; i >= 0; --i) {
    sum = V::fma(sum, x, V::broadcast(static_cast<T>(coefficient[i])));
  }
  return sum;
}

// The lanes added in a fixed order.
template <class V>
typename V::Scalar sum_lanes(V x) {
  using T = typename V::Scalar;
  if constexpr (requires { x.sum(); }) return x.sum();
  T lane[V::kLanes];
  x.store(lane);
  for (int half = V::kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] = lane[i] + lane[i + half];
  }
  return lane[0];
}

// Lane i: the sum of the lanes of x[i], which is lost.
template <class V>
PYATTN_INLINE V sum_each(V (&x)[V::kLanes]) {
  if constexpr (requires { V::sum_each(x); }) {
    return V::sum_each(x);
  } else {
    V::transpose(x);
    for (int half = V::kLanes / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) x[i] = x[i] + x[i + half];
    }
    return x[0];
  }
}

// The largest lane; a NaN is passed over.
template <class V>
typename V::Scalar max_lanes(V x) {
  using T = typename V::Scalar;
  if constexpr (requires { x.max(); }) return x.max();
  T lane[V::kLanes];
  x.store(lane);
  for (int half = V::kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] = lane[i + half] > lane[i] ? lane[i + half] : lane[i];
  }
  return lane[0];
}

// A register of a row, of which `count` elements are left.
template <class V, class X>
PYATTN_INLINE V load_left(const X* p, std::int64_t count) {
  return count >= V::kLanes ? V::load(p) : V::load(p, static_cast<int>(count));
}

template <class V, class X>
PYATTN_INLINE void store_left(V x, X* p, std::int64_t count) {
  if (count >= V::kLanes) {
    x.store(p);
  } else {
    x.store(p, static_cast<int>(count));
  }
}

// One number of storage type X.
template <class V>
PYATTN_INLINE typename V::Scalar widen(const typename V::Scalar* p) {
  return *p;
}
template <class V, class X>
PYATTN_INLINE typename V::Scalar widen(const X* p) {
  typename V::Scalar lane[V::kLanes];
  V::load(p, 1).store(lane);
  return lane[0];
}

// 2^r for r in [-1/2, 1/2] and, for registers that split by the floor, in [0, 1).
constexpr double kExp2Nearest[] = {1.0,
                                   0.693147205737195,
                                   0.24022646890474197,
                                   0.05550328777081206,
                                   0.009618488974413628,
                                   0.0013399931181990628,
                                   0.00015345807351120275};
constexpr double kExp2Floor[] = {1.0,
                                 0.6931469838424646,
                                 0.24022983625086558,
                                 0.055483342088488874,
                                 0.009678840787231274,
                                 0.0012439689746609195,
                                 0.0002170224888676242};

// Applies a function of the C library to every lane.
template <class V, class F>
V each_lane(V x, F function) {
  typename V::Scalar lane[V::kLanes];
  x.store(lane);
  for (auto& value : lane) value = function(value);
  return V::load(lane);
}

// e^r for r in [-ln 2 / 2, ln 2 / 2].
constexpr double kExp[] = {1.0,
                           1.0,
                           0.5000000000000011,
                           0.16666666666666413,
                           0.04166666666653016,
                           0.008333333333494466,
                           0.0013888888943629995,
                           0.00019841269506566079,
                           2.4801493099023478e-05,
                           2.7557586387171485e-06,
                           2.763024833782015e-07,
                           2.5000056892133108e-08};

// For x <= 709; exactly 1 at 0 and exactly 0 at -inf; NaN stays NaN. Results below the normal range
// are flushed to 0 or lose bits gradually, as exp2_join does.
template <class V>
PYATTN_INLINE V exp_double(V x) {
  // Adding 1.5 * 2^52 rounds to an integer; 1023 more leave the exponent field of 2^n in the lowest
  // bits.
  const V shift = V::broadcast(6755399441055744.0 + 1023.0);
  x = V::max(V::broadcast(V::kLowestExp), x);
  const V biased = V::fma(x, V::broadcast(1.4426950408889634), shift);
  const V n = biased - shift;
  // The upper part of ln 2 ends in 20 zero bits.
  V r = V::fnma(n, V::broadcast(0x1.62e42fefp-1), x);
  r = V::fnma(n, V::broadcast(0x1.473de6af278edp-34), r);
  return V::exp2_join(polynomial(r, kExp), n, biased);
}

// Float: for x <= 87; exactly 1 at 0 and exactly 0 at -inf; NaN stays NaN. The relative error grows
// with |x| as that of x * log2 e does, which is below rounding once the result is a softmax
// numerator. Double: as exp_double.
template <class V>
PYATTN_INLINE V exp_fast(V x) {
  using T = typename V::Scalar;
  if constexpr (sizeof(T) == 8) {
    return exp_double(x);
  } else {
    V n;
    const V r = V::exp2_split(x * V::broadcast(T(1.4426950408889634)), n);
    if constexpr (V::kSplitsByFloor) return V::exp2_join(polynomial(r, kExp2Floor), n);
    return V::exp2_join(polynomial(r, kExp2Nearest), n);
  }
}

// The same to 2 units in the last place for every |x| <= 87: the fraction is corrected by what the
// product x * log2 e lost, before the polynomial. (Without a fused multiply-add only the error of
// log2 e itself is corrected.)
template <class V>
PYATTN_INLINE V exp_accurate(V x) {
  using T = typename V::Scalar;
  if constexpr (sizeof(T) == 8) {
    return exp_double(x);
  } else {
    // 2^(a + b) = 2^a (1 + b ln 2), b the rounding error of a = x * log2 e.
    const V log2e = V::broadcast(T(1.44269502162933349609375));
    const V a = x * log2e;
    const V lost =
        V::fma(x, V::broadcast(T(1.9259629911266175e-8)), V::fma(x, log2e, V::broadcast(T(0)) - a));
    V n;
    const V r = V::exp2_split(a, n);
    const V p = [&] {
      if constexpr (V::kSplitsByFloor) return polynomial(r, kExp2Floor);
      return polynomial(r, kExp2Nearest);
    }();
    return V::exp2_join(V::fma(p, lost * V::broadcast(T(0.6931471805599453)), p), n);
  }
}

template <class V>
PYATTN_INLINE V abs(V x) {
  return V::max(x, V::broadcast(typename V::Scalar(0)) - x);
}

template <class V>
PYATTN_INLINE V tanh(V x) {
  using T = typename V::Scalar;
  const V limit = V::broadcast(T(V::kLibm ? 20 : 10));
  const V bounded = V::max(V::broadcast(T(0)) - limit, V::min(limit, x));
  const V e = exp_fast(bounded + bounded);
  const V one = V::broadcast(T(1));
  return V::fnma(one + one, V::reciprocal(one + e), one);
}

constexpr double kTanhSmall[] = {1.0,
                                 -0.33333281941946885,
                                 0.1333144219682103,
                                 -0.05373971499545612,
                                 0.02063908700358738,
                                 -0.005704986769727115};

// Within 4 units in the last place of x everywhere; odd; exactly 1 where tanh rounds to 1; NaN
// stays NaN.
template <class V>
PYATTN_INLINE V tanh_accurate(V x) {
  using T = typename V::Scalar;
  if constexpr (V::kLibm) {
    return each_lane(x, [](T value) { return static_cast<T>(::tanh(value)); });
  } else {
    const V zero = V::broadcast(T(0));
    const V one = V::broadcast(T(1));
    const V size = V::min(V::broadcast(T(10)), abs(x));
    const V small = x * polynomial(x * x, kTanhSmall);
    const V e = exp_fast(size + size);
    const V tail = V::fnma(one + one, V::reciprocal(one + e), one);
    const V large = V::select(V::less(x, zero), zero - tail, tail);
    return V::select(V::less(size, V::broadcast(T(0.625))), small, large);
  }
}

constexpr double kErfSmall[] = {1.128379165726689,     -0.37612625824093265, 0.11283585147027858,
                                -0.026853811868935512, 0.005188327559635775, -0.0008010192517240167,
                                7.85385769424829e-05};
constexpr double kLogErfc[] = {0.00017055203048644838, -1.1294951590582092,   -0.6333866465641719,
                               -0.10823661932893869,   0.025091496777971622,  -0.004160526992634306,
                               0.000432303005136192,   -2.090955559508334e-05};

template <class V>
PYATTN_INLINE V erf(V x) {
  using T = typename V::Scalar;
  if constexpr (V::kLibm) {
    return each_lane(x, [](T value) { return static_cast<T>(::erf(value)); });
  } else {
    const V one = V::broadcast(T(1));
    const V size = V::min(V::broadcast(T(4)), abs(x));
    const V small = x * polynomial(size * size, kErfSmall);
    const V tail = one - exp_fast(polynomial(size, kLogErfc));
    const V zero = V::broadcast(T(0));
    const V large = V::select(V::less(x, zero), zero - tail, tail);
    return V::select(V::less(size, one), small, large);
  }
}

}  // namespace
}  // namespace pyattn

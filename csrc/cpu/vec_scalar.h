// Lanes<T, N>: N lanes of T without intrinsics, the baseline for every machine. Under GCC and Clang
// it is a vector type of the language, for which the compiler finds the registers.
//
// The interface that the .inl files are written against (all the vec_*.h offer it):
//   Scalar, Mask, kLanes
//   kVecs, kRows       registers per panel of queries, and broadcast operands of the micro-kernels:
//                      kVecs * kRows accumulators plus kVecs + 1 operands fit the register file
//   load, store        with a count: only the first lanes, the others read as 0 and are not
//   written;
//                      a Vec of floats also from and to Half and BFloat16, rounded to nearest even
//   broadcast, + - *, fma(a, b, c) = a * b + c, fnma(a, b, c) = c - a * b
//   max(a, b), min     return b when either is NaN, as x86 does: max(limit, x) keeps a NaN in x
//   less(a, b), equal  false on NaN;  select(mask, yes, no);  from_bits, to_bits: lane i is bit i
//   reciprocal         within 2 units in the last place, for normal results
//   exp2_split, exp2_join   float: 2^x = exp2_join(polynomial(r), n) for x <= 127; -inf gives
//                      exactly 0
//   exp2_join(p, n, biased), kLowestExp   double: p * 2^n; `biased` holds n + 1023 in its lowest
//                      bits. It gives exactly 0 for the n nearest to kLowestExp * log2 e.
//   transpose(rows)    kLanes registers as a square matrix
//   sum_each(rows)     only where it is cheaper than by transpose: lane i the sum of row i
//   swap_pairs         lanes 2i and 2i + 1 change places
//   kSplitsByFloor     the fraction of exp2_split is in [0, 1), else in [-1/2, 1/2]
//   kLibm              double: erf and tanh_accurate go through the C library, lane by lane
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>

#include "cpu/half.inl"

namespace pyattn {
namespace {

template <class T, int N>
struct Lanes {
  using Scalar = T;
  using Mask = std::uint32_t;
  static constexpr int kLanes = N;
  static constexpr int kVecs = 2;
  static constexpr int kRows = 4;
  static constexpr bool kLibm = sizeof(T) == 8;
  static constexpr bool kSplitsByFloor = false;
  static constexpr double kLowestExp = -709.4;

#ifdef __GNUC__
  typedef T Native __attribute__((vector_size(sizeof(T) * N)));
#else
  struct Native {
    T lane[N];
    T& operator[](int i) { return lane[i]; }
    const T& operator[](int i) const { return lane[i]; }
  };
#endif
  Native v;

  template <class F>
  static Lanes make(F lane) {
    Lanes result;
    for (int i = 0; i < N; ++i) result.v[i] = lane(i);
    return result;
  }

  static Lanes load(const T* p) {
    Lanes result;
    std::memcpy(&result.v, p, sizeof result.v);
    return result;
  }
  static Lanes load(const T* p, int count) {
    return make([&](int i) { return i < count ? p[i] : T(0); });
  }
  void store(T* p) const { std::memcpy(p, &v, sizeof v); }
  void store(T* p, int count) const {
    for (int i = 0; i < count; ++i) p[i] = v[i];
  }
  template <class X>
    requires(sizeof(X) == 2 && sizeof(T) == 4)
  static Lanes load(const X* p, int count = N) {
    return make([&](int i) { return i < count ? widened(p[i]) : T(0); });
  }
  template <class X>
    requires(sizeof(X) == 2 && sizeof(T) == 4)
  void store(X* p, int count = N) const {
    for (int i = 0; i < count; ++i) narrow(v[i], p + i);
  }
  static Lanes broadcast(T x) {
    return make([&](int) { return x; });
  }

#ifdef __GNUC__
  friend Lanes operator+(Lanes a, Lanes b) { return {a.v + b.v}; }
  friend Lanes operator-(Lanes a, Lanes b) { return {a.v - b.v}; }
  friend Lanes operator*(Lanes a, Lanes b) { return {a.v * b.v}; }
  static Lanes max(Lanes a, Lanes b) { return {a.v > b.v ? a.v : b.v}; }
  static Lanes min(Lanes a, Lanes b) { return {a.v < b.v ? a.v : b.v}; }
#else
  friend Lanes operator+(Lanes a, Lanes b) {
    return make([&](int i) { return a.v[i] + b.v[i]; });
  }
  friend Lanes operator-(Lanes a, Lanes b) {
    return make([&](int i) { return a.v[i] - b.v[i]; });
  }
  friend Lanes operator*(Lanes a, Lanes b) {
    return make([&](int i) { return a.v[i] * b.v[i]; });
  }
  static Lanes max(Lanes a, Lanes b) {
    return make([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static Lanes min(Lanes a, Lanes b) {
    return make([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
#endif

#ifdef __FMA__
  static Lanes fma(Lanes a, Lanes b, Lanes c) {
    Lanes result;
    for (int i = 0; i < N; ++i) result.v[i] = fma_lane(a.v[i], b.v[i], c.v[i]);
    return result;
  }
  static float fma_lane(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  static double fma_lane(double a, double b, double c) { return __builtin_fma(a, b, c); }
  static Lanes fnma(Lanes a, Lanes b, Lanes c) { return fma(Lanes::broadcast(T(0)) - a, b, c); }
#else
  static Lanes fma(Lanes a, Lanes b, Lanes c) { return a * b + c; }
  static Lanes fnma(Lanes a, Lanes b, Lanes c) { return c - a * b; }
#endif

  static Mask less(Lanes a, Lanes b) {
    Mask mask = 0;
    for (int i = 0; i < N; ++i) mask |= static_cast<Mask>(a.v[i] < b.v[i]) << i;
    return mask;
  }
  static Mask equal(Lanes a, Lanes b) {
    Mask mask = 0;
    for (int i = 0; i < N; ++i) mask |= static_cast<Mask>(a.v[i] == b.v[i]) << i;
    return mask;
  }
  static Lanes select(Mask mask, Lanes yes, Lanes no) {
    return make([&](int i) { return (mask >> i & 1) != 0 ? yes.v[i] : no.v[i]; });
  }
  static Mask from_bits(std::uint64_t bits) { return static_cast<Mask>(bits & ((1ULL << N) - 1)); }
  static std::uint64_t to_bits(Mask mask) { return mask; }

  static Lanes reciprocal(Lanes x) {
#ifdef __GNUC__
    return {T(1) / x.v};
#else
    return make([&](int i) { return T(1) / x.v[i]; });
#endif
  }

  // Only for float: below 2^-126 the scale is 0, so the smallest results are flushed.
  static Lanes exp2_split(Lanes x, Lanes& n) {
    x = max(broadcast(T(-127)), x);
    const Lanes magic = broadcast(T(12582912));  // 1.5 * 2^23: adding it rounds to an integer
    n = (x + magic) - magic;
    return x - n;
  }
  static Lanes exp2_join(Lanes p, Lanes n) {
    Lanes scale;
    for (int i = 0; i < N; ++i) {
      // The comparison is false on NaN, whose conversion would be undefined.
      const std::int32_t exponent = n.v[i] >= T(-127) ? static_cast<std::int32_t>(n.v[i]) : 0;
      const std::int32_t bits = (exponent + 127) * (1 << 23);
      float factor;
      std::memcpy(&factor, &bits, sizeof factor);
      scale.v[i] = static_cast<T>(factor);
    }
    return p * scale;
  }

  static Lanes exp2_join(Lanes p, Lanes, Lanes biased) {
    std::uint64_t bits[N];
    std::memcpy(bits, &biased.v, sizeof bits);
    for (int i = 0; i < N; ++i) bits[i] <<= 52;
    Lanes scale;
    std::memcpy(&scale.v, bits, sizeof bits);
    return p * scale;
  }

  static Lanes swap_pairs(Lanes x) {
    return make([&](int i) { return x.v[i ^ 1]; });
  }

  static void transpose(Lanes (&rows)[N]) {
    for (int i = 0; i < N; ++i) {
      for (int j = i + 1; j < N; ++j) {
        const T swapped = rows[i].v[j];
        rows[i].v[j] = rows[j].v[i];
        rows[j].v[i] = swapped;
      }
    }
  }
};

}  // namespace
}  // namespace pyattn

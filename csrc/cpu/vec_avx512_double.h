// Eight doubles in a register: AVX-512 F, DQ, BW, VL. The interface is described in vec_scalar.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/vec_avx512.h"

namespace pyattn {
namespace {

struct Avx512Double {
  using Scalar = double;
  using Mask = __mmask8;
  static constexpr int kLanes = 8;
  // As for float: 4 x 6 accumulators of the 32 registers.
  static constexpr int kVecs = 4;
  static constexpr int kRows = 6;
  static constexpr bool kLibm = true;
  static constexpr bool kSplitsByFloor = false;
  // vscalefpd flushes gradually: 2^-1082 is the number 0.
  static constexpr double kLowestExp = -750;
  __m512d v;

  static Mask first(int count) { return static_cast<Mask>((1U << count) - 1U); }
  static Avx512Double load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static Avx512Double load(const double* p, int count) {
    return {_mm512_maskz_loadu_pd(first(count), p)};
  }
  void store(double* p) const { _mm512_storeu_pd(p, v); }
  void store(double* p, int count) const { _mm512_mask_storeu_pd(p, first(count), v); }
  static Avx512Double broadcast(double x) { return {_mm512_set1_pd(x)}; }

  friend Avx512Double operator+(Avx512Double a, Avx512Double b) {
    return {_mm512_add_pd(a.v, b.v)};
  }
  friend Avx512Double operator-(Avx512Double a, Avx512Double b) {
    return {_mm512_sub_pd(a.v, b.v)};
  }
  friend Avx512Double operator*(Avx512Double a, Avx512Double b) {
    return {_mm512_mul_pd(a.v, b.v)};
  }
  static Avx512Double fma(Avx512Double a, Avx512Double b, Avx512Double c) {
    return {_mm512_fmadd_pd(a.v, b.v, c.v)};
  }
  static Avx512Double fnma(Avx512Double a, Avx512Double b, Avx512Double c) {
    return {_mm512_fnmadd_pd(a.v, b.v, c.v)};
  }
  static Avx512Double max(Avx512Double a, Avx512Double b) { return {_mm512_max_pd(a.v, b.v)}; }
  static Avx512Double min(Avx512Double a, Avx512Double b) { return {_mm512_min_pd(a.v, b.v)}; }
  static Mask less(Avx512Double a, Avx512Double b) {
    return _mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ);
  }
  static Mask equal(Avx512Double a, Avx512Double b) {
    return _mm512_cmp_pd_mask(a.v, b.v, _CMP_EQ_OQ);
  }
  static Avx512Double select(Mask mask, Avx512Double yes, Avx512Double no) {
    return {_mm512_mask_blend_pd(mask, no.v, yes.v)};
  }
  static Mask from_bits(std::uint64_t bits) { return static_cast<Mask>(bits); }
  static std::uint64_t nonzero_64(const std::uint8_t* byte) { return Avx512::nonzero_64(byte); }
  static std::uint64_t to_bits(Mask mask) { return mask; }

  // 14 bits from the table and two Newton steps.
  static Avx512Double reciprocal(Avx512Double x) {
    const __m512d one = _mm512_set1_pd(1.0);
    __m512d r = _mm512_rcp14_pd(x.v);
    r = _mm512_fmadd_pd(r, _mm512_fnmadd_pd(x.v, r, one), r);
    return {_mm512_fmadd_pd(r, _mm512_fnmadd_pd(x.v, r, one), r)};
  }

  static Avx512Double exp2_join(Avx512Double p, Avx512Double n, Avx512Double) {
    return {_mm512_scalef_pd(p.v, n.v)};
  }

  static Avx512Double swap_pairs(Avx512Double x) { return {_mm512_permute_pd(x.v, 0x55)}; }

  static void transpose(Avx512Double (&r)[8]) {
    __m512d a[8];
    for (int i = 0; i < 8; i += 2) {
      a[i] = _mm512_unpacklo_pd(r[i].v, r[i + 1].v);
      a[i + 1] = _mm512_unpackhi_pd(r[i].v, r[i + 1].v);
    }
    // a[2g + c] holds columns c, c + 2, c + 4, c + 6 of rows 2g and 2g + 1, a quarter each.
    for (int c = 0; c < 2; ++c) {
      const __m512d low = _mm512_shuffle_f64x2(a[c], a[2 + c], 0x88);
      const __m512d low_odd = _mm512_shuffle_f64x2(a[c], a[2 + c], 0xdd);
      const __m512d high = _mm512_shuffle_f64x2(a[4 + c], a[6 + c], 0x88);
      const __m512d high_odd = _mm512_shuffle_f64x2(a[4 + c], a[6 + c], 0xdd);
      r[c].v = _mm512_shuffle_f64x2(low, high, 0x88);
      r[c + 4].v = _mm512_shuffle_f64x2(low, high, 0xdd);
      r[c + 2].v = _mm512_shuffle_f64x2(low_odd, high_odd, 0x88);
      r[c + 6].v = _mm512_shuffle_f64x2(low_odd, high_odd, 0xdd);
    }
  }
};

}  // namespace
}  // namespace pyattn

// Four doubles in a register: AVX2 and FMA. The interface is described in vec_scalar.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/vec_avx2.h"

namespace pyattn {
namespace {

struct Avx2Double {
  using Scalar = double;
  struct Mask {
    __m256d v;
  };
  static constexpr int kLanes = 4;
  // As for float: 2 x 6 accumulators of the 16 registers.
  static constexpr int kVecs = 2;
  static constexpr int kRows = 6;
  static constexpr bool kLibm = true;
  static constexpr bool kSplitsByFloor = false;
  static constexpr double kLowestExp = -709.4;  // n = -1023: the exponent field of 0
  __m256d v;

  static __m256i first(int count) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
  }
  static Avx2Double load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static Avx2Double load(const double* p, int count) {
    return {_mm256_maskload_pd(p, first(count))};
  }
  void store(double* p) const { _mm256_storeu_pd(p, v); }
  void store(double* p, int count) const { _mm256_maskstore_pd(p, first(count), v); }
  static Avx2Double broadcast(double x) { return {_mm256_set1_pd(x)}; }

  friend Avx2Double operator+(Avx2Double a, Avx2Double b) { return {_mm256_add_pd(a.v, b.v)}; }
  friend Avx2Double operator-(Avx2Double a, Avx2Double b) { return {_mm256_sub_pd(a.v, b.v)}; }
  friend Avx2Double operator*(Avx2Double a, Avx2Double b) { return {_mm256_mul_pd(a.v, b.v)}; }
  static Avx2Double fma(Avx2Double a, Avx2Double b, Avx2Double c) {
    return {_mm256_fmadd_pd(a.v, b.v, c.v)};
  }
  static Avx2Double fnma(Avx2Double a, Avx2Double b, Avx2Double c) {
    return {_mm256_fnmadd_pd(a.v, b.v, c.v)};
  }
  static Avx2Double max(Avx2Double a, Avx2Double b) { return {_mm256_max_pd(a.v, b.v)}; }
  static Avx2Double min(Avx2Double a, Avx2Double b) { return {_mm256_min_pd(a.v, b.v)}; }
  static Mask less(Avx2Double a, Avx2Double b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ)}; }
  static Mask equal(Avx2Double a, Avx2Double b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_EQ_OQ)}; }
  static Avx2Double select(Mask mask, Avx2Double yes, Avx2Double no) {
    return {_mm256_blendv_pd(no.v, yes.v, mask.v)};
  }
  static Mask from_bits(std::uint64_t bits) {
    const __m256i lane = _mm256_setr_epi64x(1, 2, 4, 8);
    const __m256i all = _mm256_set1_epi64x(static_cast<long long>(bits & 0xf));
    return {_mm256_castsi256_pd(_mm256_cmpeq_epi64(_mm256_and_si256(all, lane), lane))};
  }
  static std::uint64_t nonzero_64(const std::uint8_t* byte) { return Avx2::nonzero_64(byte); }
  static std::uint64_t to_bits(Mask mask) {
    return static_cast<std::uint64_t>(_mm256_movemask_pd(mask.v));
  }

  // There is no table for doubles.
  static Avx2Double reciprocal(Avx2Double x) { return {_mm256_div_pd(_mm256_set1_pd(1.0), x.v)}; }

  static Avx2Double exp2_join(Avx2Double p, Avx2Double, Avx2Double biased) {
    const __m256i scale = _mm256_slli_epi64(_mm256_castpd_si256(biased.v), 52);
    return {_mm256_mul_pd(p.v, _mm256_castsi256_pd(scale))};
  }

  static Avx2Double swap_pairs(Avx2Double x) { return {_mm256_permute_pd(x.v, 0x5)}; }

  static void transpose(Avx2Double (&r)[4]) {
    __m256d a[4];
    for (int i = 0; i < 4; i += 2) {
      a[i] = _mm256_unpacklo_pd(r[i].v, r[i + 1].v);
      a[i + 1] = _mm256_unpackhi_pd(r[i].v, r[i + 1].v);
    }
    // a[2g + c] holds columns c and c + 2 of rows 2g and 2g + 1, a half each.
    for (int c = 0; c < 2; ++c) {
      r[c].v = _mm256_permute2f128_pd(a[c], a[2 + c], 0x20);
      r[c + 2].v = _mm256_permute2f128_pd(a[c], a[2 + c], 0x31);
    }
  }
};

}  // namespace
}  // namespace pyattn

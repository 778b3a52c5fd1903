// Sixteen floats in a register: AVX-512 F, DQ, BW, VL. The interface is described in vec_scalar.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/half.inl"

namespace pyattn {
namespace {

struct Avx512 {
  using Scalar = float;
  using Mask = __mmask16;
  static constexpr int kLanes = 16;
  // 4 x 6 accumulators of the 32 registers: 24 FMA per 4 + 6 loads, so the two load ports of Zen 4
  // and Ice Lake keep up, and each accumulator is touched every 12 cycles, beyond the latency of 4.
  static constexpr int kVecs = 4;
  static constexpr int kRows = 6;
  static constexpr bool kLibm = false;
  static constexpr bool kSplitsByFloor = true;
  __m512 v;

  static Mask first(int count) { return static_cast<Mask>((1U << count) - 1U); }
  static Avx512 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Avx512 load(const float* p, int count) { return {_mm512_maskz_loadu_ps(first(count), p)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(float* p, int count) const { _mm512_mask_storeu_ps(p, first(count), v); }

  static Avx512 load(const Half* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(whole(p)))}; }
  static Avx512 load(const Half* p, int count) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), p))};
  }
  static Avx512 load(const BFloat16* p) { return widened(_mm256_loadu_si256(whole(p))); }
  static Avx512 load(const BFloat16* p, int count) {
    return widened(_mm256_maskz_loadu_epi16(first(count), p));
  }
  // The bits of pairs, to move and transpose them.
  static Avx512 load(const BFloat16Pair* p) { return {_mm512_loadu_ps(p)}; }
  static Avx512 load(const BFloat16Pair* p, int count) {
    return {_mm512_maskz_loadu_ps(first(count), p)};
  }
  void store(BFloat16Pair* p) const { _mm512_storeu_ps(p, v); }

  void store(Half* p) const { _mm256_storeu_si256(whole(p), halves()); }
  void store(Half* p, int count) const { _mm256_mask_storeu_epi16(p, first(count), halves()); }
  void store(BFloat16* p) const { _mm256_storeu_si256(whole(p), bfloats()); }
  void store(BFloat16* p, int count) const { _mm256_mask_storeu_epi16(p, first(count), bfloats()); }

  template <class X>
  static const __m256i* whole(const X* p) {
    return reinterpret_cast<const __m256i*>(p);
  }
  template <class X>
  static __m256i* whole(X* p) {
    return reinterpret_cast<__m256i*>(p);
  }
  static Avx512 widened(__m256i x) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
  }
  __m256i halves() const {
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // Adds just under half a unit, and one more where the unit is odd; a NaN is only made quiet.
  __m256i bfloats() const {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const Mask nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i rounded =
        _mm512_mask_or_epi32(_mm512_add_epi32(bits, half), nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
  }

  static Avx512 broadcast(float x) { return {_mm512_set1_ps(x)}; }

  friend Avx512 operator+(Avx512 a, Avx512 b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Avx512 operator-(Avx512 a, Avx512 b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Avx512 operator*(Avx512 a, Avx512 b) { return {_mm512_mul_ps(a.v, b.v)}; }
  static Avx512 fma(Avx512 a, Avx512 b, Avx512 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static Avx512 fnma(Avx512 a, Avx512 b, Avx512 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
  static Avx512 max(Avx512 a, Avx512 b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Avx512 min(Avx512 a, Avx512 b) { return {_mm512_min_ps(a.v, b.v)}; }
  static Mask less(Avx512 a, Avx512 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
  static Mask equal(Avx512 a, Avx512 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
  static Avx512 select(Mask mask, Avx512 yes, Avx512 no) {
    return {_mm512_mask_blend_ps(mask, no.v, yes.v)};
  }
  static Mask from_bits(std::uint64_t bits) { return static_cast<Mask>(bits); }
  static std::uint64_t to_bits(Mask mask) { return mask; }

  // 14 bits from the table and one Newton step: 4 operations, half the cost of a division.
  static Avx512 reciprocal(Avx512 x) {
    const __m512 r = _mm512_rcp14_ps(x.v);
    const __m512 error = _mm512_fnmadd_ps(x.v, r, _mm512_set1_ps(1.0F));
    return {_mm512_fmadd_ps(r, error, r)};
  }

  // vreduceps gives x - floor(x) at once and 0 for an infinity; vscalefps takes the floor itself
  // and flushes gradually, so no clamp is needed.
  static Avx512 exp2_split(Avx512 x, Avx512& n) {
    n = x;
    return {_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEG_INF)};
  }
  static Avx512 exp2_join(Avx512 p, Avx512 n) { return {_mm512_scalef_ps(p.v, n.v)}; }

  static Avx512 swap_pairs(Avx512 x) { return {_mm512_permute_ps(x.v, 0xb1)}; }

  static void transpose(Avx512 (&r)[16]) {
    __m512 a[16];
    for (int i = 0; i < 16; i += 2) {
      a[i] = _mm512_unpacklo_ps(r[i].v, r[i + 1].v);
      a[i + 1] = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
    }
    __m512 b[16];
    for (int i = 0; i < 16; i += 4) {
      for (int j = 0; j < 2; ++j) {
        const __m512d low = _mm512_castps_pd(a[i + j]);
        const __m512d high = _mm512_castps_pd(a[i + j + 2]);
        b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
        b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
      }
    }
    // b[4g + c] holds columns c, c + 4, c + 8, c + 12 of rows 4g .. 4g + 3, a quarter each.
    for (int c = 0; c < 4; ++c) {
      const __m512 low = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x88);
      const __m512 low_odd = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xdd);
      const __m512 high = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x88);
      const __m512 high_odd = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xdd);
      r[c].v = _mm512_shuffle_f32x4(low, high, 0x88);
      r[c + 8].v = _mm512_shuffle_f32x4(low, high, 0xdd);
      r[c + 4].v = _mm512_shuffle_f32x4(low_odd, high_odd, 0x88);
      r[c + 12].v = _mm512_shuffle_f32x4(low_odd, high_odd, 0xdd);
    }
  }
};

}  // namespace
}  // namespace pyattn

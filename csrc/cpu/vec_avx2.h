// Eight floats in a register: AVX2, FMA and F16C. The interface is described in vec_scalar.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "core/params.h"

namespace pyattn {
namespace {

struct Avx2 {
  using Scalar = float;
  struct Mask {
    __m256 v;
  };
  static constexpr int kLanes = 8;
  // 2 x 6 accumulators of the 16 registers: 12 FMA per 2 + 6 loads.
  static constexpr int kVecs = 2;
  static constexpr int kRows = 6;
  static constexpr bool kLibm = false;
  static constexpr bool kSplitsByFloor = false;
  __m256 v;

  static __m256i first(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Avx2 load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Avx2 load(const float* p, int count) { return {_mm256_maskload_ps(p, first(count))}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(float* p, int count) const { _mm256_maskstore_ps(p, first(count), v); }

  static Avx2 load(const Half* p) { return {_mm256_cvtph_ps(eight(p))}; }
  static Avx2 load(const Half* p, int count) { return {_mm256_cvtph_ps(eight(p, count))}; }
  static Avx2 load(const BFloat16* p) { return widened(eight(p)); }
  static Avx2 load(const BFloat16* p, int count) { return widened(eight(p, count)); }
  void store(Half* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), halves()); }
  void store(Half* p, int count) const { store_first(halves(), p, count); }
  void store(BFloat16* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bfloats()); }
  void store(BFloat16* p, int count) const { store_first(bfloats(), p, count); }

  template <class X>
  static __m128i eight(const X* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  // There is no masked load of 16-bit elements.
  template <class X>
  static __m128i eight(const X* p, int count) {
    X lane[8] = {};
    for (int i = 0; i < count; ++i) lane[i] = p[i];
    return eight(lane);
  }
  template <class X>
  static void store_first(__m128i x, X* p, int count) {
    X lane[8];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(lane), x);
    for (int i = 0; i < count; ++i) p[i] = lane[i];
  }
  static Avx2 widened(__m128i x) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16))};
  }
  __m128i halves() const {
    return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // Adds just under half a unit, and one more where the unit is odd; a NaN is only made quiet.
  __m128i bfloats() const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i rounded = _mm256_blendv_epi8(_mm256_add_epi32(bits, half), quiet, nan);
    const __m256i upper = _mm256_srli_epi32(rounded, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
  }

  static Avx2 broadcast(float x) { return {_mm256_set1_ps(x)}; }

  friend Avx2 operator+(Avx2 a, Avx2 b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Avx2 operator-(Avx2 a, Avx2 b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Avx2 operator*(Avx2 a, Avx2 b) { return {_mm256_mul_ps(a.v, b.v)}; }
  static Avx2 fma(Avx2 a, Avx2 b, Avx2 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static Avx2 fnma(Avx2 a, Avx2 b, Avx2 c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
  static Avx2 max(Avx2 a, Avx2 b) { return {_mm256_max_ps(a.v, b.v)}; }
  static Avx2 min(Avx2 a, Avx2 b) { return {_mm256_min_ps(a.v, b.v)}; }
  static Mask less(Avx2 a, Avx2 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
  static Mask equal(Avx2 a, Avx2 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)}; }
  static Avx2 select(Mask mask, Avx2 yes, Avx2 no) {
    return {_mm256_blendv_ps(no.v, yes.v, mask.v)};
  }
  static Mask from_bits(std::uint64_t bits) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i all = _mm256_set1_epi32(static_cast<int>(bits & 0xff));
    return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, lane), lane))};
  }
  // Bit j = "byte j is not zero".
  static std::uint64_t nonzero_64(const std::uint8_t* byte) {
    const auto* half = reinterpret_cast<const __m256i*>(byte);
    const auto zeros = [half](int i) {
      const __m256i zero = _mm256_cmpeq_epi8(_mm256_loadu_si256(half + i), _mm256_setzero_si256());
      return static_cast<std::uint32_t>(_mm256_movemask_epi8(zero));
    };
    return ~(static_cast<std::uint64_t>(zeros(1)) << 32 | zeros(0));
  }
  static std::uint64_t to_bits(Mask mask) {
    return static_cast<std::uint64_t>(_mm256_movemask_ps(mask.v));
  }

  // 12 bits from the table and one Newton step. A result below the normal range is 0.
  static Avx2 reciprocal(Avx2 x) {
    const __m256 r = _mm256_rcp_ps(x.v);
    const __m256 error = _mm256_fnmadd_ps(x.v, r, _mm256_set1_ps(1.0F));
    return {_mm256_fmadd_ps(r, error, r)};
  }

  // Clamped so that the exponent field of 2^n is at least 0, which is the number 0.
  static Avx2 exp2_split(Avx2 x, Avx2& n) {
    const __m256 clamped = _mm256_max_ps(_mm256_set1_ps(-127.0F), x.v);
    n = {_mm256_round_ps(clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
    return {_mm256_sub_ps(clamped, n.v)};
  }
  static Avx2 exp2_join(Avx2 p, Avx2 n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return {_mm256_mul_ps(p.v, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)))};
  }

  static Avx2 swap_pairs(Avx2 x) { return {_mm256_permute_ps(x.v, 0xb1)}; }

  static void transpose(Avx2 (&r)[8]) {
    __m256 a[8];
    for (int i = 0; i < 8; i += 2) {
      a[i] = _mm256_unpacklo_ps(r[i].v, r[i + 1].v);
      a[i + 1] = _mm256_unpackhi_ps(r[i].v, r[i + 1].v);
    }
    __m256 b[8];
    for (int i = 0; i < 8; i += 4) {
      for (int j = 0; j < 2; ++j) {
        b[i + 2 * j] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
        b[i + 2 * j + 1] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0xee);
      }
    }
    // b[4g + c] holds columns c and c + 4 of rows 4g .. 4g + 3, a half each.
    for (int c = 0; c < 4; ++c) {
      r[c].v = _mm256_permute2f128_ps(b[c], b[4 + c], 0x20);
      r[c + 4].v = _mm256_permute2f128_ps(b[c], b[4 + c], 0x31);
    }
  }
};

}  // namespace
}  // namespace pyattn

// Products of bfloat16 numbers two by two: AVX512_BF16. A register of pairs is an Avx512 whose
// lanes hold the bits of one pair each.
//
// vdpbf16ps adds the product of the odd members to the sum and then that of the even ones, each
// with one rounding, to nearest even; it reads subnormal numbers as 0, writes 0 for a subnormal
// result, and exchanging its factors changes nothing.
#pragma once

#include "cpu/matrix.inl"
#include "cpu/vec_avx512.h"

namespace pyattn {
namespace {

template <>
struct Products<Avx512, BFloat16Pair> {
  static PYATTN_INLINE Avx512 broadcast(const BFloat16Pair* p) {
    std::int32_t bits;
    std::memcpy(&bits, p, sizeof bits);
    return {_mm512_castsi512_ps(_mm512_set1_epi32(bits))};
  }
  static PYATTN_INLINE Avx512 multiply_add(Avx512 a, Avx512 b, Avx512 sum) {
    return {_mm512_dpbf16_ps(sum.v, pairs(a), pairs(b))};
  }
  // Lane i: even[i] and odd[i], rounded to nearest even; a subnormal number becomes 0.
  static PYATTN_INLINE Avx512 narrow(Avx512 even, Avx512 odd) {
    const __m512bh both = _mm512_cvtne2ps_pbh(odd.v, even.v);  // even[0..15], odd[0..15]
    __m512i words;
    std::memcpy(&words, &both, sizeof words);
    return {_mm512_castsi512_ps(_mm512_permutexvar_epi16(alternating(), words))};
  }
  // Lane i: even[i] and odd[i], as they are; the first `count` lanes are read, the others 0.
  static PYATTN_INLINE Avx512 zip(const BFloat16* even, const BFloat16* odd) {
    return joined(_mm256_loadu_si256(Avx512::whole(even)), Avx512::load(odd));
  }
  static PYATTN_INLINE Avx512 zip(const BFloat16* even, const BFloat16* odd, int count) {
    return joined(_mm256_maskz_loadu_epi16(Avx512::first(count), even), Avx512::load(odd, count));
  }

 private:
  static PYATTN_INLINE Avx512 joined(__m256i low, Avx512 high) {
    const __m512i words = _mm512_cvtepu16_epi32(low);
    return {_mm512_castsi512_ps(_mm512_or_si512(words, _mm512_castps_si512(high.v)))};
  }
  static PYATTN_INLINE __m512bh pairs(Avx512 x) {
    __m512bh bits;
    std::memcpy(&bits, &x.v, sizeof bits);
    return bits;
  }
  // 0, 16, 1, 17, ...
  static PYATTN_INLINE __m512i alternating() {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i second = _mm512_add_epi32(lane, _mm512_set1_epi32(16));
    return _mm512_or_si512(lane, _mm512_slli_epi32(second, 16));
  }
};

}  // namespace
}  // namespace pyattn

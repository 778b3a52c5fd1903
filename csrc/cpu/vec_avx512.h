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
  void store(BFloat16Pair* p, int count) const { _mm512_mask_storeu_ps(p, first(count), v); }

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
  // Bit j = "byte j is not zero".
  static std::uint64_t nonzero_64(const std::uint8_t* byte) {
    const __m512i bytes = _mm512_loadu_si512(byte);
    return _mm512_test_epi8_mask(bytes, bytes);
  }
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

  // Four registers as rows to registers of columns, beside each other: r[j] = columns 4 j .. 4 j
  // + 3.
  static void interleave(Avx512 (&r)[4]) {
    __m512 c[4];  // quarter q of c[j]: column 4 q + j
    transpose_quarters(r[0].v, r[1].v, r[2].v, r[3].v, c);
    const __m512 a = _mm512_shuffle_f32x4(c[0], c[1], 0x88);
    const __m512 b = _mm512_shuffle_f32x4(c[2], c[3], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(c[0], c[1], 0xdd);
    const __m512 e = _mm512_shuffle_f32x4(c[2], c[3], 0xdd);
    r[0].v = _mm512_shuffle_f32x4(a, b, 0x88);
    r[1].v = _mm512_shuffle_f32x4(d, e, 0x88);
    r[2].v = _mm512_shuffle_f32x4(a, b, 0xdd);
    r[3].v = _mm512_shuffle_f32x4(d, e, 0xdd);
  }

  // Columns d .. d + 7 of 32 rows: columns[2 c + g] is column d + c of rows 16 g .. 16 g + 15.
  template <class X>
  static void load_columns(const X* const* rows, std::int64_t d, Avx512 (&columns)[16]) {
    __m512 b[4][4];  // b[i][c]: quarters are columns c and c + 4 of rows 4 i .. 4 i + 3, then of
                     // those 16 further on
    for (int i = 0; i < 4; ++i) {
      __m512 a[4];
      for (int j = 0; j < 4; ++j) {
        const int row = 4 * i + j;
        a[j] = _mm512_insertf32x8(_mm512_castps256_ps512(eight(rows[row] + d)),
                                  eight(rows[16 + row] + d), 1);
      }
      transpose_quarters(a[0], a[1], a[2], a[3], b[i]);
    }
    for (int c = 0; c < 4; ++c) {
      const __m512 first = _mm512_shuffle_f32x4(b[0][c], b[1][c], 0x44);
      const __m512 second = _mm512_shuffle_f32x4(b[0][c], b[1][c], 0xee);
      const __m512 third = _mm512_shuffle_f32x4(b[2][c], b[3][c], 0x44);
      const __m512 fourth = _mm512_shuffle_f32x4(b[2][c], b[3][c], 0xee);
      columns[2 * c].v = _mm512_shuffle_f32x4(first, third, 0x88);
      columns[2 * c + 1].v = _mm512_shuffle_f32x4(second, fourth, 0x88);
      columns[2 * c + 8].v = _mm512_shuffle_f32x4(first, third, 0xdd);
      columns[2 * c + 9].v = _mm512_shuffle_f32x4(second, fourth, 0xdd);
    }
  }

  // Lanes i and i + 8, then i and i + 4, ...: the order of sum_lanes and max_lanes.
  float sum() const {
    return fold([](__m128 a, __m128 b) { return _mm_add_ps(a, b); },
                [](__m256 a, __m256 b) { return _mm256_add_ps(a, b); });
  }
  float max() const {
    return fold([](__m128 a, __m128 b) { return _mm_max_ps(b, a); },
                [](__m256 a, __m256 b) { return _mm256_max_ps(b, a); });
  }

  // Half the shuffles of a transposition.
  static Avx512 sum_each(const Avx512 (&r)[16]) {
    __m512 four[4];  // quarter q of four[i]: lanes 4 q .. 4 q + 3 of rows 4 i .. 4 i + 3, added
    for (int i = 0; i < 4; ++i) {
      const Avx512* row = r + 4 * i;
      const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(row[0].v, row[1].v),
                                     _mm512_unpackhi_ps(row[0].v, row[1].v));
      const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(row[2].v, row[3].v),
                                     _mm512_unpackhi_ps(row[2].v, row[3].v));
      four[i] = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    }
    return {add_quarters(add_quarters(four[0], four[1]), add_quarters(four[2], four[3]))};
  }

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

 private:
  template <class F128, class F256>
  float fold(F128 join, F256 join_halves) const {
    const __m256 eight = join_halves(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 x = join(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    x = join(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(join(x, _mm_movehdup_ps(x)));
  }

  // Quarters 0 + 1 and 2 + 3 of a, then those of b.
  static __m512 add_quarters(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }

  // Four 4 x 4 squares, a quarter of each register wide.
  static void transpose_quarters(__m512 r0, __m512 r1, __m512 r2, __m512 r3, __m512 (&to)[4]) {
    const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(r0, r1));
    const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(r0, r1));
    const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(r2, r3));
    const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(r2, r3));
    to[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
    to[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
    to[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
    to[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
  }

  // Eight numbers, as load gives sixteen.
  static __m256 eight(const float* p) { return _mm256_loadu_ps(p); }
  static __m256 eight(const BFloat16Pair* p) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
  }
  static __m256 eight(const Half* p) { return _mm256_cvtph_ps(_mm_loadu_si128(half(p))); }
  static __m256 eight(const BFloat16* p) {
    const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(half(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
  }
  template <class X>
  static const __m128i* half(const X* p) {
    return reinterpret_cast<const __m128i*>(p);
  }
};

}  // namespace
}  // namespace pyattn

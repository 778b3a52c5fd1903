// 32-bit words, each in a 64-bit lane of a register, for the counter-based generator of random.inl.
// The widest registers of the including object's instruction set are taken.
//
//   kLanes, store
//   counting(x)      x, x + 1, ...;  broadcast(x)
//   multiply(a, b)   the 64-bit product of the lower halves of the lanes
//   upper(a)         the upper halves, moved down;  a + b, a ^ b
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace pyattn {
namespace {

#if defined(__AVX512F__)

struct Words {
  static constexpr int kLanes = 8;
  __m512i v;

  static Words broadcast(std::uint64_t x) { return {_mm512_set1_epi64(static_cast<long long>(x))}; }
  static Words counting(std::uint64_t x) {
    return {_mm512_add_epi64(broadcast(x).v, _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7))};
  }
  void store(std::uint64_t* p) const { _mm512_storeu_si512(p, v); }
  static Words multiply(Words a, Words b) { return {_mm512_mul_epu32(a.v, b.v)}; }
  static Words upper(Words a) { return {_mm512_srli_epi64(a.v, 32)}; }
  friend Words operator+(Words a, Words b) { return {_mm512_add_epi64(a.v, b.v)}; }
  friend Words operator^(Words a, Words b) { return {_mm512_xor_si512(a.v, b.v)}; }
};

#elif defined(__AVX2__)

struct Words {
  static constexpr int kLanes = 4;
  __m256i v;

  static Words broadcast(std::uint64_t x) {
    return {_mm256_set1_epi64x(static_cast<long long>(x))};
  }
  static Words counting(std::uint64_t x) {
    return {_mm256_add_epi64(broadcast(x).v, _mm256_setr_epi64x(0, 1, 2, 3))};
  }
  void store(std::uint64_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static Words multiply(Words a, Words b) { return {_mm256_mul_epu32(a.v, b.v)}; }
  static Words upper(Words a) { return {_mm256_srli_epi64(a.v, 32)}; }
  friend Words operator+(Words a, Words b) { return {_mm256_add_epi64(a.v, b.v)}; }
  friend Words operator^(Words a, Words b) { return {_mm256_xor_si256(a.v, b.v)}; }
};

#elif defined(__ARM_NEON)

struct Words {
  static constexpr int kLanes = 2;
  uint64x2_t v;

  static Words broadcast(std::uint64_t x) { return {vdupq_n_u64(x)}; }
  static Words counting(std::uint64_t x) {
    return {vcombine_u64(vcreate_u64(x), vcreate_u64(x + 1))};
  }
  void store(std::uint64_t* p) const { vst1q_u64(p, v); }
  static Words multiply(Words a, Words b) { return {vmull_u32(vmovn_u64(a.v), vmovn_u64(b.v))}; }
  static Words upper(Words a) { return {vshrq_n_u64(a.v, 32)}; }
  friend Words operator+(Words a, Words b) { return {vaddq_u64(a.v, b.v)}; }
  friend Words operator^(Words a, Words b) { return {veorq_u64(a.v, b.v)}; }
};

#else

struct Words {
  static constexpr int kLanes = 1;
  std::uint64_t v;

  static Words broadcast(std::uint64_t x) { return {x}; }
  static Words counting(std::uint64_t x) { return {x}; }
  void store(std::uint64_t* p) const { *p = v; }
  static Words multiply(Words a, Words b) { return {(a.v & 0xffffffff) * (b.v & 0xffffffff)}; }
  static Words upper(Words a) { return {a.v >> 32}; }
  friend Words operator+(Words a, Words b) { return {a.v + b.v}; }
  friend Words operator^(Words a, Words b) { return {a.v ^ b.v}; }
};

#endif

}  // namespace
}  // namespace pyattn

// Four floats in a register: Advanced SIMD of 64-bit Arm. The interface is described in
// vec_scalar.h.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "core/params.h"

namespace pyattn {
namespace {

struct Neon {
  using Scalar = float;
  struct Mask {
    uint32x4_t v;
  };
  static constexpr int kLanes = 4;
  // 4 x 6 accumulators of the 32 registers, as with AVX-512.
  static constexpr int kVecs = 4;
  static constexpr int kRows = 6;
  static constexpr bool kLibm = false;
  static constexpr bool kSplitsByFloor = false;
  float32x4_t v;

  static Neon load(const float* p) { return {vld1q_f32(p)}; }
  void store(float* p) const { vst1q_f32(p, v); }

  static Neon load(const Half* p) { return widened(p, vld1_u16(&p->bits)); }
  static Neon load(const BFloat16* p) { return widened(p, vld1_u16(&p->bits)); }
  template <class X>
  static Neon load(const X* p, int count) {
    X lane[4] = {};
    for (int i = 0; i < count; ++i) lane[i] = p[i];
    return load(lane);
  }
  void store(Half* p) const { vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
  // Adds just under half a unit, and one more where the unit is odd; a NaN is only made quiet.
  void store(BFloat16* p) const {
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    vst1_u16(&p->bits, vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, quiet), 16));
  }
  template <class X>
  void store(X* p, int count) const {
    X lane[4];
    store(lane);
    for (int i = 0; i < count; ++i) p[i] = lane[i];
  }
  static Neon widened(const Half*, uint16x4_t x) { return {vcvt_f32_f16(vreinterpret_f16_u16(x))}; }
  static Neon widened(const BFloat16*, uint16x4_t x) {
    return {vreinterpretq_f32_u32(vshll_n_u16(x, 16))};
  }

  static Neon broadcast(float x) { return {vdupq_n_f32(x)}; }

  friend Neon operator+(Neon a, Neon b) { return {vaddq_f32(a.v, b.v)}; }
  friend Neon operator-(Neon a, Neon b) { return {vsubq_f32(a.v, b.v)}; }
  friend Neon operator*(Neon a, Neon b) { return {vmulq_f32(a.v, b.v)}; }
  static Neon fma(Neon a, Neon b, Neon c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
  static Neon fnma(Neon a, Neon b, Neon c) { return {vfmsq_f32(c.v, a.v, b.v)}; }
  // vmaxq_f32 would return a NaN of either operand; the interface wants the second.
  static Neon max(Neon a, Neon b) { return {vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)}; }
  static Neon min(Neon a, Neon b) { return {vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v)}; }
  static Mask less(Neon a, Neon b) { return {vcltq_f32(a.v, b.v)}; }
  static Mask equal(Neon a, Neon b) { return {vceqq_f32(a.v, b.v)}; }
  static Neon select(Mask mask, Neon yes, Neon no) { return {vbslq_f32(mask.v, yes.v, no.v)}; }
  static uint32x4_t lane_bits() {
    const std::uint32_t bit[4] = {1, 2, 4, 8};
    return vld1q_u32(bit);
  }
  static Mask from_bits(std::uint64_t bits) {
    const uint32x4_t all = vdupq_n_u32(static_cast<std::uint32_t>(bits & 0xf));
    return {vtstq_u32(all, lane_bits())};
  }
  static std::uint64_t to_bits(Mask mask) { return vaddvq_u32(vandq_u32(mask.v, lane_bits())); }

  // 8 bits from the table and two Newton steps.
  static Neon reciprocal(Neon x) {
    float32x4_t r = vrecpeq_f32(x.v);
    r = vmulq_f32(r, vrecpsq_f32(x.v, r));
    return {vmulq_f32(r, vrecpsq_f32(x.v, r))};
  }

  // Clamped so that the exponent field of 2^n is at least 0, which is the number 0.
  static Neon exp2_split(Neon x, Neon& n) {
    const Neon clamped = max(broadcast(-127.0F), x);
    n = {vrndnq_f32(clamped.v)};
    return clamped - n;
  }
  static Neon exp2_join(Neon p, Neon n) {
    const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n.v), vdupq_n_s32(127));
    return {vmulq_f32(p.v, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)))};
  }

  static Neon swap_pairs(Neon x) { return {vrev64q_f32(x.v)}; }

  static void transpose(Neon (&r)[4]) {
    const float32x4x2_t low = vtrnq_f32(r[0].v, r[1].v);
    const float32x4x2_t high = vtrnq_f32(r[2].v, r[3].v);
    r[0].v = vcombine_f32(vget_low_f32(low.val[0]), vget_low_f32(high.val[0]));
    r[1].v = vcombine_f32(vget_low_f32(low.val[1]), vget_low_f32(high.val[1]));
    r[2].v = vcombine_f32(vget_high_f32(low.val[0]), vget_high_f32(high.val[0]));
    r[3].v = vcombine_f32(vget_high_f32(low.val[1]), vget_high_f32(high.val[1]));
  }
};

}  // namespace
}  // namespace pyattn

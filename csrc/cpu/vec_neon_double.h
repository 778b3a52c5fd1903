// Two doubles in a register: Advanced SIMD of 64-bit Arm. The interface is described in
// vec_scalar.h.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace pyattn {
namespace {

struct NeonDouble {
  using Scalar = double;
  struct Mask {
    uint64x2_t v;
  };
  static constexpr int kLanes = 2;
  // As for float: 4 x 6 accumulators of the 32 registers.
  static constexpr int kVecs = 4;
  static constexpr int kRows = 6;
  static constexpr bool kLibm = true;
  static constexpr bool kSplitsByFloor = false;
  static constexpr double kLowestExp = -709.4;  // n = -1023: the exponent field of 0
  float64x2_t v;

  static NeonDouble load(const double* p) { return {vld1q_f64(p)}; }
  static NeonDouble load(const double* p, int count) {
    const double lane[2] = {count > 0 ? p[0] : 0.0, count > 1 ? p[1] : 0.0};
    return load(lane);
  }
  void store(double* p) const { vst1q_f64(p, v); }
  void store(double* p, int count) const {
    if (count > 0) p[0] = vgetq_lane_f64(v, 0);
    if (count > 1) p[1] = vgetq_lane_f64(v, 1);
  }
  static NeonDouble broadcast(double x) { return {vdupq_n_f64(x)}; }

  friend NeonDouble operator+(NeonDouble a, NeonDouble b) { return {vaddq_f64(a.v, b.v)}; }
  friend NeonDouble operator-(NeonDouble a, NeonDouble b) { return {vsubq_f64(a.v, b.v)}; }
  friend NeonDouble operator*(NeonDouble a, NeonDouble b) { return {vmulq_f64(a.v, b.v)}; }
  static NeonDouble fma(NeonDouble a, NeonDouble b, NeonDouble c) {
    return {vfmaq_f64(c.v, a.v, b.v)};
  }
  static NeonDouble fnma(NeonDouble a, NeonDouble b, NeonDouble c) {
    return {vfmsq_f64(c.v, a.v, b.v)};
  }
  // vmaxq_f64 would return a NaN of either operand; the interface wants the second.
  static NeonDouble max(NeonDouble a, NeonDouble b) {
    return {vbslq_f64(vcgtq_f64(a.v, b.v), a.v, b.v)};
  }
  static NeonDouble min(NeonDouble a, NeonDouble b) {
    return {vbslq_f64(vcltq_f64(a.v, b.v), a.v, b.v)};
  }
  static Mask less(NeonDouble a, NeonDouble b) { return {vcltq_f64(a.v, b.v)}; }
  static Mask equal(NeonDouble a, NeonDouble b) { return {vceqq_f64(a.v, b.v)}; }
  static NeonDouble select(Mask mask, NeonDouble yes, NeonDouble no) {
    return {vbslq_f64(mask.v, yes.v, no.v)};
  }
  static uint64x2_t lane_bits() {
    const std::uint64_t bit[2] = {1, 2};
    return vld1q_u64(bit);
  }
  static Mask from_bits(std::uint64_t bits) {
    return {vtstq_u64(vdupq_n_u64(bits & 3), lane_bits())};
  }
  static std::uint64_t to_bits(Mask mask) { return vaddvq_u64(vandq_u64(mask.v, lane_bits())); }

  static NeonDouble reciprocal(NeonDouble x) { return {vdivq_f64(vdupq_n_f64(1.0), x.v)}; }

  static NeonDouble exp2_join(NeonDouble p, NeonDouble, NeonDouble biased) {
    const uint64x2_t scale = vshlq_n_u64(vreinterpretq_u64_f64(biased.v), 52);
    return {vmulq_f64(p.v, vreinterpretq_f64_u64(scale))};
  }

  static NeonDouble swap_pairs(NeonDouble x) { return {vextq_f64(x.v, x.v, 1)}; }

  static void transpose(NeonDouble (&r)[2]) {
    const float64x2_t low = vtrn1q_f64(r[0].v, r[1].v);
    r[1].v = vtrn2q_f64(r[0].v, r[1].v);
    r[0].v = low;
  }
};

}  // namespace
}  // namespace pyattn

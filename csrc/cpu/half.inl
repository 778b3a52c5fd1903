// float16 and bfloat16 to float and back by integer operations, for machines without instructions
// for it. Narrowing rounds to nearest, ties to even; overflow gives an infinity; a NaN stays a NaN,
// made quiet, with its sign and the upper bits of its payload. No intermediate result is subnormal
// in float unless the number itself is, so a mode that flushes those changes nothing.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/params.h"

namespace pyattn {
namespace {

inline std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Two bfloat16 numbers beside each other, as an operand of products that take them two by two.
struct BFloat16Pair {
  BFloat16 even;
  BFloat16 odd;
};

inline float widened(BFloat16 x) { return float_of(static_cast<std::uint32_t>(x.bits) << 16); }

// The exponent and mantissa move up by 13 bits and the bias grows by 112. A subnormal gets an
// exponent one too large instead, and so an implicit bit, which is then subtracted.
inline float widened(Half x) {
  const std::uint32_t h = x.bits;
  const std::uint32_t size = (h & 0x7fffU) << 13;
  const std::uint32_t sign = (h & 0x8000U) << 16;
  const std::uint32_t small = bits_of(float_of(size + (113U << 23)) - float_of(113U << 23));
  const std::uint32_t quiet = size > 0x7c00U << 13 ? 0x400000U : 0U;
  const std::uint32_t large = (size + ((size >= 0x7c00U << 13 ? 224U : 112U) << 23)) | quiet;
  return float_of((size < 0x400U << 13 ? small : large) | sign);
}

inline void narrow(float x, BFloat16* to) {
  const std::uint32_t f = bits_of(x);
  const std::uint32_t rounded = f + 0x7fffU + (f >> 16 & 1U);
  const bool nan = (f & 0x7fffffffU) > 0x7f800000U;
  to->bits = static_cast<std::uint16_t>((nan ? f | 0x400000U : rounded) >> 16);
}

// Below 2^-14, adding 1/2 leaves the rounded multiple of 2^-24 in the lowest bits; above, the
// mantissa is rounded as an integer, and a carry goes into the exponent, up to infinity.
inline void narrow(float x, Half* to) {
  const std::uint32_t f = bits_of(x);
  const std::uint32_t sign = f >> 16 & 0x8000U;
  const std::uint32_t size = f & 0x7fffffffU;
  const std::uint32_t small = bits_of(float_of(size) + 0.5F) - bits_of(0.5F);
  const std::uint32_t normal = (size - (112U << 23) + 0xfffU + (size >> 13 & 1U)) >> 13;
  const std::uint32_t nan = 0x7e00U | (size >> 13 & 0x3ffU);
  std::uint32_t h = size < 113U << 23 ? small : normal;
  if (size >= 143U << 23) h = 0x7c00U;  // 65536 and more; from 65520 on the carry has done it
  if (size > 0x7f800000U) h = nan;
  to->bits = static_cast<std::uint16_t>(h | sign);
}

}  // namespace
}  // namespace pyattn

// float16 and bfloat16 by their definition: a value is a multiple of 2^(exponent - mantissa bits),
// rounded to the nearest, ties to even.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "core/params.h"

namespace pyattn::testing {

struct Format {
  int mantissa;      // stored bits
  int min_exponent;  // of the normal numbers
  int max_exponent;
};
template <class X>
inline constexpr Format kFormat{10, -14, 15};
template <>
inline constexpr Format kFormat<BFloat16>{7, -126, 127};

template <class X>
inline constexpr std::uint16_t kInfinityBits =
    static_cast<std::uint16_t>((kFormat<X>.max_exponent * 2 + 1) << kFormat<X>.mantissa);

template <class X>
double value_of(std::uint16_t bits) {
  constexpr Format f = kFormat<X>;
  const int mantissa = bits & ((1 << f.mantissa) - 1);
  const int field = (bits & 0x7fff) >> f.mantissa;
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (field == f.max_exponent * 2 + 1) {
    return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN()
                         : sign * std::numeric_limits<double>::infinity();
  }
  const int whole = field == 0 ? mantissa : mantissa + (1 << f.mantissa);
  return sign * std::ldexp(whole, std::max(field, 1) - f.max_exponent - f.mantissa);
}

template <class X>
std::uint16_t nearest(float x) {
  constexpr Format f = kFormat<X>;
  const auto sign = static_cast<std::uint16_t>(std::signbit(x) ? 0x8000 : 0);
  const double size = std::abs(static_cast<double>(x));
  if (size == 0) return sign;
  if (std::isinf(size)) return sign | kInfinityBits<X>;
  const int exponent = std::max(std::ilogb(size), f.min_exponent);
  // In units of the last place: at most 2^(mantissa + 1), which is the next binade's first number.
  const auto units = static_cast<int>(std::nearbyint(std::ldexp(size, f.mantissa - exponent)));
  const int bits = units + ((exponent - f.min_exponent) << f.mantissa);
  return sign | static_cast<std::uint16_t>(std::min<int>(bits, kInfinityBits<X>));
}

// The same for any type. A NaN is quiet.
template <class X>
double number(X x) {
  if constexpr (std::is_arithmetic_v<X>) {
    return static_cast<double>(x);
  } else {
    return value_of<X>(x.bits);
  }
}

template <class X>
X stored(double x) {
  if constexpr (std::is_floating_point_v<X>) {
    return static_cast<X>(x);
  } else {
    if (std::isnan(x))
      return {static_cast<std::uint16_t>(kInfinityBits<X> | ((1 << kFormat<X>.mantissa) - 1))};
    return {nearest<X>(static_cast<float>(x))};
  }
}

}  // namespace pyattn::testing

// softmax, layer normalisation (Ba et al. 2016, arXiv:1607.06450) and RMS normalisation (Zhang and
// Sennrich 2019, arXiv:1910.07467) of dense rows.
// Sums run in four registers, added in a fixed order, so a row's result depends on that row only.
// Softmax reads a row three times (maximum; exponentials and their sum; scaling), layer
// normalisation too (mean; squared distance from it, which does not cancel as E[x^2] - mean^2
// does; result), RMS normalisation twice. A row of -inf gives NaN, as the formula does: masks
// belong to attention.
#pragma once

#include "core/params.h"
#include "cpu/math.inl"

namespace pyattn {
namespace {

// The first `count` lanes of x, the others replaced.
template <class V>
PYATTN_INLINE V first_lanes(V x, int count, typename V::Scalar other) {
  return V::select(V::from_bits((std::uint64_t{1} << count) - 1), x, V::broadcast(other));
}

// sum_i term(x_i); `term(x, at, count)` may store what it computed.
template <class V, class Term>
PYATTN_INLINE typename V::Scalar sum_row(const typename V::Scalar* row, std::int64_t length,
                                         Term term) {
  using T = typename V::Scalar;
  constexpr int kWays = 4;
  V sum[kWays];
  for (V& part : sum) part = V::broadcast(T(0));
  std::int64_t i = 0;
  for (; i + kWays * V::kLanes <= length; i += kWays * V::kLanes) {
    PYATTN_UNROLL
    for (int way = 0; way < kWays; ++way) {
      const std::int64_t at = i + way * V::kLanes;
      sum[way] = sum[way] + term(V::load(row + at), at, V::kLanes);
    }
  }
  for (; i < length; i += V::kLanes) {
    const int left = length - i < V::kLanes ? static_cast<int>(length - i) : V::kLanes;
    sum[0] = sum[0] + first_lanes(term(V::load(row + i, left), i, left), left, T(0));
  }
  return sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// Calls body(at, count) for every register of a row.
template <class V, class Body>
PYATTN_INLINE void for_each_register(std::int64_t length, Body body) {
  std::int64_t i = 0;
  for (; i + V::kLanes <= length; i += V::kLanes) body(i, V::kLanes);
  if (i < length) body(i, static_cast<int>(length - i));
}

template <class V>
void softmax_rows(const Rows<typename V::Scalar>& rows) noexcept {
  using T = typename V::Scalar;
  for (std::int64_t r = 0; r < rows.count; ++r) {
    const T* x = rows.input + r * rows.length;
    T* y = rows.output + r * rows.length;
    const T lowest = -static_cast<T>(HUGE_VAL);
    V tops = V::broadcast(lowest);
    for_each_register<V>(rows.length, [&](std::int64_t at, int count) {
      // A NaN is dropped here and comes back in the exponential.
      tops = V::max(first_lanes(load_left<V>(x + at, count), count, lowest), tops);
    });
    const V shift = V::broadcast(max_lanes(tops));
    const T total = sum_row<V>(x, rows.length, [&](V value, std::int64_t at, int count) {
      const V numerator = exp_fast(value - shift);
      store_left(numerator, y + at, count);
      return numerator;
    });
    const V scale = V::broadcast(T(1) / total);
    for_each_register<V>(rows.length, [&](std::int64_t at, int count) {
      store_left(load_left<V>(y + at, count) * scale, y + at, count);
    });
  }
}

template <class V>
void layer_norm_rows(const Rows<typename V::Scalar>& rows,
                     const LayerNormParams<typename V::Scalar>& p) noexcept {
  using T = typename V::Scalar;
  const T length = static_cast<T>(rows.length);
  for (std::int64_t r = 0; r < rows.count; ++r) {
    const T* x = rows.input + r * rows.length;
    T* y = rows.output + r * rows.length;
    const T mean =
        sum_row<V>(x, rows.length, [](V value, std::int64_t, int) { return value; }) / length;
    const V centre = V::broadcast(mean);
    const T variance = sum_row<V>(x, rows.length,
                                  [&](V value, std::int64_t, int) {
                                    const V distance = value - centre;
                                    return distance * distance;
                                  }) /
                       length;
    const V scale =
        V::broadcast(static_cast<T>(1.0 / ::sqrt(static_cast<double>(variance + p.eps))));
    for_each_register<V>(rows.length, [&](std::int64_t at, int count) {
      V value = (load_left<V>(x + at, count) - centre) * scale;
      if (p.weight != nullptr) value = value * load_left<V>(p.weight + at, count);
      if (p.bias != nullptr) value = value + load_left<V>(p.bias + at, count);
      store_left(value, y + at, count);
    });
  }
}

// 1 / sqrt(mean(x^2) + epsilon).
template <class V>
PYATTN_INLINE double inverse_rms(const typename V::Scalar* x, std::int64_t length, double epsilon) {
  const double squares =
      sum_row<V>(x, length, [](V value, std::int64_t, int) { return value * value; });
  return 1.0 / ::sqrt(squares / static_cast<double>(length) + epsilon);
}

template <class V>
void rms_norm_rows(const Rows<typename V::Scalar>& rows,
                   const RmsNormParams<typename V::Scalar>& p) noexcept {
  using T = typename V::Scalar;
  for (std::int64_t r = 0; r < rows.count; ++r) {
    const T* x = rows.input + r * rows.length;
    T* y = rows.output + r * rows.length;
    const V factor = V::broadcast(static_cast<T>(inverse_rms<V>(x, rows.length, p.epsilon)));
    for_each_register<V>(rows.length, [&](std::int64_t at, int count) {
      const V unit = load_left<V>(x + at, count) * factor;
      store_left(unit * load_left<V>(p.scale + at, count), y + at, count);
    });
  }
}

// With r = 1 / sqrt(mean(x^2) + epsilon) and g the gradient of y = r x scale:
// dx = r g scale - x r^3 mean(g scale x), dscale = sum over rows of g r x.
template <class V>
void rms_norm_gradient_rows(const RmsNormGradientRows<typename V::Scalar>& rows,
                            const RmsNormParams<typename V::Scalar>& p) noexcept {
  using T = typename V::Scalar;
  for (std::int64_t row = 0; row < rows.count; ++row) {
    const T* x = rows.input + row * rows.length;
    const T* g = rows.gradient + row * rows.length;
    T* dx = rows.input_gradient + row * rows.length;
    const double r = inverse_rms<V>(x, rows.length, p.epsilon);
    const double along = sum_row<V>(x, rows.length, [&](V value, std::int64_t at, int count) {
      return value * (load_left<V>(g + at, count) * load_left<V>(p.scale + at, count));
    });
    const V factor = V::broadcast(static_cast<T>(r));
    // Two powers of r here and one at the end: r^3 alone could leave the range of T.
    const V projection =
        V::broadcast(static_cast<T>(r * r * along / static_cast<double>(rows.length)));
    for_each_register<V>(rows.length, [&](std::int64_t at, int count) {
      const V value = load_left<V>(x + at, count);
      const V given = load_left<V>(g + at, count);
      if (rows.scale_gradient != nullptr) {
        const V sum = load_left<V>(rows.scale_gradient + at, count);
        store_left(V::fma(given, value * factor, sum), rows.scale_gradient + at, count);
      }
      const V scaled = given * load_left<V>(p.scale + at, count);
      store_left(factor * V::fnma(value, projection, scaled), dx + at, count);
    });
  }
}

}  // namespace
}  // namespace pyattn

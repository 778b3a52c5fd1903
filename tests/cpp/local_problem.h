// A problem for attention within windows with its own memory, and its loss by the formula, in
// double precision or better.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "core/local.h"

namespace pyattn::testing {

inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// (B, T, D), its numbers `step` apart, and NaN in the gaps.
struct Array {
  std::int64_t shape[3];
  std::int64_t step;
  std::vector<double> data;

  Array(std::int64_t b, std::int64_t n, std::int64_t d, std::int64_t apart, unsigned seed)
      : shape{b, n, d}, step(apart) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    data.assign(static_cast<std::size_t>(step * b * n * d), kNan);
    for (std::size_t i = 0; i < data.size(); i += static_cast<std::size_t>(step)) {
      data[i] = normal(random);
    }
  }
  double& at(std::int64_t b, std::int64_t n, std::int64_t d) {
    return data[static_cast<std::size_t>(step * ((b * shape[1] + n) * shape[2] + d))];
  }
  View<const double, 3> view() const {
    return {.data = data.data(),
            .shape = {shape[0], shape[1], shape[2]},
            .stride = {step * shape[1] * shape[2], step * shape[2], step}};
  }
};

// Where results go, NaN before.
struct Result {
  std::vector<double> data;
  View<double, 3> view;

  Result(std::int64_t b, std::int64_t n, std::int64_t d)
      : data(static_cast<std::size_t>(b * n * d), kNan),
        view{.data = data.data(), .shape = {b, n, d}, .stride = {n * d, d, 1}} {}
  Result(const Result&) = delete;
  double at(std::int64_t b, std::int64_t n, std::int64_t d) const {
    return data[static_cast<std::size_t>(b * view.stride[0] + n * view.stride[1] + d)];
  }
};

View<double, 2> rows_of(Result& result) {
  return {.data = result.data.data(),
          .shape = {result.view.shape[0], result.view.shape[1]},
          .stride = {result.view.stride[0], 1}};
}

struct Problem {
  std::int64_t batch = 2;
  std::int64_t rows;
  std::int64_t keys;
  std::int64_t depth;
  std::int64_t columns;
  std::int64_t half_width;
  bool direction;
  bool renormalize;
  bool plain = false;  // without a mask and gaps
  Array query{batch, rows, depth, plain ? 1 : 2, 1};
  Array key{batch, keys, depth, plain ? 1 : 2, 2};
  Array value{batch, keys, columns, plain ? 1 : 2, 3};
  std::vector<double> centre = std::vector<double>(static_cast<std::size_t>(batch * rows));
  std::vector<double> v = std::vector<double>(static_cast<std::size_t>(depth + 1), 0.5);
  std::vector<std::uint8_t> mask = std::vector<std::uint8_t>(static_cast<std::size_t>(keys), 1);
  std::vector<std::int64_t> lengths = {keys, keys / 2};

  void draw() {
    std::mt19937 random(4);
    const auto most = static_cast<double>(keys);
    std::uniform_real_distribution<double> place(-2.0, most + 2.0);
    for (double& x : centre) x = place(random);
    const double special[] = {0.0, most, -1e300, 1e300, std::floor(most / 2)};
    for (std::size_t i = 0; i < 5 && i < centre.size(); ++i) centre[i] = special[i];
    for (std::size_t i = 0; i < v.size(); ++i) v[i] = place(random) / most;
    for (std::size_t i = 2; i < mask.size(); i += 3) mask[i] = 0;
  }

  LocalParams<double> params() const {
    LocalParams<double> p{
        .query = query.view(),
        .key = key.view(),
        .value = value.view(),
        .centre = {.data = centre.data(), .shape = {batch, rows}, .stride = {rows, 1}},
        .keys = keys,
        .kv_lengths = lengths.data(),
        .half_width = half_width,
        .renormalize = renormalize,
        .v = direction ? v.data() : nullptr,
    };
    if (plain) return p;
    p.mask = {.kind = MaskKind::boolean, .data = mask.data(), .stride = {0, 0, 0, 1}};
    return p;
  }

  bool allowed(std::int64_t b, std::int64_t t, std::int64_t s) const {
    const double p = centre[static_cast<std::size_t>(b * rows + t)];
    return s < lengths[static_cast<std::size_t>(b)] &&
           (plain || mask[static_cast<std::size_t>(s)] != 0) &&
           std::abs(static_cast<double>(s) - p) <= static_cast<double>(half_width);
  }

  double score(std::int64_t b, std::int64_t t, std::int64_t s) {
    double sum = 0;
    for (std::int64_t d = 0; d < depth; ++d) {
      const double q = query.at(b, t, d);
      const double k = key.at(b, s, d);
      sum += direction ? v[static_cast<std::size_t>(d)] * std::tanh(q + k) : q * k;
    }
    return sum;
  }

  // The weights of a row by the paper; its log-sum-exp behind them.
  std::vector<double> weights(std::int64_t b, std::int64_t t) {
    std::vector<double> w(static_cast<std::size_t>(keys + 1), 0.0);
    double total = 0;
    double whole = 0;
    const double sigma = static_cast<double>(half_width) / 2;
    for (std::int64_t s = 0; s < keys; ++s) {
      if (allowed(b, t, s)) total += std::exp(score(b, t, s));
    }
    for (std::int64_t s = 0; s < keys; ++s) {
      if (!allowed(b, t, s)) continue;
      const double x = static_cast<double>(s) - centre[static_cast<std::size_t>(b * rows + t)];
      const double one = std::exp(score(b, t, s)) / total * std::exp(-x * x / (2 * sigma * sigma));
      w[static_cast<std::size_t>(s)] = one;
      whole += one;
    }
    if (renormalize && whole > 0) {
      for (double& one : w) one /= whole;
    }
    w.back() = std::log(total);
    return w;
  }

  // sum (out * 0.3 + lse * 0.7), whose gradient is asked for below; differences show its rounding.
  long double loss() {
    long double sum = 0;
    for (std::int64_t b = 0; b < batch; ++b) {
      for (std::int64_t t = 0; t < rows; ++t) {
        const std::vector<double> w = weights(b, t);
        if (std::isfinite(w.back())) sum += 0.7 * w.back();
        for (std::int64_t s = 0; s < keys; ++s) {
          for (std::int64_t e = 0; e < columns; ++e) {
            sum += 0.3 * w[static_cast<std::size_t>(s)] * value.at(b, s, e);
          }
        }
      }
    }
    return sum;
  }
};

}  // namespace pyattn::testing

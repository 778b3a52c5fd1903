// An attention problem with its own memory, and its answer by the definition, in double precision.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/attention.h"
#include "core/isa.h"

namespace pyattn::testing {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

enum class Mechanism { sdpa, additive };
enum class MaskUse { none, boolean, additive, keys_only };

struct Shape {
  std::int64_t batch = 1, heads = 1, groups = 1, rows = 1, keys = 1, depth = 1, columns = 1;

  std::string text() const {
    return "B=" + std::to_string(batch) + " H=" + std::to_string(heads) +
           " G=" + std::to_string(groups) + " T=" + std::to_string(rows) +
           " S=" + std::to_string(keys) + " D=" + std::to_string(depth) +
           " E=" + std::to_string(columns);
  }
};

template <class T>
View<const T, 4> dense_view(const std::vector<T>& data, std::int64_t a, std::int64_t b,
                            std::int64_t c, std::int64_t d) {
  return {.data = data.data(), .shape = {a, b, c, d}, .stride = {b * c * d, c * d, d, 1}};
}

template <class T>
struct Answer {
  std::vector<T> out, weights, lse;
};

template <class T>
struct Problem {
  Mechanism mechanism;
  Shape shape;
  std::vector<T> query, key, value, v, bias;
  std::vector<std::uint8_t> boolean;
  std::vector<std::int64_t> lengths;
  MaskUse mask;
  bool causal;
  T scale;

  Problem(Mechanism mechanism_, const Shape& s, MaskUse mask_, bool causal_, bool with_lengths,
          double size, std::mt19937& random)
      : mechanism(mechanism_), shape(s), mask(mask_), causal(causal_) {
    std::normal_distribution<double> normal;
    const auto fill = [&](std::vector<T>& data, std::int64_t count, double factor) {
      data.resize(static_cast<std::size_t>(count));
      for (T& x : data) x = static_cast<T>(factor * normal(random));
    };
    fill(query, s.batch * s.heads * s.rows * s.depth, size);
    fill(key, s.batch * s.groups * s.keys * s.depth, size);
    fill(value, s.batch * s.groups * s.keys * s.columns, 1);
    fill(v, s.depth, 0.3);
    fill(bias, s.heads * s.rows * s.keys, 2);
    boolean.resize(bias.size());
    for (std::size_t i = 0; i < bias.size(); ++i) {
      boolean[i] = random() % 3 != 0 ? static_cast<std::uint8_t>(1 + random() % 255) : 0;
      if (random() % 4 == 0) bias[i] = static_cast<T>(-kInfinity);
    }
    if (with_lengths) {
      for (std::int64_t b = 0; b < s.batch; ++b) {
        lengths.push_back(static_cast<std::int64_t>(random() % static_cast<unsigned>(s.keys + 1)));
      }
    }
    scale = static_cast<T>(1 / std::sqrt(std::max<double>(1, static_cast<double>(s.depth))));
  }

  bool allowed(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    if (causal && j > i) return false;
    if (!lengths.empty() && j >= lengths[static_cast<std::size_t>(b)]) return false;
    const auto pair = static_cast<std::size_t>((h * shape.rows + i) * shape.keys + j);
    if (mask == MaskUse::boolean) return boolean[pair] != 0;
    if (mask == MaskUse::keys_only) return boolean[static_cast<std::size_t>(j)] != 0;
    if (mask == MaskUse::additive) return bias[pair] > static_cast<T>(-kInfinity);
    return true;
  }

  double score(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    const std::int64_t g = h / (shape.heads / shape.groups);
    const T* q = query.data() + ((b * shape.heads + h) * shape.rows + i) * shape.depth;
    const T* k = key.data() + ((b * shape.groups + g) * shape.keys + j) * shape.depth;
    double sum = 0;
    for (std::int64_t d = 0; d < shape.depth; ++d) {
      const double qd = static_cast<double>(q[d]);
      const double kd = static_cast<double>(k[d]);
      sum += mechanism == Mechanism::sdpa
                 ? static_cast<double>(scale) * qd * kd
                 : static_cast<double>(v[static_cast<std::size_t>(d)]) * std::tanh(qd + kd);
    }
    if (mask == MaskUse::additive) {
      sum += static_cast<double>(
          bias[static_cast<std::size_t>((h * shape.rows + i) * shape.keys + j)]);
    }
    return sum;
  }

  Answer<double> definition() const {
    Answer<double> answer;
    std::vector<double> weight(static_cast<std::size_t>(shape.keys));
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      for (std::int64_t h = 0; h < shape.heads; ++h) {
        for (std::int64_t i = 0; i < shape.rows; ++i) add_row(answer, weight, b, h, i);
      }
    }
    return answer;
  }

  AttentionParams<T> params() const {
    const Shape& s = shape;
    AttentionParams<T> p;
    p.query = dense_view(query, s.batch, s.heads, s.rows, s.depth);
    p.key = dense_view(key, s.batch, s.groups, s.keys, s.depth);
    p.value = dense_view(value, s.batch, s.groups, s.keys, s.columns);
    p.is_causal = causal;
    p.scale = scale;
    p.v = v.data();
    if (!lengths.empty()) p.kv_lengths = lengths.data();
    const std::int64_t strides[] = {0, s.rows * s.keys, s.keys, 1};
    if (mask != MaskUse::none) {
      p.mask.kind = mask == MaskUse::additive ? MaskKind::additive : MaskKind::boolean;
      p.mask.data = mask == MaskUse::additive ? static_cast<const void*>(bias.data())
                                              : static_cast<const void*>(boolean.data());
      std::copy(strides, strides + 4, p.mask.stride);
      if (mask == MaskUse::keys_only) p.mask.stride[1] = p.mask.stride[2] = 0;
    }
    return p;
  }

  // Outputs start as NaN: what a kernel forgets to write shows.
  Answer<T> run(AttentionParams<T> p, bool with_weights = true) const {
    const Shape& s = shape;
    Answer<T> answer;
    const T nan = std::numeric_limits<T>::quiet_NaN();
    const auto rows = static_cast<std::size_t>(s.batch * s.heads * s.rows);
    answer.out.assign(rows * static_cast<std::size_t>(s.columns), nan);
    answer.weights.assign(rows * static_cast<std::size_t>(s.keys), nan);
    answer.lse.assign(rows, nan);
    p.out = {.data = answer.out.data(),
             .shape = {s.batch, s.heads, s.rows, s.columns},
             .stride = {s.heads * s.rows * s.columns, s.rows * s.columns, s.columns, 1}};
    p.lse = {.data = answer.lse.data(),
             .shape = {s.batch, s.heads, s.rows},
             .stride = {s.heads * s.rows, s.rows, 1}};
    if (with_weights) {
      p.weights = {.data = answer.weights.data(),
                   .shape = {s.batch, s.heads, s.rows, s.keys},
                   .stride = {s.heads * s.rows * s.keys, s.rows * s.keys, s.keys, 1}};
    }
    const Kernels<T>& table = kernels_of<T>(kernels());
    run_attention<T>(p, mechanism == Mechanism::sdpa ? table.sdpa : table.additive,
                     static_cast<double>(s.depth));
    return answer;
  }
  Answer<T> run() const { return run(params()); }

 private:
  void add_row(Answer<double>& answer, std::vector<double>& weight, std::int64_t b, std::int64_t h,
               std::int64_t i) const {
    const auto keys = static_cast<std::size_t>(shape.keys);
    double top = -kInfinity;
    for (std::size_t j = 0; j < keys; ++j) {
      const auto at = static_cast<std::int64_t>(j);
      weight[j] = allowed(b, h, i, at) ? score(b, h, i, at) : -kInfinity;
      top = std::max(top, weight[j]);
    }
    double sum = 0;
    for (std::size_t j = 0; j < keys; ++j) {
      weight[j] = top == -kInfinity ? 0 : std::exp(weight[j] - top);
      sum += weight[j];
    }
    answer.lse.push_back(sum == 0 ? -kInfinity : top + std::log(sum));
    const std::int64_t g = h / (shape.heads / shape.groups);
    const T* values = value.data() + (b * shape.groups + g) * shape.keys * shape.columns;
    std::vector<double> out(static_cast<std::size_t>(shape.columns));
    for (std::size_t j = 0; j < keys; ++j) {
      weight[j] = sum == 0 ? 0 : weight[j] / sum;
      answer.weights.push_back(weight[j]);
      if (weight[j] == 0) continue;
      for (std::size_t e = 0; e < out.size(); ++e) {
        out[e] += weight[j] * static_cast<double>(values[j * out.size() + e]);
      }
    }
    answer.out.insert(answer.out.end(), out.begin(), out.end());
  }
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](T x, T y) {
           return x == y || (std::isnan(x) && std::isnan(y));
         });
}

// The largest error, or infinity where one is finite and the other is not.
template <class T>
double largest_error(const std::vector<T>& got, const std::vector<double>& want) {
  if (got.size() != want.size()) return kInfinity;
  double worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const auto x = static_cast<double>(got[i]);
    if (x == want[i]) continue;
    const double error = std::abs(x - want[i]);
    worst = std::isfinite(error) ? std::max(worst, error) : kInfinity;
  }
  return worst;
}

}  // namespace pyattn::testing

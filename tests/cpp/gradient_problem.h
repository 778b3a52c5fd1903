// A problem for the backward pass with its own memory, and its gradients by the definition, in
// double precision: row by row, over the keys that the row may see and no others.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/attention.h"
#include "core/backward.h"
#include "core/isa.h"
#include "philox.h"

namespace pyattn::testing {

struct Sizes {
  std::int64_t batch = 1, heads = 1, groups = 1, rows = 1, keys = 1, depth = 1, columns = 1;

  std::string text() const {
    return "B=" + std::to_string(batch) + " H=" + std::to_string(heads) +
           " G=" + std::to_string(groups) + " T=" + std::to_string(rows) +
           " S=" + std::to_string(keys) + " D=" + std::to_string(depth) +
           " E=" + std::to_string(columns);
  }
};

struct Variant {
  bool additive = false;  // then groups are heads
  MaskKind mask = MaskKind::none;
  bool mask_axes[4] = {true, true, true, true};  // false: broadcast along it
  std::int64_t left = kUnbounded;
  std::int64_t right = kUnbounded;
  double softcap = 0;
  double dropout = 0;
  double spread = 1;  // of queries and keys
  bool slopes = false, sinks = false, lengths = false, starts = false, grad_lse = false;
};

// The word that decides whether weight (b, h, i, j) is kept.
inline std::uint32_t random_word(std::uint64_t seed, std::int64_t b, std::int64_t h, std::int64_t i,
                                 std::int64_t j) {
  const Four counter{{static_cast<std::uint32_t>(j / 4), static_cast<std::uint32_t>(i),
                      static_cast<std::uint32_t>(h), static_cast<std::uint32_t>(b)}};
  return one_counter(counter, static_cast<std::uint32_t>(seed),
                     static_cast<std::uint32_t>(seed >> 32))
      .word[j % 4];
}

template <class T>
struct Gradients {
  std::vector<T> query, key, value, v, mask, mass;
};

template <class T>
View<const T, 4> dense(const std::vector<T>& data, std::int64_t a, std::int64_t b, std::int64_t c,
                       std::int64_t d) {
  return {.data = data.data(), .shape = {a, b, c, d}, .stride = {b * c * d, c * d, d, 1}};
}
template <class T>
View<T, 4> dense_output(std::vector<T>& data, std::int64_t a, std::int64_t b, std::int64_t c,
                        std::int64_t d) {
  data.reserve(1);  // an output without memory is one that is not wanted
  data.assign(static_cast<std::size_t>(a * b * c * d), std::numeric_limits<T>::quiet_NaN());
  return {.data = data.data(), .shape = {a, b, c, d}, .stride = {b * c * d, c * d, d, 1}};
}
// A view without its last axis, of length 1.
template <class T>
View<T, 3> drop_last(const View<T, 4>& view) {
  return {.data = view.data,
          .shape = {view.shape[0], view.shape[1], view.shape[2]},
          .stride = {view.stride[0], view.stride[1], view.stride[2]}};
}

template <class T>
struct GradientProblem {
  static constexpr std::uint64_t kSeed = 0x123456789abcdef0;

  Sizes n;
  Variant variant;
  T scale;
  std::vector<T> query, key, value, v, bias, slopes, sinks, grad_out, grad_lse, out, lse;
  std::vector<std::uint8_t> boolean;
  std::vector<std::int64_t> lengths, starts;
  std::int64_t mask_shape[4];

  GradientProblem(const Sizes& sizes, const Variant& given, std::mt19937& random)
      : n(sizes), variant(given), scale(static_cast<T>(0.8 / std::sqrt(sizes.depth))) {
    std::normal_distribution<double> normal;
    const auto fill = [&](std::vector<T>& data, std::int64_t count) {
      data.resize(static_cast<std::size_t>(count));
      for (T& x : data) x = static_cast<T>(normal(random));
    };
    fill(query, n.batch * n.heads * n.rows * n.depth);
    fill(key, n.batch * n.groups * n.keys * n.depth);
    for (auto* data : {&query, &key}) {
      for (T& x : *data) x *= static_cast<T>(given.spread);
    }
    fill(value, n.batch * n.groups * n.keys * n.columns);
    if (variant.additive) fill(v, n.heads * n.depth);
    fill(grad_out, n.batch * n.heads * n.rows * n.columns);
    fill(grad_lse, n.batch * n.heads * n.rows);
    fill(slopes, n.heads);
    fill(sinks, n.heads);
    const std::int64_t full[] = {n.batch, n.heads, n.rows, n.keys};
    for (int i = 0; i < 4; ++i) mask_shape[i] = given.mask_axes[i] ? full[i] : 1;
    fill(bias, mask_shape[0] * mask_shape[1] * mask_shape[2] * mask_shape[3]);
    for (T& x : bias) {
      boolean.push_back(random() % 3 != 0 ? 1 : 0);
      if (random() % 4 == 0) x = -std::numeric_limits<T>::infinity();
    }
    for (std::int64_t b = 0; b < n.batch; ++b) {
      lengths.push_back(static_cast<std::int64_t>(random() % static_cast<unsigned>(n.keys + 1)));
      starts.push_back(static_cast<std::int64_t>(random() % 40) - 20);
    }
  }

  std::size_t pair(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    const std::int64_t at[] = {b, h, i, j};
    std::int64_t index = 0;
    for (int axis = 0; axis < 4; ++axis) {
      index = index * mask_shape[axis] + (mask_shape[axis] == 1 ? 0 : at[axis]);
    }
    return static_cast<std::size_t>(index);
  }

  std::int64_t position(std::int64_t b, std::int64_t i) const {
    return i + (variant.starts ? starts[static_cast<std::size_t>(b)] : 0);
  }

  bool allowed(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    if (j > position(b, i) + variant.right || j < position(b, i) - variant.left) return false;
    if (variant.lengths && j >= lengths[static_cast<std::size_t>(b)]) return false;
    if (variant.mask == MaskKind::boolean) return boolean[pair(b, h, i, j)] != 0;
    if (variant.mask == MaskKind::additive) return std::isfinite(bias[pair(b, h, i, j)]);
    return true;
  }

  AttentionParams<T> forward() const {
    AttentionParams<T> p;
    p.query = dense(query, n.batch, n.heads, n.rows, n.depth);
    p.key = dense(key, n.batch, n.groups, n.keys, n.depth);
    p.value = dense(value, n.batch, n.groups, n.keys, n.columns);
    p.batch = n.batch;
    p.keys = n.keys;
    p.left = variant.left;
    p.right = variant.right;
    p.scale = scale;
    p.softcap = static_cast<T>(variant.softcap);
    if (variant.additive) p.v = v.data();
    if (variant.lengths) p.kv_lengths = lengths.data();
    if (variant.starts) p.query_starts = starts.data();
    if (variant.slopes) p.slopes = slopes.data();
    if (variant.sinks) p.sinks = sinks.data();
    if (variant.dropout > 0) {
      p.dropout.on = true;
      p.dropout.seed = kSeed;
      p.dropout.threshold = static_cast<std::uint32_t>(variant.dropout * 4294967296.0);
      p.dropout.factor = static_cast<T>(1 / (1 - variant.dropout));
    }
    p.mask.kind = variant.mask;
    p.mask.data = variant.mask == MaskKind::boolean ? static_cast<const void*>(boolean.data())
                                                    : static_cast<const void*>(bias.data());
    std::int64_t stride = 1;
    for (int axis = 3; axis >= 0; --axis) {
      p.mask.stride[axis] = mask_shape[axis] == 1 ? 0 : stride;
      stride *= mask_shape[axis];
    }
    return p;
  }

  void run_forward() {
    AttentionParams<T> p = forward();
    p.out = dense_output(out, n.batch, n.heads, n.rows, n.columns);
    p.lse = drop_last(dense_output(lse, n.batch, n.heads, n.rows, 1));
    const AttentionKernels<T>& table = attention_kernels_of<T>(kernels());
    run_attention<T>(p, variant.additive ? table.additive : table.sdpa, table.merge,
                     static_cast<double>(n.depth));
  }

  // After run_forward.
  BackwardParams<T> backward() const {
    BackwardParams<T> p{.forward = forward()};
    p.forward.given_lse = drop_last(dense(lse, n.batch, n.heads, n.rows, 1));
    p.out = dense(out, n.batch, n.heads, n.rows, n.columns);
    p.grad_out = dense(grad_out, n.batch, n.heads, n.rows, n.columns);
    if (variant.grad_lse) p.grad_lse = drop_last(dense(grad_lse, n.batch, n.heads, n.rows, 1));
    return p;
  }

  // Outputs start as NaN: what a kernel forgets to write shows.
  Gradients<T> run(BackwardParams<T> p) const {
    Gradients<T> found;
    p.grad_query = dense_output(found.query, n.batch, n.heads, n.rows, n.depth);
    p.grad_key = dense_output(found.key, n.batch, n.groups, n.keys, n.depth);
    p.grad_value = dense_output(found.value, n.batch, n.groups, n.keys, n.columns);
    if (variant.mask == MaskKind::additive) {
      p.grad_mask =
          dense_output(found.mask, mask_shape[0], mask_shape[1], mask_shape[2], mask_shape[3]);
    }
    const AttentionKernels<T>& table = attention_kernels_of<T>(kernels());
    if (variant.additive) {
      found.v.assign(v.size() + 1, std::numeric_limits<T>::quiet_NaN());
      p.grad_v = found.v.data();
      run_backward<T>(p, table.additive_backward);
      CHECK(std::isnan(found.v.back()));
      found.v.pop_back();
      return found;
    }
    run_backward<T>(p, table.backward);
    p.forward.dropout.on = false;
    p.column_mass = drop_last(dense_output(found.mass, n.batch, n.heads, n.keys, 1));
    run_column_mass<T>(p, table.backward);
    return found;
  }
  Gradients<T> run() {
    run_forward();
    return run(backward());
  }

  Gradients<double> definition() const {
    Gradients<double> want;
    want.query.resize(query.size());
    want.key.resize(key.size());
    want.value.resize(value.size());
    if (variant.mask == MaskKind::additive) want.mask.resize(bias.size());
    want.v.resize(v.size());
    if (!variant.additive) want.mass.resize(static_cast<std::size_t>(n.batch * n.heads * n.keys));
    for (std::int64_t b = 0; b < n.batch; ++b) {
      for (std::int64_t h = 0; h < n.heads; ++h) {
        for (std::int64_t i = 0; i < n.rows; ++i) add_row(want, b, h, i);
      }
    }
    return want;
  }

 private:
  static double dot(const T* a, const T* b, std::int64_t count) {
    double sum = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    }
    return sum;
  }

  double added(const T* a, const T* b, const T* direction) const {
    double sum = 0;
    for (std::int64_t i = 0; i < n.depth; ++i) {
      sum += static_cast<double>(direction[i]) *
             std::tanh(static_cast<double>(a[i]) + static_cast<double>(b[i]));
    }
    return sum;
  }

  struct Term {
    std::int64_t key;
    double score, slope, kept, weight, grad;
  };

  void add_row(Gradients<double>& want, std::int64_t b, std::int64_t h, std::int64_t i) const {
    const std::int64_t row = (b * n.heads + h) * n.rows + i;
    const std::int64_t first = (b * n.groups + h / (n.heads / n.groups)) * n.keys;
    const T* q = query.data() + row * n.depth;
    const T* g = grad_out.data() + row * n.columns;
    std::vector<Term> terms;
    double top = variant.sinks ? static_cast<double>(sinks[static_cast<std::size_t>(h)])
                               : -std::numeric_limits<double>::infinity();
    for (std::int64_t j = 0; j < n.keys; ++j) {
      if (!allowed(b, h, i, j)) continue;
      Term term{.key = j, .slope = 1, .kept = 1};
      const T* k = key.data() + (first + j) * n.depth;
      term.score = variant.additive ? added(q, k, v.data() + h * n.depth)
                                    : static_cast<double>(scale) * dot(q, k, n.depth);
      if (variant.softcap > 0) {
        const double t = std::tanh(term.score / variant.softcap);
        term.score = variant.softcap * t;
        term.slope = 1 - t * t;
      }
      if (variant.slopes) {
        term.score -= static_cast<double>(slopes[static_cast<std::size_t>(h)]) *
                      std::abs(static_cast<double>(position(b, i) - j));
      }
      if (variant.mask == MaskKind::additive) {
        term.score += static_cast<double>(bias[pair(b, h, i, j)]);
      }
      if (variant.dropout > 0) {
        const bool keep = static_cast<double>(random_word(kSeed, b, h, i, j)) >=
                          std::floor(variant.dropout * 4294967296.0);
        term.kept = keep ? 1 / (1 - variant.dropout) : 0;
      }
      top = std::max(top, term.score);
      terms.push_back(term);
    }
    if (terms.empty()) return;
    double sum =
        variant.sinks ? std::exp(static_cast<double>(sinks[static_cast<std::size_t>(h)]) - top) : 0;
    for (const Term& term : terms) sum += std::exp(term.score - top);
    double mean =
        variant.grad_lse ? -static_cast<double>(grad_lse[static_cast<std::size_t>(row)]) : 0;
    for (Term& term : terms) {
      term.weight = std::exp(term.score - top) / sum;
      term.grad = term.kept * dot(g, value.data() + (first + term.key) * n.columns, n.columns);
      mean += term.weight * term.grad;
    }
    for (const Term& term : terms) add_term(want, b, h, i, first, term, mean);
  }

  void add_term(Gradients<double>& want, std::int64_t b, std::int64_t h, std::int64_t i,
                std::int64_t first, const Term& term, double mean) const {
    const std::int64_t row = (b * n.heads + h) * n.rows + i;
    const std::int64_t key_row = first + term.key;
    const double ds = term.weight * (term.grad - mean);
    const double slope = static_cast<double>(scale) * ds * term.slope;
    const auto add = [](std::vector<double>& to, std::int64_t at, double factor,
                        const std::vector<T>& from, std::int64_t from_row, std::int64_t count) {
      for (std::int64_t d = 0; d < count; ++d) {
        to[static_cast<std::size_t>(at * count + d)] +=
            factor * static_cast<double>(from[static_cast<std::size_t>(from_row * count + d)]);
      }
    };
    add(want.value, key_row, term.weight * term.kept, grad_out, row, n.columns);
    if (!want.mask.empty()) want.mask[pair(b, h, i, term.key)] += ds;
    if (variant.additive) {
      add_tanh(want, row, key_row, h, ds * term.slope);
      return;
    }
    add(want.query, row, slope, key, key_row, n.depth);
    add(want.key, key_row, slope, query, row, n.depth);
    want.mass[static_cast<std::size_t>((b * n.heads + h) * n.keys + term.key)] += term.weight;
  }

  void add_tanh(Gradients<double>& want, std::int64_t row, std::int64_t key_row, std::int64_t h,
                double ds) const {
    for (std::int64_t a = 0; a < n.depth; ++a) {
      const auto of_query = static_cast<std::size_t>(row * n.depth + a);
      const auto of_key = static_cast<std::size_t>(key_row * n.depth + a);
      const auto of_v = static_cast<std::size_t>(h * n.depth + a);
      const double t =
          std::tanh(static_cast<double>(query[of_query]) + static_cast<double>(key[of_key]));
      const double inner = ds * static_cast<double>(v[of_v]) * (1 - t * t);
      want.query[of_query] += inner;
      want.key[of_key] += inner;
      want.v[of_v] += ds * t;
    }
  }
};

}  // namespace pyattn::testing

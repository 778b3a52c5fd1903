// Attention by its definition, in double precision, and how far an answer is from it.
#pragma once

#include "attention_answer.h"
#include "philox.h"

namespace pyattn::testing {

template <class X>
class Definition {
 public:
  explicit Definition(const Problem<X>& problem)
      : problem_(problem),
        query_(numbers(problem.query)),
        key_(numbers(problem.key)),
        value_(numbers(problem.value)),
        answer_(problem.shape, problem.row_count(), {.second = true, .scores = true}),
        sizes_(answer_.out) {
    for (std::int64_t b = 0; b < problem.shape.batch; ++b) {
      for (std::int64_t h = 0; h < problem.shape.heads; ++h) {
        for (std::int64_t i = 0; i < problem.row_count(); ++i) add_row(b, h, i);
      }
    }
  }

  const Answer<double>& answer() const { return answer_; }
  // The sum of the |p v| of each number of the output.
  const Array<double>& sizes() const { return sizes_; }

 private:
  double score(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    const Problem<X>& p = problem_;
    const double* q = query_.row(b, h, p.source(i));
    const double* k = key_.row(b, p.group(h), j);
    double sum = 0;
    for (std::int64_t d = 0; d < p.shape.depth; ++d) {
      sum += p.mechanism == Mechanism::sdpa
                 ? number(p.scale) * q[d] * k[d]
                 : number(p.v.data()[h * p.shape.depth + d]) * std::tanh(q[d] + k[d]);
    }
    if (p.variant.softcap != 0) sum = p.variant.softcap * std::tanh(sum / p.variant.softcap);
    if (p.variant.slopes) {
      const auto distance = static_cast<double>(std::abs(p.position(b, i) - j));
      sum -= number(p.slopes.data()[h]) * distance;
    }
    if (p.variant.mask == MaskUse::additive) sum += number(p.bias.at(0, h, p.source(i), j));
    return sum;
  }

  bool kept(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    const auto low = [](auto x) { return static_cast<std::uint32_t>(x); };
    const Four words = one_counter({{low(j / 4), low(problem_.source(i)), low(h), low(b)}},
                                   low(Problem<X>::kSeed), low(Problem<X>::kSeed >> 32));
    return words.word[j % 4] >= problem_.threshold();
  }

  void add_row(std::int64_t b, std::int64_t h, std::int64_t i) {
    const Problem<X>& p = problem_;
    double* score_row = answer_.scores.row(b, h, i);
    double* weights = answer_.weights.row(b, h, i);
    double top = -kInfinity;
    for (std::int64_t j = 0; j < p.shape.keys; ++j) {
      score_row[j] = p.allowed(b, h, i, j) ? score(b, h, i, j) : -kInfinity;
      top = std::max(top, score_row[j]);
    }
    answer_.max.at(0, b, h, i) = top;
    const double sink = p.variant.sinks ? number(p.sinks.data()[h]) : -kInfinity;
    top = std::max(top, sink);
    double sum = top == -kInfinity ? 0 : std::exp(sink - top);
    for (std::int64_t j = 0; j < p.shape.keys; ++j) {
      weights[j] = score_row[j] == -kInfinity ? 0 : std::exp(score_row[j] - top);
      sum += weights[j];
    }
    answer_.lse.at(0, b, h, i) = top + std::log(sum);
    double entropy = 0;
    for (std::int64_t j = 0; j < p.shape.keys; ++j) {
      if (weights[j] == 0) continue;
      weights[j] /= sum;
      entropy -= weights[j] * std::log(weights[j]);
    }
    answer_.entropy.at(0, b, h, i) = entropy;
    add_values(b, h, i);
  }

  void add_values(std::int64_t b, std::int64_t h, std::int64_t i) {
    const Problem<X>& p = problem_;
    double* out = answer_.out.row(b, h, i);
    double* size = sizes_.row(b, h, i);
    std::fill_n(out, p.shape.columns, 0.0);
    std::fill_n(size, p.shape.columns, 0.0);
    for (std::int64_t j = 0; j < p.shape.keys; ++j) {
      double weight = answer_.weights.at(b, h, i, j);
      if (weight == 0) continue;
      if (p.variant.dropout > 0) weight *= kept(b, h, i, j) ? 1 / (1 - p.variant.dropout) : 0;
      const double* row = value_.row(b, p.group(h), j);
      for (std::int64_t e = 0; e < p.shape.columns; ++e) {
        out[e] += weight * row[e];
        size[e] += std::abs(weight * row[e]);
      }
    }
  }

  const Problem<X>& problem_;
  Array<double> query_, key_, value_;
  Answer<double> answer_;
  Array<double> sizes_;
};

// Half a unit in the last place, relative.
template <class X>
inline constexpr double kRounding = std::numeric_limits<X>::epsilon() / 2;
template <>
inline constexpr double kRounding<Half> = 0x1p-11;
template <>
inline constexpr double kRounding<BFloat16> = 0x1p-8;

// The largest error beyond `relative` of the number itself and of its entry in `sizes`; infinity
// where one of the two is finite and the other is not.
template <class X>
double largest_error(const Array<X>& got, const Array<double>& want, double relative,
                     const Array<double>* sizes = nullptr) {
  double worst = 0;
  const std::int64_t rows = got.shape[0] * got.shape[1] * got.shape[2];
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t d = 0; d < got.shape[3]; ++d) {
      const double x = number(got.data.data()[r * got.stride[2] + d]);
      const double y = want.data.data()[r * want.stride[2] + d];
      if (x == y) continue;
      double error = std::abs(x - y) - relative * std::abs(y);
      if (sizes != nullptr) error -= relative * sizes->data.data()[r * sizes->stride[2] + d];
      worst = std::isfinite(error) ? std::max(worst, error) : kInfinity;
    }
  }
  return worst;
}

// The ranks follow from the weights of the same call, which may be rounded to a storage type.
template <class X>
bool ranks_fit(const Problem<X>& problem, const Answer<X>& got, std::int64_t b, std::int64_t h,
               std::int64_t i) {
  using T = Compute<X>;
  const std::int64_t top_k = got.top_weights.shape[3];
  const T* weight = got.top_weights.row(b, h, i);
  const std::int64_t* index = got.top_indices.row(b, h, i);
  std::vector<bool> chosen(static_cast<std::size_t>(problem.shape.keys));
  std::int64_t missing = top_k;
  for (std::int64_t k = 0; k < top_k && index[k] >= 0; ++k, --missing) {
    const std::int64_t j = index[k];
    if (j >= problem.shape.keys || !problem.allowed(b, h, i, j)) return false;
    if (number(got.weights.at(b, h, i, j)) != number(stored<X>(number(weight[k])))) return false;
    const bool falls =
        k == 0 || weight[k] < weight[k - 1] || (weight[k] == weight[k - 1] && j > index[k - 1]);
    if (!falls) return false;
    chosen[static_cast<std::size_t>(j)] = true;
  }
  for (std::int64_t k = top_k - missing; k < top_k; ++k) {
    if (index[k] != -1 || weight[k] != 0) return false;
  }
  for (std::int64_t j = 0; j < problem.shape.keys; ++j) {
    if (chosen[static_cast<std::size_t>(j)] || !problem.allowed(b, h, i, j)) continue;
    if (missing > 0) return false;
    const double other = number(got.weights.at(b, h, i, j));
    if (other > number(stored<X>(number(weight[top_k - 1])))) return false;
    // Without rounding in between, the first of equals is chosen.
    if (std::is_same_v<X, T> && other == number(weight[top_k - 1]) && j < index[top_k - 1]) {
      return false;
    }
  }
  return true;
}

template <class X>
bool ranks_fit(const Problem<X>& problem, const Answer<X>& got) {
  for (std::int64_t b = 0; b < problem.shape.batch; ++b) {
    for (std::int64_t h = 0; h < problem.shape.heads; ++h) {
      for (std::int64_t i = 0; i < problem.row_count(); ++i) {
        if (!ranks_fit(problem, got, b, h, i)) return false;
      }
    }
  }
  return true;
}

// Every output of run(wanted). `rounded`: each weight is rounded before it is multiplied.
template <class X, class Run>
void compare(const Problem<X>& problem, const Definition<X>& definition, double tolerance,
             bool rounded, Run run_for) {
  const Answer<double>& want = definition.answer();
  const double rounding = std::is_same_v<X, Compute<X>> ? 0 : kRounding<X>;
  const double unit = 8 * kRounding<Compute<X>>;
  const Array<double>* sizes = rounded ? &definition.sizes() : nullptr;
  const Answer<X> got = run_for(kAll);
  CHECK(largest_error(got.out, want.out, rounding, sizes) < tolerance);
  CHECK(largest_error(got.weights, want.weights, rounding) < tolerance);
  CHECK(largest_error(got.lse, want.lse, unit) < 4 * tolerance);
  CHECK(largest_error(got.max, want.max, unit) < 4 * tolerance);
  CHECK(largest_error(got.entropy, want.entropy, unit) < 4 * tolerance);
  CHECK(ranks_fit(problem, got));
  const Answer<X> scores = run_for(kScores);
  CHECK(largest_error(scores.scores, want.scores, unit + rounding) < 4 * tolerance);
  const Answer<X> alone = run_for(kOut);
  CHECK(same_bits(alone.out, got.out) && same_bits(alone.lse, got.lse) &&
        same_bits(alone.max, got.max));
}

// The same on every instruction set.
template <class X>
void compare(const Problem<X>& problem, double tolerance) {
  const Definition<X> definition(problem);
  const std::string context = check::context;
  for_each_isa([&](const std::string& isa) {
    check::context = isa + " " + context;
    const bool pairs = isa == "avx512bf16" || isa == "avx512amx";
    compare(problem, definition, tolerance, std::is_same_v<X, BFloat16> && pairs,
            [&](const Wanted& wanted) { return run(problem, wanted); });
  });
  check::context = context;
}

}  // namespace pyattn::testing

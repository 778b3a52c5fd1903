// Random problems for the backward pass, and what its gradients are compared by.
#pragma once

#include <cstring>

#include "check.h"
#include "each_isa.h"
#include "gradient_problem.h"

namespace pyattn::testing {

// Edges of registers, panels, blocks and tiles.
inline constexpr std::int64_t kEdges[] = {1,  2,  3,  7,  8,  9,  15,  16,  17,
                                          31, 32, 33, 63, 64, 65, 127, 128, 129};

inline std::int64_t pick(std::mt19937& random) { return kEdges[random() % std::size(kEdges)]; }
inline bool toss(std::mt19937& random, unsigned of) { return random() % of == 0; }

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <class T>
bool same_bits(const Gradients<T>& a, const Gradients<T>& b) {
  return same_bits(a.query, b.query) && same_bits(a.key, b.key) && same_bits(a.value, b.value) &&
         same_bits(a.v, b.v) && same_bits(a.mask, b.mask) && same_bits(a.mass, b.mass);
}

// Relative to the largest number, or to 1.
template <class T>
double error(const std::vector<T>& got, const std::vector<double>& want) {
  double worst = got.size() == want.size() ? 0 : std::numeric_limits<double>::infinity();
  double largest = 1;
  for (std::size_t i = 0; i < got.size() && i < want.size(); ++i) {
    const double off = std::abs(static_cast<double>(got[i]) - want[i]);
    worst = std::isfinite(off) ? std::max(worst, off) : std::numeric_limits<double>::infinity();
    largest = std::max(largest, std::abs(want[i]));
  }
  return worst / largest;
}

template <class T>
void compare(GradientProblem<T>& problem, double tolerance) {
  const Gradients<double> want = problem.definition();
  const Gradients<T> got = problem.run();
  CHECK(error(got.query, want.query) < tolerance);
  CHECK(error(got.key, want.key) < tolerance);
  CHECK(error(got.value, want.value) < tolerance);
  CHECK(error(got.v, want.v) < tolerance);
  CHECK(error(got.mask, want.mask) < tolerance);
  CHECK(error(got.mass, want.mass) < tolerance);
}

inline Variant random_variant(bool additive, std::mt19937& random) {
  Variant variant{.additive = additive};
  constexpr double kSpreads[] = {1, 5, 40};  // on both sides of the range of the factored form
  if (additive) variant.spread = kSpreads[random() % 3];
  variant.mask = static_cast<MaskKind>(random() % 3);
  for (bool& axis : variant.mask_axes) axis = !toss(random, 3);
  constexpr std::int64_t kSides[] = {0, 5, 70};
  if (toss(random, 2)) variant.right = kSides[random() % 3];
  if (toss(random, 3)) variant.left = kSides[random() % 3];
  if (toss(random, 3)) variant.softcap = 1.5;
  if (toss(random, 3)) variant.dropout = 0.3;
  variant.slopes = toss(random, 3);
  variant.sinks = toss(random, 3);
  variant.lengths = toss(random, 3);
  variant.starts = toss(random, 3);
  variant.grad_lse = toss(random, 2);
  return variant;
}

inline Sizes random_sizes(bool additive, std::mt19937& random) {
  Sizes sizes;
  sizes.batch = 1 + static_cast<std::int64_t>(random() % 2);
  sizes.groups = 1 + static_cast<std::int64_t>(random() % 2);
  sizes.heads = sizes.groups * (additive ? 1 : 1 + static_cast<std::int64_t>(random() % 3));
  sizes.rows = pick(random);
  sizes.keys = pick(random);
  sizes.depth = pick(random);
  sizes.columns = pick(random);
  return sizes;
}

}  // namespace pyattn::testing

// A problem whose queries and keys the kernel turns as it loads them, and the same with both turned
// before: by rotary_embedding in the type of the arithmetic, rounded to the storage type.
#pragma once

#include "attention_answer.h"
#include "core/rotary.h"

namespace pyattn::testing {

template <class X>
struct TurnedProblem {
  using T = Compute<X>;

  Problem<X> given;
  Problem<X> turned;
  bool interleaved;
  std::int64_t pairs;
  std::int64_t positions = 0;
  std::vector<T> cosine, sine;            // (positions, pairs)
  std::vector<T> wide_cosine, wide_sine;  // the same, a number for each of a row

  TurnedProblem(const Problem<X>& problem, std::int64_t pairs_, bool interleaved_)
      : given(problem), turned(problem), interleaved(interleaved_), pairs(pairs_) {
    const Shape& s = given.shape;
    std::vector<std::int64_t> rows, keys;
    for (std::int64_t b = 0; b < s.batch; ++b) {
      for (std::int64_t i = 0; i < s.rows; ++i) rows.push_back(given.position(b, i));
      for (std::int64_t j = 0; j < s.keys; ++j) keys.push_back(j);
    }
    positions = std::max(s.keys, *std::max_element(rows.begin(), rows.end()) + 1);
    for (std::int64_t p = 0; p < positions; ++p) {
      for (std::int64_t k = 0; k < pairs; ++k) {
        const double angle = static_cast<double>(p) * std::pow(100.0, -static_cast<double>(k) / 8);
        for (int i = 0; i < (interleaved ? 2 : 1); ++i) {
          wide_cosine.push_back(static_cast<T>(std::cos(angle)));
          wide_sine.push_back(
              static_cast<T>(interleaved && i == 0 ? -std::sin(angle) : std::sin(angle)));
        }
        cosine.push_back(static_cast<T>(std::cos(angle)));
        sine.push_back(static_cast<T>(std::sin(angle)));
      }
    }
    turn(rows, turned.query);
    turn(keys, turned.key);
  }

  AttentionParams<X> params(bool keys) const {
    AttentionParams<X> p = given.params();
    if (!keys) p.key = turned.key.view();
    p.turn = {.cosine = wide_cosine.data(),
              .sine = wide_sine.data(),
              .stride = interleaved ? 2 * pairs : pairs,
              .pairs = pairs,
              .interleaved = interleaved,
              .keys = keys};
    return p;
  }

 private:
  void turn(const std::vector<std::int64_t>& rows, Array<X>& array) const {
    const auto& s = array.shape;
    Array<T> wide(s[0], s[1], s[2], s[3], T(0), T(0));
    for (std::size_t i = 0; i < array.data.size(); ++i) {
      wide.data[i] = static_cast<T>(number(array.data[i]));
    }
    Array<T> result = wide;
    const auto table = [&](const std::vector<T>& numbers) {
      return View<const T, 3>{
          .data = numbers.data(), .shape = {s[0], positions, pairs}, .stride = {0, pairs, 1}};
    };
    run_rotary<T>({.input = static_cast<const Array<T>&>(wide).view(),
                   .output = result.view(),
                   .cosine = table(cosine),
                   .sine = table(sine),
                   .positions = rows.data(),
                   .interleaved = interleaved});
    for (std::int64_t r = 0; r < s[0] * s[1] * s[2]; ++r) {
      for (std::int64_t d = 0; d < s[3]; ++d) {
        const std::int64_t at = r * array.stride[2] + d;
        array.data.data()[at] = stored<X>(number(result.data.data()[at]));
      }
    }
  }
};

}  // namespace pyattn::testing

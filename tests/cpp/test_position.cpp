// Predicted positions on every instruction set, against plain loops in double.
#include "core/position.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "sample.h"

namespace pyattn {
namespace {

using testing::sample;

constexpr std::int64_t kBatch = 2;
constexpr std::int64_t kKeys = 1000;

template <class T>
struct Problem {
  std::int64_t rows;
  std::int64_t units;
  std::int64_t depth;
  std::int64_t row = depth + 3;  // from state to state
  std::vector<T> state = sample<T>(kBatch * rows * row, 1);
  std::vector<T> weight = sample<T>(units * depth, 2, 1 / std::sqrt(1.0 + double(depth)));
  std::vector<T> v = sample<T>(units, 3);
  std::vector<std::int64_t> lengths = {kKeys, 37};

  PositionParams<T> params(T* centre) const {
    return {.state = {.data = state.data(),
                      .shape = {kBatch, rows, depth},
                      .stride = {rows * row, row, 1}},
            .weight = {.data = weight.data(), .shape = {units, depth}, .stride = {depth, 1}},
            .v = v.data(),
            .keys = kKeys,
            .kv_lengths = lengths.data(),
            .centre = {.data = centre, .shape = {kBatch, rows}, .stride = {rows, 1}}};
  }

  std::vector<T> found() const {
    std::vector<T> centre(static_cast<std::size_t>(kBatch * rows),
                          std::numeric_limits<T>::quiet_NaN());
    run_positions<T>(params(centre.data()));
    return centre;
  }

  double exact(std::int64_t b, std::int64_t t) const {
    double score = 0;
    for (std::int64_t a = 0; a < units; ++a) {
      double sum = 0;
      for (std::int64_t d = 0; d < depth; ++d) {
        sum += static_cast<double>(weight[static_cast<std::size_t>(a * depth + d)]) *
               static_cast<double>(state[static_cast<std::size_t>((b * rows + t) * row + d)]);
      }
      score += static_cast<double>(v[static_cast<std::size_t>(a)]) * std::tanh(sum);
    }
    return static_cast<double>(lengths[static_cast<std::size_t>(b)]) / (1 + std::exp(-score));
  }

  // As a share of the number of keys.
  double error() const {
    const std::vector<T> centre = found();
    double worst = 0;
    for (std::int64_t b = 0; b < kBatch; ++b) {
      for (std::int64_t t = 0; t < rows; ++t) {
        const auto at = static_cast<std::size_t>(b * rows + t);
        const double error = std::abs(static_cast<double>(centre[at]) - exact(b, t)) /
                             static_cast<double>(lengths[static_cast<std::size_t>(b)]);
        worst = error <= worst ? worst : error;
      }
    }
    return worst;
  }
};

TEST(the_paper_s_formula) {
  const int before = threads();
  set_threads(3);
  for (const std::string& isa : available_isas()) {
    set_isa(isa);
    for (const std::int64_t rows : {1, 2, 15, 47, 48, 49, 100}) {
      for (const std::int64_t units : {1, 31, 64, 65}) {
        for (const std::int64_t depth : {1, 17, 64, 600}) {
          check::context = isa + " " + std::to_string(rows) + " " + std::to_string(units) + " " +
                           std::to_string(depth);
          CHECK(Problem<float>(rows, units, depth).error() < 3e-6);
          CHECK(Problem<double>(rows, units, depth).error() < 1e-14);
        }
      }
    }
  }
  set_isa(available_isas().front());
  set_threads(before);
}

TEST(a_state_alone_has_the_same_bits) {
  for (const std::string& isa : available_isas()) {
    set_isa(isa);
    check::context = isa;
    const Problem<float> problem(60, 70, 33);
    const std::vector<float> all = problem.found();
    for (std::int64_t t = 0; t < problem.rows; t += 7) {
      float centre = 0;
      PositionParams<float> p = problem.params(&centre);
      p.state.data += t * problem.row;
      p.state.shape[0] = p.state.shape[1] = 1;
      run_positions(p);
      CHECK(centre == all[static_cast<std::size_t>(t)]);
    }
  }
  set_isa(available_isas().front());
}

TEST(scores_beyond_any_position_and_states_that_are_not_numbers) {
  for (const std::string& isa : available_isas()) {
    set_isa(isa);
    check::context = isa;
    Problem<float> problem(5, 2, 1);
    problem.weight = {100, 100};
    problem.v = {1e30F, 1e30F};
    const auto row = static_cast<std::size_t>(problem.row);
    const float states[] = {1, -1, 0, std::numeric_limits<float>::quiet_NaN(), 1};
    for (std::size_t t = 0; t < 5; ++t) problem.state[t * row] = states[t];
    const std::vector<float> found = problem.found();
    CHECK(found[0] == kKeys && found[4] == kKeys);
    CHECK(found[1] >= 0 && found[1] < 1e-30F);
    CHECK(found[2] == kKeys / 2);
    CHECK(std::isnan(found[3]));
  }
  set_isa(available_isas().front());
}

}  // namespace
}  // namespace pyattn

TEST_MAIN

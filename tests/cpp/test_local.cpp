// Attention within windows on every instruction set, against the formula in double, and its
// gradients against differences; rows that are nowhere, at both ends, or not a number.
#include "core/local.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "local_problem.h"

namespace pyattn {
namespace {

using namespace testing;

bool near(double found, double exact) {
  return found == exact || std::abs(found - exact) <= 1e-11 * (1 + std::abs(exact));
}

void check_forward(Problem& problem) {
  Result out(problem.batch, problem.rows, problem.columns);
  Result lse(problem.batch, problem.rows, 1);
  Result weights(problem.batch, problem.rows, problem.keys);
  Result window(problem.batch, problem.rows, 2 * problem.half_width + 1);
  LocalParams<double> p = problem.params();
  p.out = out.view;
  p.lse = rows_of(lse);
  p.weights = weights.view;
  p.window_weights = window.view;
  run_local(p);
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    for (std::int64_t t = 0; t < problem.rows; ++t) {
      const std::vector<double> w = problem.weights(b, t);
      double sum = 0;
      double in_window = 0;
      for (std::int64_t s = 0; s < problem.keys; ++s) {
        CHECK(near(weights.at(b, t, s), w[static_cast<std::size_t>(s)]));
        sum += weights.at(b, t, s);
      }
      for (std::int64_t j = 0; j <= 2 * problem.half_width; ++j) in_window += window.at(b, t, j);
      CHECK(near(in_window, sum));
      CHECK(near(lse.at(b, t, 0), w.back()));
      for (std::int64_t e = 0; e < problem.columns; ++e) {
        double context = 0;
        for (std::int64_t s = 0; s < problem.keys; ++s) {
          context += w[static_cast<std::size_t>(s)] * problem.value.at(b, s, e);
        }
        CHECK(near(out.at(b, t, e), context));
      }
    }
  }
}

struct Gradients {
  Result query;
  Result key;
  Result value;
  Result centre;
  std::vector<double> v;

  explicit Gradients(const Problem& p)
      : query(p.batch, p.rows, p.depth),
        key(p.batch, p.keys, p.depth),
        value(p.batch, p.keys, p.columns),
        centre(p.batch, p.rows, 1),
        v(static_cast<std::size_t>(p.depth), kNan) {}
};

void run_gradients(const Problem& problem, Gradients& found) {
  const double out = 0.3;
  const double lse = 0.7;
  LocalGradientParams<double> p{
      .forward = problem.params(),
      .grad_out = {.data = &out, .shape = {problem.batch, problem.rows, problem.columns}},
      .grad_lse = {.data = &lse, .shape = {problem.batch, problem.rows}},
      .grad_query = found.query.view,
      .grad_key = found.key.view,
      .grad_value = found.value.view,
      .grad_centre = rows_of(found.centre),
      .grad_v = problem.direction ? found.v.data() : nullptr,
  };
  run_local_gradient(p);
}

double difference(Problem& problem, double& x) {
  const double before = x;
  const double step = 1e-6;
  x = before + step;
  const long double above = problem.loss();
  x = before - step;
  const long double below = problem.loss();
  x = before;
  return static_cast<double>(above - below) / (2 * step);
}

bool close(double found, double estimate) {
  return std::abs(found - estimate) <= 1e-6 * (1 + std::abs(estimate));
}

void check_gradients(Problem& problem) {
  Gradients found(problem);
  run_gradients(problem, found);
  const auto check_array = [&](Array& array, const Result& result) {
    for (std::int64_t b = 0; b < problem.batch; ++b) {
      for (std::int64_t n = 0; n < array.shape[1]; n += 3) {
        const std::int64_t d = (5 * n + b) % array.shape[2];
        CHECK(close(result.at(b, n, d), difference(problem, array.at(b, n, d))));
      }
    }
  };
  check_array(problem.query, found.query);
  check_array(problem.key, found.key);
  check_array(problem.value, found.value);
  for (std::size_t i = 4; i < problem.centre.size(); ++i) {  // those before are at an edge
    if (std::abs(problem.centre[i] - std::round(problem.centre[i])) < 1e-3) continue;
    CHECK(close(found.centre.data[i], difference(problem, problem.centre[i])));
  }
  for (std::size_t a = 0; problem.direction && a < found.v.size(); a += 7) {
    CHECK(close(found.v[a], difference(problem, problem.v[a])));
  }
}

template <class Body>
void for_each_problem(Body&& body) {
  for (const std::string& isa : available_isas()) {
    set_isa(isa);
    for (int kind = 0; kind < 8; ++kind) {
      for (const std::int64_t size : {1, 5, 16, 23}) {
        check::context = isa + ", kind " + std::to_string(kind) + ", size " + std::to_string(size);
        Problem problem{.rows = size,
                        .keys = size == 5 ? 3 : 40,
                        .depth = size + 2,
                        .columns = 2 * size - 1,
                        .half_width = size / 2 + 1,
                        .direction = kind % 2 != 0,
                        .renormalize = kind / 2 % 2 != 0,
                        .plain = kind / 4 != 0};
        problem.draw();
        body(problem);
      }
    }
  }
}

TEST(the_paper_s_formula) { for_each_problem(check_forward); }

// Rows of a task that copy their keys, and others that are too far apart, of any number.
TEST(rows_near_each_other_and_far_apart) {
  for (const std::string& isa : available_isas()) {
    set_isa(isa);
    for (const std::int64_t rows : {31, 32, 33, 67}) {
      for (const std::int64_t keys : {1, 4, 60, 63, 66, 900}) {
        for (const bool plain : {false, true}) {
          check::context = isa + ", rows " + std::to_string(rows) + ", keys " +
                           std::to_string(keys) + (plain ? ", plain" : "");
          Problem problem{.rows = rows,
                          .keys = keys,
                          .depth = 19,
                          .columns = 70,
                          .half_width = 4,
                          .direction = false,
                          .renormalize = false,
                          .plain = plain};
          problem.draw();
          check_forward(problem);
        }
      }
    }
  }
}

TEST(keys_between_the_windows_do_not_count) {
  for (const std::string& isa : available_isas()) {
    set_isa(isa);
    check::context = isa;
    Problem problem{.rows = 32,
                    .keys = 40,
                    .depth = 17,
                    .columns = 5,
                    .half_width = 2,
                    .direction = false,
                    .renormalize = false,
                    .plain = true};
    problem.lengths = {40, 40};
    for (std::size_t i = 0; i < problem.centre.size(); ++i) problem.centre[i] = i % 2 ? 5.5 : 30;
    for (std::int64_t b = 0; b < 2; ++b) {
      for (std::int64_t s = 8; s < 28; ++s) {
        for (std::int64_t d = 0; d < 17; ++d) problem.key.at(b, s, d) = kNan;
        for (std::int64_t e = 0; e < 5; ++e) problem.value.at(b, s, e) = HUGE_VAL;
      }
    }
    Result out(2, 32, 5);
    LocalParams<double> p = problem.params();
    p.out = out.view;
    run_local(p);
    for (const double x : out.data) CHECK(std::isfinite(x));
  }
}

TEST(gradients_are_those_of_differences) { for_each_problem(check_gradients); }

TEST(the_threads_do_not_matter) {
  const int before = threads();
  Problem problem{.rows = 700,
                  .keys = 500,
                  .depth = 20,
                  .columns = 9,
                  .half_width = 6,
                  .direction = true,
                  .renormalize = false};
  problem.draw();
  set_threads(1);
  Gradients one(problem);
  run_gradients(problem, one);
  set_threads(4);
  Gradients four(problem);
  run_gradients(problem, four);
  set_threads(before);
  CHECK(one.query.data == four.query.data);
  CHECK(one.key.data == four.key.data);
  CHECK(one.value.data == four.value.data);
  CHECK(one.centre.data == four.centre.data);
  CHECK(one.v == four.v);
}

TEST(windows_are_cut_at_both_ends_without_rounding) {
  const auto is = [](const LocalWindow& found, std::int64_t first, std::int64_t begin,
                     std::int64_t end) {
    return found.first == first && found.begin == begin && found.end == end && found.finite;
  };
  CHECK(is(local_window(5.0, 2, 20), 3, 3, 8));
  CHECK(is(local_window(5.5, 2, 20), 4, 4, 8));
  CHECK(is(local_window(std::nextafter(5.0, 6.0), 2, 20), 4, 4, 8));
  CHECK(is(local_window(std::nextafter(5.0, 4.0), 2, 20), 3, 3, 7));
  CHECK(is(local_window(0.5, 3, 20), -2, 0, 4));
  CHECK(is(local_window(-1.5, 3, 20), -4, 0, 2));
  CHECK(is(local_window(19.0, 3, 20), 16, 16, 20));
  for (const double nowhere : {-3.5, 23.5, 1e18, -1e18, 1e300, -1e300}) {
    const LocalWindow window = local_window(nowhere, 3, 20);
    CHECK(window.begin == window.end && window.finite);
  }
  for (const double strange : {kNan, HUGE_VAL, -HUGE_VAL}) {
    CHECK(!local_window(strange, 3, 20).finite);
    CHECK(local_window(strange, 3, 0).finite);
  }
}

TEST(a_centre_that_is_not_a_number_spoils_its_row_only) {
  Problem problem{.rows = 6,
                  .keys = 12,
                  .depth = 5,
                  .columns = 4,
                  .half_width = 2,
                  .direction = false,
                  .renormalize = false};
  problem.draw();
  problem.centre[5] = kNan;
  Result out(2, 6, 4);
  LocalParams<double> p = problem.params();
  p.out = out.view;
  run_local(p);
  Gradients found(problem);
  run_gradients(problem, found);
  for (std::int64_t t = 0; t < 6; ++t) {
    CHECK(std::isnan(out.at(0, t, 0)) == (t == 5));
    CHECK(std::isnan(found.query.at(0, t, 0)) == (t == 5));
    CHECK(std::isnan(found.centre.at(0, t, 0)) == (t == 5));
  }
  for (const double x : found.key.data) CHECK(std::isfinite(x));
  for (const double x : found.value.data) CHECK(std::isfinite(x));
}

}  // namespace
}  // namespace pyattn

TEST_MAIN

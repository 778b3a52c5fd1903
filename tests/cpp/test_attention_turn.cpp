// Rows of Q and K turned as they are loaded: the bits of attention over rows turned before.
#include "core/parallel.h"
#include "turned_problem.h"

namespace pyattn::testing {
namespace {

template <class X>
void turns(const Shape& shape) {
  for (const bool interleaved : {false, true}) {
    for (const std::int64_t pairs : {std::int64_t{1}, shape.depth / 4, shape.depth / 2}) {
      for_each_isa([&](const std::string& isa) {
        const TurnedProblem<X> problem(rich_problem<X>(shape, 3), pairs, interleaved);
        const Answer<X> wanted = run(problem.turned, kAll);
        for (const bool keys : {false, true}) {
          check::context = isa + " " + shape.text() + " pairs " + std::to_string(pairs) +
                           (interleaved ? " interleaved" : "") + (keys ? " with keys" : "");
          CHECK(same_bits(run(problem.given, problem.params(keys), kAll), wanted));
        }
      });
    }
  }
}
template <class X>
void turns() {
  for (const std::int64_t depth : {5, 16, 38}) {
    turns<X>({.batch = 2,
              .heads = 4,
              .groups = 2,
              .rows = 70,
              .keys = 97,
              .depth = depth,
              .columns = 13});
    turns<X>({.batch = 2,
              .heads = 4,
              .groups = 2,
              .rows = 1,
              .keys = 97,
              .depth = depth,
              .columns = 13});
  }
}
TEST(turns_float) { turns<float>(); }
TEST(turns_double) { turns<double>(); }
TEST(turns_half) { turns<Half>(); }
TEST(turns_bfloat16) { turns<BFloat16>(); }

// Parts of the keys that threads share, without masks and the gaps that they leave.
TEST(parts) {
  const Shape shape{
      .batch = 1, .heads = 4, .groups = 1, .rows = 1, .keys = 1300, .depth = 32, .columns = 16};
  for_each_isa([&](const std::string& isa) {
    std::mt19937 random(5);
    const TurnedProblem<float> problem(Problem<float>(Mechanism::sdpa, shape, {}, random), 16,
                                       false);
    for (const int count : {1, 3}) {
      check::context = isa + " threads " + std::to_string(count);
      set_threads(count);
      parts_run = 0;
      CHECK(same_bits(run(problem.given, problem.params(true), kOut), run(problem.turned, kOut)));
      CHECK((parts_run > 0) == (count > 1));
    }
  });
  set_threads(2);
}

// A masked key is not turned either: what is in its row shows nowhere.
TEST(masked_keys) {
  const Shape shape{.rows = 3, .keys = 80, .depth = 16, .columns = 16};
  for_each_isa([&](const std::string& isa) {
    check::context = isa;
    std::mt19937 random(6);
    TurnedProblem<float> problem(Problem<float>(Mechanism::sdpa, shape, kCausal, random), 8, true);
    for (std::int64_t j = shape.rows; j < shape.keys; ++j) {
      std::fill_n(problem.given.key.row(0, 0, j), shape.depth, static_cast<float>(kNan));
    }
    CHECK(same_bits(run(problem.given, problem.params(true), kOut), run(problem.turned, kOut)));
  });
}

}  // namespace
}  // namespace pyattn::testing

TEST_MAIN

// What is masked is never read: whatever is stored there, every bit of the answer stays the same.
#include "attention_definition.h"
#include "core/parallel.h"

namespace pyattn::testing {
namespace {

// Goes into the first and last column of value row `key` and, unless values_only, into the key.
struct Poison {
  double value;
  bool values_only;
  std::int64_t key;
};

template <class X>
void apply(const Poison& poison, Problem<X>& problem) {
  const Shape& s = problem.shape;
  for (std::int64_t b = 0; b < s.batch; ++b) {
    for (std::int64_t g = 0; g < s.groups; ++g) {
      X* row = problem.value.row(b, g, poison.key);
      row[0] = row[s.columns - 1] = stored<X>(poison.value);
      if (!poison.values_only) problem.key.at(b, g, poison.key, 3) = stored<X>(poison.value);
    }
  }
}

// A NaN reaches the rows that may attend to it, and of a value only the columns it stands in; what
// is not finite is not lost. The other columns keep their bits.
template <class X>
bool reached_as_it_should(const Poison& poison, const Answer<X>& got, const Answer<X>& clean,
                          std::int64_t b, std::int64_t h, std::int64_t i) {
  const std::int64_t columns = got.out.shape[3];
  for (std::int64_t e = 0; e < columns; ++e) {
    const double out = number(got.out.at(b, h, i, e));
    const bool in_value = e == 0 || e == columns - 1;
    if (std::isnan(poison.value) && (in_value || !poison.values_only)) {
      if (!std::isnan(out)) return false;
    } else if (poison.values_only && in_value) {
      if (std::isfinite(out) && std::abs(out) < 1e3) return false;
    } else if (poison.values_only) {
      if (out != number(clean.out.at(b, h, i, e))) return false;
    }
  }
  return true;
}

template <class X>
void check_poison(const Problem<X>& problem, const Answer<X>& clean, const Poison& poison,
                  const Wanted& wanted) {
  Problem<X> poisoned = problem;
  apply(poison, poisoned);
  const Answer<X> got = run(poisoned, wanted);
  const Shape& s = problem.shape;
  for (std::int64_t b = 0; b < s.batch; ++b) {
    for (std::int64_t h = 0; h < s.heads; ++h) {
      for (std::int64_t i = 0; i < s.rows; ++i) {
        if (problem.allowed(b, h, i, poison.key)) {
          CHECK(reached_as_it_should(poison, got, clean, b, h, i));
        } else {
          CHECK(same_row(got, b, h, i, clean, b, i));
        }
      }
    }
  }
}

template <class X>
void check_poisons(Mechanism mechanism, const Variant& variant, std::int64_t rows,
                   std::int64_t keys, std::int64_t key, const Wanted& wanted = kAll) {
  std::mt19937 random(static_cast<unsigned>(rows));
  const Shape shape{.batch = 3,
                    .heads = mechanism == Mechanism::additive ? 2 : 4,  // each with its own keys
                    .groups = 2,
                    .rows = rows,
                    .keys = keys,
                    .depth = 19,
                    .columns = 21};
  Problem<X> problem(mechanism, shape, variant, random);
  // Among the entries: all keys, none beyond the poison, none from it on.
  problem.lengths = {keys, key + 1, key};
  const double large = std::is_same_v<X, Half> ? 6e4 : 3e38;
  const Poison poisons[] = {{kNan, false, key},
                            {kNan, true, key},
                            {kInfinity, false, key},
                            {-kInfinity, true, key},
                            {-large, false, key}};
  const std::string context = variant.text() + " " + shape.text();
  for_each_isa([&](const std::string& isa) {
    const Answer<X> clean = run(problem, wanted);
    for (const Poison& poison : poisons) {
      check::context = isa + " " + context + " poison " + std::to_string(poison.value);
      check_poison(problem, clean, poison, wanted);
    }
  });
}

constexpr MaskUse kMasks[] = {MaskUse::none, MaskUse::boolean, MaskUse::additive,
                              MaskUse::keys_only};

TEST(masked_entries_are_never_read) {
  for (const Mechanism mechanism : {Mechanism::sdpa, Mechanism::additive}) {
    for (const MaskUse mask : kMasks) {
      for (const std::int64_t rows : {1, 3, 70}) {
        check_poisons<float>(mechanism, {.mask = mask, .lengths = true}, rows, 131, 40);
        check_poisons<float>(mechanism, {.mask = mask, .right = 0, .lengths = true}, rows, 131, 40);
      }
    }
  }
}

TEST(keys_outside_the_window_are_never_read) {
  for (const std::int64_t rows : {3, 70}) {
    check_poisons<float>(Mechanism::sdpa, {.left = 9, .right = 4, .starts = true}, rows, 131, 40);
    check_poisons<float>(Mechanism::sdpa, {.left = 9, .lengths = true, .sinks = true}, rows, 131,
                         40);
  }
}

TEST(masked_entries_are_never_read_in_any_type) {
  const Variant variant{.mask = MaskUse::boolean, .left = 60, .right = 0, .lengths = true};
  for (const std::int64_t rows : {3, 70}) {
    check_poisons<double>(Mechanism::sdpa, variant, rows, 131, 40);
    check_poisons<Half>(Mechanism::sdpa, variant, rows, 131, 40);
    check_poisons<BFloat16>(Mechanism::sdpa, variant, rows, 131, 40);
  }
}

// In the second part of the keys, which threads compute apart.
TEST(masked_entries_are_never_read_in_parts) {
  set_threads(3);
  for (const Mechanism mechanism : {Mechanism::sdpa, Mechanism::additive}) {
    for (const MaskUse mask : kMasks) {
      parts_run = 0;
      check_poisons<float>(mechanism, {.mask = mask, .lengths = true}, 20, 700, 540, kOut);
      CHECK(parts_run > 0);
    }
  }
  set_threads(2);
}

// A NaN in a query stays in its row.
TEST(queries_do_not_touch_each_other) {
  for (const std::int64_t rows : {2, 5, 70}) {
    std::mt19937 random(2);
    const Shape shape{
        .heads = 2, .groups = 1, .rows = rows, .keys = 90, .depth = 19, .columns = 21};
    for (const Mechanism mechanism : {Mechanism::sdpa, Mechanism::additive}) {
      Shape own = shape;
      if (mechanism == Mechanism::additive) own.groups = own.heads;
      const Problem<float> problem(mechanism, own, {.mask = MaskUse::boolean}, random);
      Problem<float> poisoned = problem;
      poisoned.query.at(0, 0, 1, 18) = static_cast<float>(kNan);
      for_each_isa([&](const std::string& isa) {
        check::context = isa + " " + own.text();
        const Answer<float> clean = run(problem);
        const Answer<float> got = run(poisoned);
        for (std::int64_t h = 0; h < own.heads; ++h) {
          for (std::int64_t i = 0; i < rows; ++i) {
            const bool same = same_row(got, 0, h, i, clean, 0, i);
            CHECK(same == (h != 0 || i != 1));
          }
        }
        CHECK(std::isnan(got.out.at(0, 0, 1, 0)) && std::isnan(got.lse.at(0, 0, 0, 1)));
      });
    }
  }
}

// Output and weights 0, log-sum-exp that of the sink alone.
TEST(rows_without_an_allowed_key_are_zero) {
  std::mt19937 random(3);
  for (const std::int64_t rows : {6, 33}) {
    for (const bool sinks : {false, true}) {
      for (const MaskUse mask : {MaskUse::boolean, MaskUse::additive}) {
        const Shape shape{
            .heads = 2, .groups = 1, .rows = rows, .keys = 600, .depth = 8, .columns = 9};
        Problem<float> problem(Mechanism::sdpa, shape, {.mask = mask, .sinks = sinks}, random);
        std::fill_n(problem.boolean.row(0, 0, 5), shape.keys, std::uint8_t{0});
        std::fill_n(problem.bias.row(0, 0, 5), shape.keys, static_cast<float>(-kInfinity));
        check::context = shape.text();
        compare(problem, 1e-5);
        const Answer<float> got = run(problem);
        for (std::int64_t e = 0; e < 9; ++e) CHECK(got.out.at(0, 0, 5, e) == 0);
        for (std::int64_t j = 0; j < shape.keys; ++j) CHECK(got.weights.at(0, 0, 5, j) == 0);
        const float lse = sinks ? problem.sinks[0] : static_cast<float>(-kInfinity);
        CHECK(got.lse.at(0, 0, 0, 5) == lse);
        CHECK(got.max.at(0, 0, 0, 5) == static_cast<float>(-kInfinity));
        CHECK(got.entropy.at(0, 0, 0, 5) == 0);
        CHECK(got.top_indices.at(0, 0, 5, 0) == -1);
      }
    }
  }
}

TEST(no_valid_key_at_all) {
  std::mt19937 random(4);
  for (const std::int64_t rows : {2, 70}) {
    const Shape shape{.batch = 2, .rows = rows, .keys = 65, .depth = 8, .columns = 9};
    Problem<float> problem(Mechanism::sdpa, shape, {.lengths = true}, random);
    problem.lengths = {0, 65};
    compare(problem, 1e-5);
    problem.variant = {.right = 3, .starts = true};
    problem.starts = {-200, 300};
    compare(problem, 1e-5);
    problem.variant = {.left = 3, .starts = true, .sinks = true};
    compare(problem, 1e-5);
  }
}

}  // namespace
}  // namespace pyattn::testing

TEST_MAIN

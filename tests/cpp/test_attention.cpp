// Both attention kernels in every storage type, on every instruction set, against the definition.
#include "attention_definition.h"

namespace pyattn::testing {
namespace {

// Edges of registers, panels, blocks and tiles.
constexpr std::int64_t kSizes[] = {1,  2,  3,  7,  8,  9,  15,  16,  17,
                                   31, 32, 33, 63, 64, 65, 127, 128, 129};
// Keys of several parts.
constexpr std::int64_t kLong[] = {512, 513, 640, 1025};

std::int64_t below(std::mt19937& random, std::int64_t end) {
  return static_cast<std::int64_t>(random()) % end;
}

template <std::size_t N>
std::int64_t pick(std::mt19937& random, const std::int64_t (&sizes)[N], std::size_t count = N) {
  return sizes[random() % count];
}

Shape random_shape(Mechanism mechanism, bool several_parts, std::mt19937& random) {
  const std::int64_t groups = 1 + below(random, 2);
  const bool own_keys = mechanism == Mechanism::additive;
  const std::size_t sizes = several_parts ? 12 : std::size(kSizes);
  Shape shape{.batch = 1 + below(random, 2),
              .heads = own_keys ? groups : groups * (1 + below(random, 3)),
              .groups = groups,
              .rows = pick(random, kSizes, sizes),
              .keys = pick(random, kSizes),
              .depth = pick(random, kSizes, sizes),
              .columns = pick(random, kSizes, sizes)};
  if (several_parts) shape.keys = pick(random, kLong);
  return shape;
}

// Each feature in about half of the rounds, so that they meet in every combination of two.
Variant random_variant(Mechanism mechanism, std::int64_t keys, std::mt19937& random) {
  const std::int64_t reaches[] = {kUnbounded, kUnbounded, 0, 1, 5, 64, 300};
  Variant variant{.mask = static_cast<MaskUse>(below(random, 4)),
                  .left = pick(random, reaches),
                  .right = pick(random, reaches),
                  .starts = below(random, 2) == 0,
                  .lengths = below(random, 3) == 0,
                  .short_by = below(random, 4) == 0 ? below(random, keys + 1) : 0};
  variant.dropout = below(random, 3) == 0 ? 0.3 : 0;
  if (mechanism == Mechanism::additive) return variant;
  const double caps[] = {0, 0, 1.5, 20};
  variant.softcap = caps[random() % 4];
  variant.slopes = below(random, 3) == 0;
  variant.sinks = below(random, 2) == 0;
  return variant;
}

template <class X>
void compare_random(Mechanism mechanism, double tolerance, int rounds, double size = 1) {
  std::mt19937 random(1);
  for (int round = 0; round < rounds; ++round) {
    const Shape shape = random_shape(mechanism, round % 5 == 4, random);
    // The first rounds are plain.
    Variant variant = round < 8 ? Variant{} : random_variant(mechanism, shape.keys, random);
    variant.size = size;
    const Problem<X> problem(mechanism, shape, variant, random);
    check::context = shape.text() + " " + variant.text() + " round " + std::to_string(round);
    compare(problem, tolerance);
  }
}

TEST(sdpa_float) { compare_random<float>(Mechanism::sdpa, 2e-5, 60); }
TEST(sdpa_double) { compare_random<double>(Mechanism::sdpa, 2e-13, 25); }
TEST(sdpa_half) { compare_random<Half>(Mechanism::sdpa, 2e-5, 25); }
TEST(sdpa_bfloat16) { compare_random<BFloat16>(Mechanism::sdpa, 2e-5, 25); }
TEST(additive_float) { compare_random<float>(Mechanism::additive, 1e-5, 40); }
TEST(additive_double) { compare_random<double>(Mechanism::additive, 1e-13, 20); }
TEST(additive_half) { compare_random<Half>(Mechanism::additive, 1e-5, 20); }
TEST(additive_bfloat16) { compare_random<BFloat16>(Mechanism::additive, 1e-5, 20); }
// Beyond the range of the factored tanh, and on both sides of it in one tile.
TEST(additive_wide) { compare_random<float>(Mechanism::additive, 1e-5, 30, 8); }
TEST(additive_huge) { compare_random<float>(Mechanism::additive, 1e-5, 30, 1e4); }

// Rows in any order, one of them twice.
TEST(chosen_rows) {
  std::mt19937 random(2);
  for (int round = 0; round < 8; ++round) {
    const Shape shape{
        .batch = 2, .heads = 4, .groups = 2, .rows = 80, .keys = 90, .depth = 19, .columns = 9};
    Variant variant = random_variant(Mechanism::sdpa, shape.keys, random);
    variant.dropout = 0.5;
    Problem<float> problem(Mechanism::sdpa, shape, variant, random);
    problem.rows = {79, 3, 64, 3, 0};
    for (std::int64_t i = 0; round % 2 == 1 && i < 70; ++i) problem.rows.push_back(i);
    check::context = variant.text();
    compare(problem, 2e-5);
  }
}

// exp(s - lse) of chosen rows, without V and without a softmax; a sink is in the log-sum-exp.
TEST(weights_from_a_given_log_sum_exp) {
  std::mt19937 random(3);
  for (int round = 0; round < 8; ++round) {
    const Shape shape{
        .batch = 2, .heads = 2, .groups = 1, .rows = 40, .keys = 600, .depth = 16, .columns = 8};
    const Variant variant = random_variant(Mechanism::sdpa, shape.keys, random);
    Problem<float> problem(Mechanism::sdpa, shape, variant, random);
    problem.rows = {39, 0, 7};
    const Definition<float> definition(problem);
    for_each_isa([&](const std::string& isa) {
      check::context = isa + " " + variant.text();
      Answer<float> softmax = run(problem, kOut);
      AttentionParams<float> params = problem.params();
      params.sinks = nullptr;
      const View<float, 3> lse = softmax.lse.view_3();
      params.given_lse = {.data = lse.data,
                          .shape = {lse.shape[0], lse.shape[1], lse.shape[2]},
                          .stride = {lse.stride[0], lse.stride[1], lse.stride[2]}};
      Wanted wanted = kAll;
      wanted.out = false;
      const Answer<float> got = run(problem, params, wanted);
      CHECK(largest_error(got.weights, definition.answer().weights, 0) < 2e-5);
      CHECK(largest_error(got.entropy, definition.answer().entropy, 0) < 1e-4);
      CHECK(ranks_fit(problem, got));
    });
  }
}

// Equal weights over tiles and parts: the lowest indices win.
TEST(ties_between_weights) {
  std::mt19937 random(4);
  const Shape shape{.rows = 20, .keys = 1100, .depth = 4, .columns = 2};
  Problem<float> problem(Mechanism::sdpa, shape, {.mask = MaskUse::boolean, .left = 700}, random);
  problem.key.for_each([](float& x) { x = 0; });
  compare(problem, 1e-5);
}

TEST(lowest_finite_bias_is_a_bias) {
  std::mt19937 random(5);
  const Shape shape{.rows = 3, .keys = 70, .depth = 8, .columns = 5};
  Problem<float> problem(Mechanism::sdpa, shape, {.mask = MaskUse::additive}, random);
  problem.bias.for_each([](float& x) { x = std::numeric_limits<float>::lowest(); });
  for_each_isa([&](const std::string& isa) {
    check::context = isa;
    Answer<float> got = run(problem);
    got.weights.for_each([](float weight) { CHECK(std::abs(weight - 1.0F / 70) < 1e-7F); });
  });
}

TEST(empty_dimensions) {
  std::mt19937 random(6);
  for (const Mechanism mechanism : {Mechanism::sdpa, Mechanism::additive}) {
    for (int axis = 0; axis < 5; ++axis) {
      for (const bool few : {false, true}) {
        Shape shape{
            .batch = 2, .rows = few ? 2 : 33, .keys = 7, .depth = 4, .columns = few ? 3 : 20};
        std::int64_t* sizes[] = {&shape.batch, &shape.rows, &shape.keys, &shape.depth,
                                 &shape.columns};
        *sizes[axis] = 0;
        check::context = shape.text();
        compare(Problem<float>(mechanism, shape, few ? kCausal : Variant{}, random), 1e-5);
      }
    }
  }
}

}  // namespace
}  // namespace pyattn::testing

TEST_MAIN

// Both attention kernels on every instruction set of this machine against the definition.
#include "attention_problem.h"
#include "check.h"
#include "core/parallel.h"

namespace pyattn::testing {
namespace {

// Edges of registers, panels, blocks and tiles.
constexpr std::int64_t kSizes[] = {1,  2,  3,  7,  8,  9,  15,  16,  17,
                                   31, 32, 33, 63, 64, 65, 127, 128, 129};

std::int64_t pick(std::mt19937& random) { return kSizes[random() % std::size(kSizes)]; }

template <class Body>
void for_each_isa(Body body) {
  for (const std::string& name : available_isas()) {
    set_isa(name);
    body(name);
  }
  set_isa(available_isas().front());
}

template <class T>
void compare(const Problem<T>& problem, double tolerance) {
  const Answer<double> want = problem.definition();
  const Answer<T> got = problem.run();
  CHECK(largest_error(got.out, want.out) < tolerance);
  CHECK(largest_error(got.weights, want.weights) < tolerance);
  CHECK(largest_error(got.lse, want.lse) < 4 * tolerance);
  CHECK(same_bits(problem.run(problem.params(), false).out, got.out));
}

template <class T>
void compare_random(Mechanism mechanism, double size, double tolerance, int rounds) {
  for_each_isa([&](const std::string& isa) {
    std::mt19937 random(1);
    for (int round = 0; round < rounds; ++round) {
      const std::int64_t groups = 1 + static_cast<std::int64_t>(random() % 2);
      const bool single = mechanism == Mechanism::additive;
      const Shape shape{
          .batch = 1 + static_cast<std::int64_t>(random() % 2),
          .heads = single ? 1 : groups * (1 + static_cast<std::int64_t>(random() % 3)),
          .groups = single ? 1 : groups,
          .rows = pick(random),
          .keys = pick(random),
          .depth = pick(random),
          .columns = pick(random)};
      const Problem<T> problem(mechanism, shape, static_cast<MaskUse>(round % 4), round % 3 == 1,
                               round % 5 == 2, size, random);
      check::context = isa + " " + shape.text() + " round " + std::to_string(round);
      compare(problem, tolerance);
    }
  });
}

TEST(sdpa_float) { compare_random<float>(Mechanism::sdpa, 1, 2e-5, 60); }
TEST(sdpa_double) { compare_random<double>(Mechanism::sdpa, 1, 1e-13, 30); }
TEST(additive_float) { compare_random<float>(Mechanism::additive, 1, 1e-5, 60); }
TEST(additive_double) { compare_random<double>(Mechanism::additive, 1, 1e-13, 30); }
// Beyond the range of the factored tanh, and on both sides of it in one tile.
TEST(additive_wide) { compare_random<float>(Mechanism::additive, 8, 1e-5, 30); }
TEST(additive_huge) { compare_random<float>(Mechanism::additive, 1e4, 1e-5, 30); }

// Poison goes into the first and last column of value row `key` and, unless values_only, into the
// key itself.
struct Poison {
  float value;
  bool values_only;
};

constexpr std::int64_t kPoisonedKey = 40;

void apply(const Poison& poison, Problem<float>& problem) {
  const Shape& s = problem.shape;
  for (std::int64_t bg = 0; bg < s.batch * s.groups; ++bg) {
    const std::int64_t row = bg * s.keys + kPoisonedKey;
    problem.value[static_cast<std::size_t>(row * s.columns)] = poison.value;
    problem.value[static_cast<std::size_t>((row + 1) * s.columns - 1)] = poison.value;
    if (!poison.values_only) {
      problem.key[static_cast<std::size_t>(row * s.depth + 3)] = poison.value;
    }
  }
}

// What is stored in a masked key or value changes no bit of the output; a NaN in an allowed one
// reaches it, and only where it should.
void check_poison(Mechanism mechanism, MaskUse mask, bool causal, const Poison& poison,
                  std::int64_t rows) {
  std::mt19937 random(static_cast<unsigned>(rows));
  const bool single = mechanism == Mechanism::additive;
  const Shape shape{.batch = 8,
                    .heads = single ? 1 : 4,
                    .groups = single ? 1 : 2,
                    .rows = rows,
                    .keys = 131,
                    .depth = 19,
                    .columns = 21};
  Problem<float> problem(mechanism, shape, mask, causal, true, 1, random);
  const Answer<float> clean = problem.run();
  apply(poison, problem);
  const Answer<float> got = problem.run();
  for (std::int64_t r = 0; r < shape.batch * shape.heads * shape.rows; ++r) {
    const std::int64_t h = r / shape.rows % shape.heads;
    const std::int64_t b = r / shape.rows / shape.heads;
    const bool reached = problem.allowed(b, h, r % shape.rows, kPoisonedKey);
    for (std::int64_t e = 0; e < shape.columns; ++e) {
      const auto at = static_cast<std::size_t>(r * shape.columns + e);
      const bool in_value = e == 0 || e == shape.columns - 1;
      if (!reached) {
        CHECK(got.out[at] == clean.out[at]);
      } else if (std::isnan(poison.value) && (in_value || !poison.values_only)) {
        CHECK(std::isnan(got.out[at]));
      } else if (poison.values_only && in_value) {
        CHECK(!(std::abs(got.out[at]) < 1e3F));
      } else if (poison.values_only) {
        CHECK(std::abs(got.out[at] - clean.out[at]) < 1e-5F);
      }
    }
    const auto row = static_cast<std::size_t>(r);
    if (!reached) CHECK(got.lse[row] == clean.lse[row]);
  }
}

TEST(masked_entries_are_never_read) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const Poison poisons[] = {
      {kNan, false}, {kNan, true}, {kInf, false}, {-kInf, true}, {-3e38F, false}};
  for_each_isa([&](const std::string& isa) {
    for (const Mechanism mechanism : {Mechanism::sdpa, Mechanism::additive}) {
      for (const MaskUse mask :
           {MaskUse::none, MaskUse::boolean, MaskUse::additive, MaskUse::keys_only}) {
        for (const Poison& poison : poisons) {
          for (const std::int64_t rows : {1, 2, 3, 70}) {
            check::context = isa + " mask " + std::to_string(static_cast<int>(mask)) + " poison " +
                             std::to_string(poison.value) + " rows " + std::to_string(rows);
            check_poison(mechanism, mask, true, poison, rows);
            check_poison(mechanism, mask, false, poison, rows);
          }
        }
      }
    }
  });
}

TEST(rows_without_an_allowed_key_are_zero) {
  for_each_isa([](const std::string& isa) {
    check::context = isa;
    std::mt19937 random(3);
    const Shape shape{
        .batch = 1, .heads = 2, .groups = 1, .rows = 33, .keys = 65, .depth = 8, .columns = 9};
    for (const MaskUse mask : {MaskUse::boolean, MaskUse::additive}) {
      Problem<float> problem(Mechanism::sdpa, shape, mask, false, false, 1, random);
      const std::size_t row = 5 * 65;
      std::fill_n(problem.boolean.begin() + row, 65, std::uint8_t{0});
      std::fill_n(problem.bias.begin() + row, 65, static_cast<float>(-kInfinity));
      const Answer<float> got = problem.run();
      for (std::size_t e = 0; e < 9; ++e) CHECK(got.out[5 * 9 + e] == 0);
      for (std::size_t j = 0; j < 65; ++j) CHECK(got.weights[row + j] == 0);
      CHECK(got.lse[5] == static_cast<float>(-kInfinity));
      compare(problem, 1e-5);
    }
    Problem<float> empty(Mechanism::sdpa, shape, MaskUse::none, false, false, 1, random);
    empty.lengths = {0};
    compare(empty, 1e-5);
  });
}

TEST(lowest_finite_bias_is_a_bias) {
  for_each_isa([](const std::string& isa) {
    check::context = isa;
    std::mt19937 random(4);
    const Shape shape{.rows = 3, .keys = 70, .depth = 8, .columns = 5};
    Problem<float> problem(Mechanism::sdpa, shape, MaskUse::additive, false, false, 1, random);
    std::fill(problem.bias.begin(), problem.bias.end(), std::numeric_limits<float>::lowest());
    const Answer<float> got = problem.run();
    for (const float weight : got.weights) CHECK(std::abs(weight - 1.0F / 70) < 1e-7F);
  });
}

TEST(empty_dimensions) {
  for_each_isa([](const std::string& isa) {
    std::mt19937 random(5);
    for (const Mechanism mechanism : {Mechanism::sdpa, Mechanism::additive}) {
      for (int axis = 0; axis < 5; ++axis) {
        Shape shape{.batch = 2, .rows = 5, .keys = 7, .depth = 4, .columns = 3};
        std::int64_t* sizes[] = {&shape.batch, &shape.rows, &shape.keys, &shape.depth,
                                 &shape.columns};
        *sizes[axis] = 0;
        check::context = isa + " " + shape.text();
        compare(Problem<float>(mechanism, shape, MaskUse::none, axis % 2 == 1, false, 1, random),
                1e-5);
      }
    }
  });
}

// Transposed, reversed and broadcast inputs give the bits of the dense ones.
TEST(strides) {
  for_each_isa([](const std::string& isa) {
    check::context = isa;
    std::mt19937 random(6);
    const Shape shape{
        .batch = 1, .heads = 2, .groups = 2, .rows = 37, .keys = 67, .depth = 19, .columns = 21};
    const Problem<float> problem(Mechanism::sdpa, shape, MaskUse::boolean, false, false, 1, random);
    AttentionParams<float> params = problem.params();
    std::vector<std::vector<float>> copies;
    for (View<const float, 4>* view : {&params.query, &params.key, &params.value}) {
      const auto& length = view->shape;
      std::vector<float> copy(static_cast<std::size_t>(length[1] * length[2] * length[3]));
      for (std::int64_t h = 0; h < length[1]; ++h) {
        for (std::int64_t i = 0; i < length[2]; ++i) {
          for (std::int64_t d = 0; d < length[3]; ++d) {
            // Last axis reversed and outermost.
            copy[static_cast<std::size_t>(((length[3] - 1 - d) * length[1] + h) * length[2] + i)] =
                view->data[h * view->stride[1] + i * view->stride[2] + d];
          }
        }
      }
      const std::int64_t plane = length[1] * length[2];
      copies.push_back(std::move(copy));
      view->data = copies.back().data() + (length[3] - 1) * plane;
      view->stride[1] = length[2];
      view->stride[2] = 1;
      view->stride[3] = -plane;
    }
    CHECK(same_bits(problem.run(params).out, problem.run().out));
  });
}

TEST(results_depend_on_neither_threads_nor_batch) {
  for_each_isa([](const std::string& isa) {
    std::mt19937 random(7);
    for (const Mechanism mechanism : {Mechanism::sdpa, Mechanism::additive}) {
      const bool single = mechanism == Mechanism::additive;
      const Shape shape{.batch = 5,
                        .heads = single ? 1 : 6,
                        .groups = single ? 1 : 2,
                        .rows = 97,
                        .keys = 133,
                        .depth = 20,
                        .columns = 13};
      const Problem<float> problem(mechanism, shape, MaskUse::boolean, true, true, 1, random);
      check::context = isa;
      set_threads(1);
      const Answer<float> one = problem.run();
      for (const int count : {2, 3, 8}) {
        set_threads(count);
        for (int repeat = 0; repeat < 5; ++repeat) {
          const Answer<float> many = problem.run();
          CHECK(same_bits(many.out, one.out));
          CHECK(same_bits(many.weights, one.weights));
        }
      }
      // Batch entry 3 alone.
      Problem<float> alone = problem;
      alone.shape.batch = 1;
      alone.lengths = {problem.lengths[3]};
      AttentionParams<float> params = alone.params();
      params.query.data += 3 * params.query.stride[0];
      params.key.data += 3 * params.key.stride[0];
      params.value.data += 3 * params.value.stride[0];
      const Answer<float> got = alone.run(params);
      CHECK(std::equal(got.out.begin(), got.out.end(),
                       one.out.begin() + static_cast<std::ptrdiff_t>(3 * got.out.size())));
    }
  });
  set_threads(2);
}

}  // namespace
}  // namespace pyattn::testing

TEST_MAIN

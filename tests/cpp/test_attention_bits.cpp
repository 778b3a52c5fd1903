// The bits of a row depend on nothing but the row: not on the threads, the batch, the cut into
// blocks and parts, the layout of the memory.
#include "attention_answer.h"
#include "core/parallel.h"

namespace pyattn::testing {
namespace {

template <class X>
void same_for_any_threads(const Problem<X>& problem, bool in_parts) {
  for_each_isa([&](const std::string& isa) {
    check::context = isa + " " + problem.shape.text();
    set_threads(1);
    parts_run = 0;
    const Answer<X> one = run(problem);
    const Answer<X> one_pass = run(problem, kOut);
    CHECK(parts_run == 0);
    CHECK(same_bits(one_pass.out, one.out));
    for (const int count : {2, 3, 8}) {
      set_threads(count);
      CHECK(same_bits(run(problem), one));
      parts_run = 0;
      CHECK(same_bits(run(problem, kOut), one_pass));
      CHECK((parts_run > 0) == in_parts);
    }
    set_threads(2);
  });
}

const Shape kManyBlocks{
    .batch = 4, .heads = 4, .groups = 2, .rows = 97, .keys = 133, .depth = 20, .columns = 13};
// Of which threads share the parts.
const Shape kFewRows{
    .batch = 2, .heads = 6, .groups = 2, .rows = 2, .keys = 1300, .depth = 20, .columns = 13};
const Shape kFewBlocks{
    .batch = 1, .heads = 2, .groups = 1, .rows = 50, .keys = 1300, .depth = 20, .columns = 13};

template <class X>
void same_for_any_threads() {
  same_for_any_threads(rich_problem<X>(kManyBlocks, 1), false);
  same_for_any_threads(rich_problem<X>(kFewRows, 2), true);
  same_for_any_threads(rich_problem<X>(kFewBlocks, 3), true);
}
TEST(threads_float) { same_for_any_threads<float>(); }
TEST(threads_double) { same_for_any_threads<double>(); }
TEST(threads_half) { same_for_any_threads<Half>(); }
TEST(threads_bfloat16) { same_for_any_threads<BFloat16>(); }

TEST(threads_additive) {
  std::mt19937 random(4);
  for (const std::int64_t rows : {1, 20}) {
    const Shape many{.batch = 30, .rows = rows, .keys = 99, .depth = 40, .columns = 13};
    const Shape few{
        .batch = 1, .rows = rows, .keys = 4000 / rows + 600, .depth = 40, .columns = 40};
    Variant variant = kCausal;
    same_for_any_threads(Problem<float>(Mechanism::additive, many, variant, random), false);
    variant = {.mask = MaskUse::boolean};
    same_for_any_threads(Problem<float>(Mechanism::additive, few, variant, random), true);
    same_for_any_threads(Problem<double>(Mechanism::additive, few, variant, random), true);
  }
}

// Queries far behind the valid keys, whose window holds none of them: no parts, and zeros.
TEST(parts_of_entries_without_keys) {
  const Shape shape{
      .batch = 4, .heads = 4, .groups = 1, .rows = 3, .keys = 1400, .depth = 20, .columns = 13};
  std::mt19937 random(5);
  const Variant variant{.left = 100, .starts = true, .lengths = true};
  Problem<float> problem(Mechanism::sdpa, shape, variant, random);
  problem.starts = {740, 1390, 700, -5000};
  problem.lengths = {200, 1400, 601, 1400};
  same_for_any_threads(problem, true);
  problem.starts = {1000, 1000, 1000, 1000};
  problem.lengths = {200, 0, 800, 1};
  parts_run = 0;
  same_for_any_threads(problem, false);
  Answer<float> got = run(problem, kOut);
  got.out.for_each([](float x) { CHECK(x == 0); });
}

// Rows [first, first + count) of `heads` heads in one block over all keys, whoever may see them.
template <class X>
Answer<X> run_alone(const Problem<X>& problem, const AttentionBlock& block) {
  AttentionParams<X> params = problem.params();
  Answer<X> answer(problem.shape, problem.shape.rows, kAll);
  answer.put_into(params, kAll);
  std::vector<Compute<X>> scratch(static_cast<std::size_t>(
      attention_scratch_elements(problem.shape.depth, problem.shape.columns)));
  run_block<X, Mechanism::sdpa>(params, block, scratch.data());
  CHECK(answer.gaps_are_intact());
  return answer;
}

struct Cut {
  std::int64_t heads, rows;
};

template <class X>
void rows_alone(const Problem<X>& problem) {
  for_each_isa([&](const std::string& isa) {
    const Answer<X> whole = run(problem);
    for (const Cut cut : {Cut{1, 1}, Cut{3, 1}, Cut{2, 2}, Cut{1, 6}, Cut{3, 4}, Cut{3, 5},
                          Cut{1, 17}, Cut{2, 32}}) {
      for (const std::int64_t first : {0, 38}) {
        check::context = isa + " " + problem.shape.text() + " " + std::to_string(cut.heads) +
                         " heads " + std::to_string(cut.rows) + " rows from " +
                         std::to_string(first);
        const std::int64_t first_head = problem.shape.heads / 2;
        const AttentionBlock block{.first_head = first_head,
                                   .heads = cut.heads,
                                   .first_row = first,
                                   .rows = cut.rows,
                                   .key_end = problem.shape.keys};
        const Answer<X> alone = run_alone(problem, block);
        for (std::int64_t h = first_head; h < first_head + cut.heads; ++h) {
          for (std::int64_t i = first; i < first + cut.rows; ++i) {
            CHECK(same_row(alone, 0, h, i, whole, 0, i));
          }
        }
      }
    }
  });
}

// With something of everything; with nothing but the softmax, also at sizes of which the kernels
// take several registers at once; with a bias alone; with tiles that few queries go through in
// two ways, because some of their pairs are masked.
template <class X>
void rows_alone() {
  const Shape odd{.heads = 6, .groups = 2, .rows = 70, .keys = 580, .depth = 21, .columns = 13};
  const Shape even{.heads = 6, .groups = 2, .rows = 70, .keys = 601, .depth = 40, .columns = 96};
  rows_alone(rich_problem<X>(odd, 6));
  std::mt19937 random(10);
  const Variant window{.left = 200, .right = 100, .starts = true};
  for (const Variant& variant :
       {Variant{}, kCausal, Variant{.mask = MaskUse::additive}, Variant{.mask = MaskUse::boolean},
        Variant{.mask = MaskUse::keys_only}, window}) {
    rows_alone(Problem<X>(Mechanism::sdpa, odd, variant, random));
    rows_alone(Problem<X>(Mechanism::sdpa, even, variant, random));
  }
}
TEST(rows_alone_float) { rows_alone<float>(); }
TEST(rows_alone_double) { rows_alone<double>(); }
TEST(rows_alone_half) { rows_alone<Half>(); }
TEST(rows_alone_bfloat16) { rows_alone<BFloat16>(); }

// Chosen rows, as many as a decoding step has, or in another order.
TEST(chosen_rows) {
  Problem<float> problem = rich_problem<float>(
      {.batch = 2, .heads = 6, .groups = 2, .rows = 150, .keys = 600, .depth = 21, .columns = 13},
      7);
  problem.variant.left = 30;  // so that the first key of a block depends on its rows
  for_each_isa([&](const std::string& isa) {
    check::context = isa;
    problem.rows.clear();
    const Answer<float> whole = run(problem);
    for (const std::int64_t count : {1, 2, 9, 100}) {
      problem.rows.clear();
      for (std::int64_t k = 0; k < count; ++k)
        problem.rows.push_back((149 - 7 * k % 150 + k) % 150);
      const Answer<float> chosen = run(problem);
      for (std::int64_t b = 0; b < 2; ++b) {
        for (std::int64_t h = 0; h < 6; ++h) {
          for (std::int64_t k = 0; k < count; ++k) {
            CHECK(same_row(chosen, b, h, k, whole, b, problem.source(k)));
          }
        }
      }
    }
  });
}

// An entry alone, whatever else is in the batch.
template <class X>
void entry_alone(Mechanism mechanism, const Shape& shape) {
  std::mt19937 random(8);
  Variant variant{.mask = MaskUse::boolean, .left = 600, .right = 0, .starts = true};
  variant.lengths = true;
  const Problem<X> problem(mechanism, shape, variant, random);
  Problem<X> alone = problem;
  alone.shape.batch = 1;
  for_each_isa([&](const std::string& isa) {
    const Answer<X> all = run(problem);
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      check::context = isa + " " + shape.text() + " entry " + std::to_string(b);
      alone.lengths = {problem.lengths.data()[b]};
      alone.starts = {problem.starts.data()[b]};
      AttentionParams<X> params = alone.params();
      params.query.data = problem.query.row(b, 0, 0);
      params.key.data = problem.key.row(b, 0, 0);
      params.value.data = problem.value.row(b, 0, 0);
      const Answer<X> got = run(alone, params, kAll);
      for (std::int64_t h = 0; h < shape.heads; ++h) {
        for (std::int64_t i = 0; i < shape.rows; ++i) CHECK(same_row(got, 0, h, i, all, b, i));
      }
    }
  });
}
TEST(entries_alone) {
  entry_alone<float>(Mechanism::sdpa, kManyBlocks);
  entry_alone<BFloat16>(Mechanism::sdpa, kFewRows);
  entry_alone<double>(Mechanism::additive,
                      {.batch = 3, .rows = 70, .keys = 133, .depth = 9, .columns = 13});
}

// The same numbers with the last axis reversed and outermost.
template <class X>
View<const X, 4> inside_out(const Array<X>& array, std::vector<X>& copy) {
  const auto& s = array.shape;
  const std::int64_t plane = s[0] * s[1] * s[2];
  copy.resize(static_cast<std::size_t>(plane * s[3]));
  for (std::int64_t r = 0; r < plane; ++r) {
    for (std::int64_t d = 0; d < s[3]; ++d) {
      copy.data()[(s[3] - 1 - d) * plane + r] = array.data.data()[r * array.stride[2] + d];
    }
  }
  return {.data = copy.data() + (s[3] - 1) * plane,
          .shape = {s[0], s[1], s[2], s[3]},
          .stride = {s[1] * s[2], s[2], 1, -plane}};
}

template <class X>
void any_strides(Mechanism mechanism, std::int64_t rows, MaskUse mask) {
  std::mt19937 random(9);
  const bool own_keys = mechanism == Mechanism::additive;
  const Shape shape{.batch = 2,
                    .heads = 4,
                    .groups = own_keys ? 4 : 2,
                    .rows = rows,
                    .keys = 67,
                    .depth = 19,
                    .columns = 21};
  const Problem<X> problem(mechanism, shape, {.mask = mask}, random);
  std::vector<X> query, key, value, bias;
  std::vector<std::uint8_t> boolean;
  AttentionParams<X> params = problem.params();
  params.query = inside_out(problem.query, query);
  params.key = inside_out(problem.key, key);
  params.value = inside_out(problem.value, value);
  const auto turn = [&](const auto& view) {
    params.mask.data = view.data;
    std::copy(view.stride + 1, view.stride + 4, params.mask.stride + 1);
  };
  if (mask == MaskUse::boolean) turn(inside_out(problem.boolean, boolean));
  if (mask == MaskUse::additive) turn(inside_out(problem.bias, bias));
  for_each_isa([&](const std::string& isa) {
    check::context = isa + " " + shape.text();
    CHECK(same_bits(run(problem, params, kAll), run(problem)));
  });
}
TEST(strides) {
  for (const std::int64_t rows : {1, 2, 37}) {
    for (const MaskUse mask : {MaskUse::boolean, MaskUse::additive}) {
      any_strides<float>(Mechanism::sdpa, rows, mask);
      any_strides<double>(Mechanism::sdpa, rows, mask);
      any_strides<Half>(Mechanism::sdpa, rows, mask);
      any_strides<BFloat16>(Mechanism::sdpa, rows, mask);
      any_strides<float>(Mechanism::additive, rows, mask);
    }
  }
}

}  // namespace
}  // namespace pyattn::testing

TEST_MAIN

// Attention of bfloat16 arrays on tile registers, on processors that have none: the kernel with
// their instructions in plain C++, and the kernel of the library with its instructions trapped.
// Against the definition, and bit for bit: alone, in a block of many, and each way to run it.
#include "attention_definition.h"
#include "core/parallel.h"
#include "cpu/tables.h"
#include "tiles_emulated.h"
#include "turned_problem.h"

namespace pyattn::testing {
namespace {

using X = BFloat16;
using Kernel = AttentionKernels<X>::Run;

bool has(const char* isa) {
  const std::vector<std::string> names = available_isas();
  return std::find(names.begin(), names.end(), isa) != names.end();
}

Kernel kernel_under_test = nullptr;

// On memory that is full of NaN, as run_block.
void run_tiles(const AttentionParams<X>& p, const AttentionBlock& block, float* scratch) noexcept {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::int64_t columns = p.value.shape[3];
  std::fill_n(scratch, attention_scratch_elements(p.query.shape[3], columns), nan);
  if (block.part != nullptr) {
    parts_run.fetch_add(1, std::memory_order_relaxed);
    std::fill_n(static_cast<float*>(block.part), part_elements(block.heads * block.rows, columns),
                nan);
  }
  kernel_under_test(p, block, scratch);
}

Answer<X> run_plain(const Problem<X>& problem, const AttentionParams<X>& p, const Wanted& wanted) {
  kernel_under_test = sdpa_emulated_tiles;
  return run(problem, p, wanted, run_tiles);
}

// The machine code of the library gives the same bits.
Answer<X> run_both(const Problem<X>& problem, const AttentionParams<X>& p, const Wanted& wanted) {
  const Answer<X> plain = run_plain(problem, p, wanted);
  kernel_under_test = avx512amx_table.sdpa;
  CHECK(same_bits(run(problem, p, wanted, run_tiles), plain));
  return plain;
}
Answer<X> run_both(const Problem<X>& problem, const Wanted& wanted) {
  return run_both(problem, problem.params(), wanted);
}

void compare_tiles(const Problem<X>& problem) {
  if (!has("avx512bf16")) return;
  check::context = problem.shape.text() + " " + problem.variant.text();
  compare(problem, Definition<X>(problem), 2e-5, true,
          [&](const Wanted& wanted) { return run_both(problem, wanted); });
}

TEST(depths_and_columns) {
  std::mt19937 random(1);
  constexpr std::int64_t kSizes[] = {1, 2, 14, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 128};
  for (const std::int64_t depth : kSizes) {
    const std::int64_t columns = kSizes[random() % std::size(kSizes)];
    for (const std::int64_t rows : {1, 33}) {
      const Shape shape{.rows = rows, .keys = 70, .depth = depth, .columns = columns};
      compare_tiles(Problem<X>(Mechanism::sdpa, shape, {}, random));
      const Shape turned{.rows = rows, .keys = 40, .depth = columns, .columns = depth};
      compare_tiles(Problem<X>(Mechanism::sdpa, turned, kCausal, random));
    }
  }
}

TEST(rows_and_keys) {
  std::mt19937 random(2);
  constexpr std::int64_t kSizes[] = {1, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 129};
  for (const std::int64_t keys : kSizes) {
    const std::int64_t rows = kSizes[random() % std::size(kSizes)];
    for (const std::int64_t depth : {32, 40}) {
      const Shape shape{.rows = rows, .keys = keys, .depth = depth, .columns = 32};
      compare_tiles(Problem<X>(Mechanism::sdpa, shape, {}, random));
    }
  }
}

const Variant kVariants[] = {
    kCausal,
    {.mask = MaskUse::boolean},
    {.mask = MaskUse::additive},
    {.mask = MaskUse::keys_only, .softcap = 1.5},
    {.left = 5, .right = 3, .starts = true, .sinks = true},
    {.mask = MaskUse::boolean, .left = 64, .lengths = true, .slopes = true},
    {.mask = MaskUse::additive, .right = 0, .short_by = 9, .softcap = 20, .dropout = 0.3},
    {.lengths = true, .dropout = 0.5},
};

TEST(variants) {
  std::mt19937 random(3);
  for (const Variant& variant : kVariants) {
    for (const std::int64_t depth : {32, 20}) {
      for (const std::int64_t rows : {2, 50}) {
        const Shape shape{.batch = 2,
                          .heads = 4,
                          .groups = 2,
                          .rows = rows,
                          .keys = 75,
                          .depth = depth,
                          .columns = 24};
        compare_tiles(Problem<X>(Mechanism::sdpa, shape, variant, random));
      }
    }
  }
}

TEST(keys_of_several_parts) {
  std::mt19937 random(4);
  for (const std::int64_t rows : {1, 20}) {
    const Shape shape{
        .heads = 2, .groups = 1, .rows = rows, .keys = 1100, .depth = 32, .columns = 16};
    compare_tiles(Problem<X>(Mechanism::sdpa, shape, {.mask = MaskUse::boolean}, random));
  }
}

TEST(empty_dimensions) {
  std::mt19937 random(5);
  for (int axis = 0; axis < 5; ++axis) {
    Shape shape{.batch = 2, .rows = 33, .keys = 7, .depth = 4, .columns = 20};
    std::int64_t* sizes[] = {&shape.batch, &shape.rows, &shape.keys, &shape.depth, &shape.columns};
    *sizes[axis] = 0;
    compare_tiles(Problem<X>(Mechanism::sdpa, shape, {}, random));
  }
}

// What nobody may see is a NaN, and what only some may see is not finite in one column.
TEST(poisoned_rows) {
  if (!has("avx512bf16")) return;
  std::mt19937 random(6);
  for (const std::int64_t depth : {32, 21}) {
    const Shape shape{.batch = 2, .rows = 40, .keys = 90, .depth = depth, .columns = 19};
    Problem<X> problem(Mechanism::sdpa, shape, kCausal, random);
    const Definition<X> definition(problem);
    constexpr std::int64_t kPartly = 30;  // rows 30 to 39 see it
    for (std::int64_t b = 0; b < 2; ++b) {
      for (std::int64_t j = 40; j < 90; ++j) {
        std::fill_n(problem.key.row(b, 0, j), depth, stored<X>(kNan));
        std::fill_n(problem.value.row(b, 0, j), 19, stored<X>(kInfinity));
      }
      problem.value.at(b, 0, kPartly, 3) = stored<X>(kInfinity);
      problem.value.at(b, 0, kPartly + 1, 18) = stored<X>(kNan);
    }
    check::context = shape.text();
    Answer<X> got = run_both(problem, kOut);
    Answer<double> want = definition.answer();
    for (std::int64_t b = 0; b < 2; ++b) {
      for (std::int64_t i = kPartly; i < 40; ++i) {
        CHECK(number(got.out.at(b, 0, i, 3)) == kInfinity);
        CHECK(std::isnan(number(got.out.at(b, 0, i, 18))) == (i > kPartly));
        for (const std::int64_t e : {3, 18}) {
          if (e == 18 && i == kPartly) continue;
          got.out.at(b, 0, i, e) = stored<X>(0);
          want.out.at(b, 0, i, e) = 0;
        }
      }
    }
    CHECK(largest_error(got.out, want.out, kRounding<X>, &definition.sizes()) < 2e-5);
    CHECK(largest_error(got.lse, want.lse, 8 * kRounding<float>) < 8e-5);
  }
}

// Chosen rows of one call are those rows of another, from a decoding step to a full block.
TEST(rows_alone) {
  if (!has("avx512bf16")) return;
  for (const std::int64_t depth : {32, 21}) {
    Problem<X> problem = rich_problem<X>(
        {.heads = 6, .groups = 2, .rows = 70, .keys = 580, .depth = depth, .columns = 13}, 7);
    const Answer<X> whole = run_plain(problem, problem.params(), kAll);
    for (const std::int64_t count : {1, 2, 9, 40}) {
      for (const std::int64_t first : {0, 29}) {
        check::context = std::to_string(count) + " rows from " + std::to_string(first);
        problem.rows.clear();
        for (std::int64_t i = 0; i < count; ++i) problem.rows.push_back(first + i);
        const Answer<X> alone = run_both(problem, kAll);
        for (std::int64_t h = 0; h < 6; ++h) {
          for (std::int64_t i = 0; i < count; ++i) {
            CHECK(same_row(alone, 0, h, i, whole, 0, first + i));
          }
        }
      }
    }
    problem.rows.clear();
  }
}

// Rows turned as they are loaded.
TEST(turned_rows) {
  if (!has("avx512bf16")) return;
  for (const std::int64_t rows : {1, 70}) {
    const Shape shape{
        .heads = 2, .groups = 2, .rows = rows, .keys = 97, .depth = 38, .columns = 13};
    const TurnedProblem<X> problem(rich_problem<X>(shape, 11), 19, true);
    check::context = shape.text();
    CHECK(same_bits(run_both(problem.given, problem.params(true), kAll),
                    run_plain(problem.turned, problem.turned.params(), kAll)));
  }
}

// Without masks too, where keys lie in place for many rows and for one.
TEST(steps_of_decoding) {
  if (!has("avx512bf16")) return;
  std::mt19937 random(8);
  const Shape shape{.heads = 4, .groups = 2, .rows = 80, .keys = 80, .depth = 64, .columns = 33};
  Problem<X> problem(Mechanism::sdpa, shape, kCausal, random);
  const Answer<X> whole = run_plain(problem, problem.params(), kAll);
  for (const std::int64_t row : {0, 1, 15, 31, 32, 63, 64, 79}) {
    check::context = "row " + std::to_string(row);
    problem.rows = {row};
    const Answer<X> step = run_both(problem, kAll);
    for (std::int64_t h = 0; h < 4; ++h) CHECK(same_row(step, 0, h, 0, whole, 0, row));
  }
}

TEST(threads_and_parts) {
  if (!has("avx512bf16")) return;
  const Problem<X> problem = rich_problem<X>(
      {.batch = 2, .heads = 6, .groups = 2, .rows = 2, .keys = 1300, .depth = 20, .columns = 40},
      9);
  set_threads(1);
  parts_run = 0;
  const Answer<X> one = run_plain(problem, problem.params(), kOut);
  CHECK(parts_run == 0);
  for (const int count : {2, 3, 8}) {
    set_threads(count);
    CHECK(same_bits(run_both(problem, kOut), one));
  }
  CHECK(parts_run > 0);
  set_threads(2);
}

// Keys and values with gaps, backwards, one row for all keys, numbers apart, in pages.
TEST(layouts) {
  if (!has("avx512bf16")) return;
  std::mt19937 random(10);
  constexpr std::int64_t kKeys = 70, kDepth = 32, kColumns = 18;
  const Shape shape{.rows = 20, .keys = kKeys, .depth = kDepth, .columns = kColumns};
  const Problem<X> problem(Mechanism::sdpa, shape, {}, random);
  const Answer<X> want = run_plain(problem, problem.params(), kAll);
  const auto copied = [&](std::int64_t row_step, std::int64_t step, std::vector<X>& key,
                          std::vector<X>& value) {
    key.assign(static_cast<std::size_t>(kKeys * 256), stored<X>(kNan));
    value = key;
    AttentionParams<X> p = problem.params();
    const std::int64_t start = row_step < 0 ? -row_step * (kKeys - 1) : 0;
    for (std::int64_t j = 0; j < kKeys; ++j) {
      for (std::int64_t d = 0; d < kDepth; ++d) {
        key.data()[start + j * row_step + d * step] = problem.key.at(0, 0, j, d);
      }
      for (std::int64_t e = 0; e < kColumns; ++e) {
        value.data()[start + j * row_step + e * step] = problem.value.at(0, 0, j, e);
      }
    }
    p.key.data = key.data() + start;
    p.value.data = value.data() + start;
    p.key.stride[2] = p.value.stride[2] = row_step;
    p.key.stride[3] = p.value.stride[3] = step;
    return p;
  };
  std::vector<X> key, value;
  const std::int64_t steps[][2] = {{32, 1}, {37, 1}, {200, 1}, {-40, 1}, {80, 2}, {1, kKeys}};
  for (const auto& [row_step, step] : steps) {
    check::context = std::to_string(row_step) + " " + std::to_string(step);
    CHECK(same_bits(run_both(problem, copied(row_step, step, key, value), kAll), want));
  }
  check::context = "pages";
  AttentionParams<X> paged = copied(40, 1, key, value);
  const std::vector<std::int32_t> table = {0, 1, 2, 3, 4, 5, 6};
  paged.pages = {.table = table.data(), .stride = 7, .size = 10};
  paged.key.stride[0] = paged.value.stride[0] = 400;
  CHECK(same_bits(run_both(problem, paged, kAll), want));
}

TEST(one_key_for_all) {
  std::mt19937 random(11);
  const Shape shape{.rows = 20, .keys = 40, .depth = 32, .columns = 16};
  Problem<X> problem(Mechanism::sdpa, shape, {}, random);
  for (std::int64_t j = 1; j < 40; ++j) {
    std::copy_n(problem.key.row(0, 0, 0), 32, problem.key.row(0, 0, j));
    std::copy_n(problem.value.row(0, 0, 0), 16, problem.value.row(0, 0, j));
  }
  compare_tiles(problem);
  if (!has("avx512bf16")) return;
  AttentionParams<X> p = problem.params();
  p.key.stride[2] = p.value.stride[2] = 0;
  CHECK(same_bits(run_both(problem, p, kAll), run_plain(problem, problem.params(), kAll)));
}

// The machine code that ran above was the one with tile registers.
TEST(instructions_were_trapped) {
  CHECK(has("avx512amx") || !has("avx512bf16") || trapped_instructions() > 0);
}

}  // namespace
}  // namespace pyattn::testing

int main() {
  if (!pyattn::testing::trap_tile_instructions()) return 1;
  return check::run_all();
}

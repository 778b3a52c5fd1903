// Keys in pages, and sequences one behind the other: the bits of the same problem laid out plainly.
#include "attention_answer.h"
#include "core/parallel.h"

namespace pyattn::testing {
namespace {

// Keys and values of a problem in pages of `size`, in an order that means nothing. What no valid
// key lies in is NaN, and so are the pages that no entry owns; entries of the table without a valid
// key point nowhere.
template <class X>
struct Paged {
  Array<X> key, value;
  std::vector<std::int32_t> table;
  std::int64_t per_entry;
  std::int64_t size;

  Paged(const Problem<X>& problem, std::int64_t page, std::mt19937& random)
      : per_entry((problem.shape.keys + page - 1) / page), size(page) {
    const Shape& s = problem.shape;
    const std::int64_t count = s.batch * per_entry + 3;
    const X nan = stored<X>(kNan);
    key = {count, s.groups, size, s.depth, nan, nan};
    value = {count, s.groups, size, s.columns, nan, nan};
    std::vector<std::int32_t> order;
    for (std::int32_t i = 0; i < count; ++i) order.push_back(i);
    for (std::size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[random() % i]);
    table.assign(static_cast<std::size_t>(s.batch * per_entry), -1000000);
    for (std::int64_t b = 0; b < s.batch; ++b) {
      for (std::int64_t j = 0; j < problem.lengths.data()[b]; ++j) {
        const std::int64_t entry = b * per_entry + j / size;
        table.data()[entry] = order.data()[entry];
        for (std::int64_t g = 0; g < s.groups; ++g) {
          std::copy_n(problem.key.row(b, g, j), s.depth, key.row(table.data()[entry], g, j % size));
          std::copy_n(problem.value.row(b, g, j), s.columns,
                      value.row(table.data()[entry], g, j % size));
        }
      }
    }
  }

  AttentionParams<X> params(AttentionParams<X> p) const {
    p.key = key.view();
    p.value = value.view();
    p.keys = per_entry * size;
    p.pages = {.table = table.data(), .stride = per_entry, .size = size};
    return p;
  }
};

template <class X>
void pages(const Shape& shape, bool in_parts) {
  std::mt19937 random(1);
  Variant variant{.left = 650, .right = 0, .starts = true, .lengths = true};
  variant.slopes = variant.sinks = true;
  variant.softcap = 20;
  Problem<X> problem(Mechanism::sdpa, shape, variant, random);
  for (std::size_t b = 0; b < problem.lengths.size(); ++b) {
    problem.starts[b] = problem.lengths[b] - shape.rows;
  }
  problem.lengths[0] = shape.keys;
  problem.starts[0] = shape.keys - shape.rows;
  std::vector<Paged<X>> sizes;
  for (const std::int64_t size : {1, 16, 48, 100, 256}) sizes.emplace_back(problem, size, random);
  for_each_isa([&](const std::string& isa) {
    for (const int count : {1, 3}) {
      set_threads(count);
      const Answer<X> dense = run(problem, kOut);
      for (const Paged<X>& paged : sizes) {
        check::context = isa + " " + shape.text() + " pages of " + std::to_string(paged.size);
        parts_run = 0;
        CHECK(same_bits(run(problem, paged.params(problem.params()), kOut), dense));
        CHECK((parts_run > 0) == (in_parts && count > 1));
      }
    }
  });
  set_threads(2);
}
TEST(pages_decoding) {
  const Shape shape{
      .batch = 3, .heads = 8, .groups = 2, .rows = 1, .keys = 1300, .depth = 24, .columns = 20};
  pages<float>(shape, true);
  pages<double>(shape, true);
  pages<Half>(shape, true);
  pages<BFloat16>(shape, true);
}
TEST(pages_of_a_prompt) {
  const Shape shape{
      .batch = 4, .heads = 4, .groups = 2, .rows = 70, .keys = 170, .depth = 24, .columns = 20};
  pages<float>(shape, false);
  pages<BFloat16>(shape, false);
}

// The first `rows[b]` queries and `keys[b]` keys of each entry of a problem, one behind the other.
template <class X>
struct Packed {
  const Problem<X>& problem;
  std::vector<std::int64_t> query_offsets, key_offsets;
  Array<X> query, key, value;

  Packed(const Problem<X>& from, const std::vector<std::int64_t>& rows)
      : problem(from),
        query_offsets(offsets_of(rows)),
        key_offsets(offsets_of(from.lengths)),
        query(pack(from.query, query_offsets)),
        key(pack(from.key, key_offsets)),
        value(pack(from.value, key_offsets)) {}

  static std::vector<std::int64_t> offsets_of(const std::vector<std::int64_t>& counts) {
    std::vector<std::int64_t> offsets{0};
    for (const std::int64_t count : counts) offsets.push_back(offsets.back() + count);
    return offsets;
  }

  static Array<X> pack(const Array<X>& from, const std::vector<std::int64_t>& offsets) {
    const X nan = stored<X>(kNan);
    Array<X> to(1, from.shape[1], offsets.back(), from.shape[3], nan, nan);
    for (std::int64_t b = 0; b < from.shape[0]; ++b) {
      const std::int64_t first = offsets.data()[b];
      for (std::int64_t h = 0; h < from.shape[1]; ++h) {
        for (std::int64_t i = first; i < offsets.data()[b + 1]; ++i) {
          std::copy_n(from.row(b, h, i - first), from.shape[3], to.row(0, h, i));
        }
      }
    }
    return to;
  }

  // A view without a batch axis, in which the sequences are counted instead.
  template <class U, int Rank>
  View<U, Rank> of_sequences(View<U, Rank> view) const {
    view.shape[0] = problem.shape.batch;
    view.stride[0] = 0;
    return view;
  }

  Answer<X> run() const {
    AttentionParams<X> p = problem.params();
    p.query = of_sequences(query.view());
    p.key = of_sequences(key.view());
    p.value = of_sequences(value.view());
    p.keys = *std::max_element(problem.lengths.begin(), problem.lengths.end());
    p.kv_lengths = nullptr;
    p.query_offsets = query_offsets.data();
    p.key_offsets = key_offsets.data();
    Shape shape = problem.shape;
    shape.batch = 1;
    Answer<X> answer(shape, query_offsets.back(), kOut);
    answer.put_into(p, kOut);
    p.out = of_sequences(p.out);
    p.lse = of_sequences(p.lse);
    p.max = of_sequences(p.max);
    run_attention<X>(p, run_block<X, Mechanism::sdpa>, merge_block<X>,
                     static_cast<double>(shape.depth));
    CHECK(answer.gaps_are_intact());
    return answer;
  }

  bool same_as(const Answer<X>& dense, const Answer<X>& packed, std::int64_t b) const {
    const std::int64_t first = query_offsets.data()[b];
    for (std::int64_t h = 0; h < problem.shape.heads; ++h) {
      for (std::int64_t i = 0; i < query_offsets.data()[b + 1] - first; ++i) {
        if (!same_bits(dense.out.row(b, h, i), packed.out.row(0, h, first + i),
                       problem.shape.columns) ||
            !same_bits(&dense.lse.at(0, b, h, i), &packed.lse.at(0, 0, h, first + i), 1) ||
            !same_bits(&dense.max.at(0, b, h, i), &packed.max.at(0, 0, h, first + i), 1)) {
          return false;
        }
      }
    }
    return true;
  }
};

template <class X>
Problem<X> sequences(const std::vector<std::int64_t>& rows, const std::vector<std::int64_t>& keys,
                     const Variant& variant) {
  std::mt19937 random(2);
  const Shape shape{.batch = static_cast<std::int64_t>(rows.size()),
                    .heads = 4,
                    .groups = 2,
                    .rows = *std::max_element(rows.begin(), rows.end()),
                    .keys = *std::max_element(keys.begin(), keys.end()),
                    .depth = 24,
                    .columns = 20};
  Problem<X> problem(Mechanism::sdpa, shape, variant, random);
  problem.variant.lengths = true;
  problem.lengths = keys;
  for (std::size_t b = 0; b < rows.size(); ++b) problem.starts[b] = keys[b] - rows[b];
  return problem;
}

template <class X>
void packed(const std::vector<std::int64_t>& rows, const std::vector<std::int64_t>& keys) {
  Variant variant{.right = 0, .starts = true};
  for (const bool rich : {false, true}) {
    variant.slopes = variant.sinks = rich;
    variant.left = rich ? 100 : kUnbounded;
    variant.dropout = rich ? 0.25 : 0;
    const Problem<X> problem = sequences<X>(rows, keys, variant);
    const Packed<X> packed(problem, rows);
    for_each_isa([&](const std::string& isa) {
      for (const int count : {1, 3}) {
        check::context = isa + " " + std::to_string(count) + " threads";
        set_threads(count);
        const Answer<X> dense = run(problem, kOut);
        const Answer<X> got = packed.run();
        for (std::int64_t b = 0; b < problem.shape.batch; ++b) {
          CHECK(packed.same_as(dense, got, b));
        }
      }
    });
  }
  set_threads(2);
}
TEST(packed_sequences) {
  packed<float>({0, 5, 70, 0, 1, 130, 0}, {3, 9, 70, 0, 77, 131, 0});
  packed<double>({5, 70, 0, 1}, {9, 70, 4, 77});
  packed<Half>({5, 70, 0, 1}, {9, 70, 4, 77});
  packed<BFloat16>({5, 70, 0, 1}, {9, 70, 4, 77});
}
TEST(packed_decoding) {
  parts_run = 0;
  packed<float>({1, 1, 2, 1}, {1300, 20, 600, 0});
  CHECK(parts_run > 0);
}
TEST(nothing_to_pack) { packed<float>({0, 0}, {5, 0}); }

// Whatever is stored in one sequence, the others do not see it.
TEST(sequences_do_not_touch_each_other) {
  const std::vector<std::int64_t> rows{6, 70, 3};
  const std::vector<std::int64_t> keys{40, 90, 600};
  const Problem<float> problem = sequences<float>(rows, keys, {.starts = true});
  for (std::int64_t victim = 0; victim < 3; ++victim) {
    Problem<float> poisoned = problem;
    for (std::int64_t g = 0; g < 2; ++g) {
      for (std::int64_t j = 0; j < keys.data()[victim]; ++j) {
        std::fill_n(poisoned.key.row(victim, g, j), 24, static_cast<float>(kNan));
        std::fill_n(poisoned.value.row(victim, g, j), 20, static_cast<float>(kInfinity));
      }
    }
    const Packed<float> packed(poisoned, rows);
    for_each_isa([&](const std::string& isa) {
      check::context = isa;
      const Answer<float> clean = run(problem, kOut);
      const Answer<float> got = packed.run();
      for (std::int64_t b = 0; b < 3; ++b) CHECK(packed.same_as(clean, got, b) == (b != victim));
    });
  }
}

}  // namespace
}  // namespace pyattn::testing

TEST_MAIN

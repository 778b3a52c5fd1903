// The backward pass on every instruction set of this machine against the definition.
#include "core/parallel.h"
#include "gradient_answer.h"

namespace pyattn::testing {
namespace {

template <class T>
void compare_random(bool additive, double tolerance, int rounds) {
  for_each_isa([&](const std::string& isa) {
    std::mt19937 random(1);
    for (int round = 0; round < rounds; ++round) {
      const Sizes sizes = random_sizes(additive, random);
      check::context = isa + " " + sizes.text() + " round " + std::to_string(round);
      GradientProblem<T> problem(sizes, random_variant(additive, random), random);
      compare(problem, tolerance);
    }
  });
}

TEST(every_variant_float) { compare_random<float>(false, 5e-5, 80); }
TEST(every_variant_double) { compare_random<double>(false, 1e-13, 40); }
TEST(every_additive_variant_float) { compare_random<float>(true, 5e-5, 80); }
TEST(every_additive_variant_double) { compare_random<double>(true, 1e-13, 40); }

// Additive attention of up to kFewQueries queries has a kernel of its own, with narrower tiles.
template <class T>
void compare_few(double tolerance) {
  for_each_isa([&](const std::string& isa) {
    std::mt19937 random(4);
    for (int round = 0; round < 60; ++round) {
      Sizes sizes = random_sizes(true, random);
      sizes.rows = 1 + round % (kFewQueries + 1);
      check::context = isa + " " + sizes.text() + " round " + std::to_string(round);
      GradientProblem<T> problem(sizes, random_variant(true, random), random);
      compare(problem, tolerance);
    }
  });
}

TEST(few_queries_float) { compare_few<float>(5e-5); }
TEST(few_queries_double) { compare_few<double>(1e-13); }

// Several segments of rows and several chunks of keys.
TEST(long_sequences) {
  for_each_isa([](const std::string& isa) {
    std::mt19937 random(2);
    for (int round = 0; round < 5; ++round) {
      const bool additive = round == 4;
      const Sizes sizes{.heads = 2,
                        .groups = additive ? 2 : 1,
                        .rows = 1100,
                        .keys = 1200,
                        .depth = additive ? 3 : 17,
                        .columns = additive ? 2 : 9};
      Variant variant = random_variant(additive, random);
      variant.left = round % 2 == 0 ? 100 : kUnbounded;
      variant.right = round < 2 ? 0 : kUnbounded;
      variant.starts = round == 3;
      check::context = isa + " round " + std::to_string(round);
      GradientProblem<float> problem(sizes, variant, random);
      compare(problem, 5e-5);
    }
  });
}

TEST(empty_dimensions) {
  for_each_isa([](const std::string& isa) {
    std::mt19937 random(3);
    for (int axis = 0; axis < 5; ++axis) {
      Sizes sizes{.batch = 2, .rows = 5, .keys = 7, .depth = 4, .columns = 3};
      std::int64_t* lengths[] = {&sizes.batch, &sizes.rows, &sizes.keys, &sizes.depth,
                                 &sizes.columns};
      *lengths[axis] = 0;
      check::context = isa + " " + sizes.text();
      GradientProblem<float> problem(sizes, {.mask = MaskKind::additive}, random);
      problem.scale = 1;
      compare(problem, 1e-5);
    }
  });
}

// Which of the four arrays a number that is not finite goes into.
enum class Place { key, value, query, grad_out };

// What is stored in a row that a gradient does not depend on changes no bit of it; with additive
// attention a row may change which form of the tanh its block takes, and so the last bits.
void check_poison(Place place, float poison, const Variant& variant, std::int64_t rows) {
  std::mt19937 random(static_cast<unsigned>(rows));
  const Sizes sizes{.batch = 3,
                    .heads = 4,
                    .groups = variant.additive ? 4 : 2,
                    .rows = rows,
                    .keys = 131,
                    .depth = 19,
                    .columns = 21};
  GradientProblem<float> problem(sizes, variant, random);
  const Gradients<float> clean = problem.run();
  const bool of_keys = place == Place::key || place == Place::value;
  const std::int64_t hit = of_keys ? 40 : rows / 2;
  std::vector<float>* data[] = {&problem.key, &problem.value, &problem.query, &problem.grad_out};
  std::vector<float>& array = *data[static_cast<int>(place)];
  const std::int64_t length = of_keys ? sizes.keys : rows;
  const auto width = static_cast<std::int64_t>(array.size()) / length /
                     (sizes.batch * (of_keys ? sizes.groups : sizes.heads));
  for (std::size_t at = 0; at < array.size(); at += static_cast<std::size_t>(length * width)) {
    array[at + static_cast<std::size_t>(hit * width + 3)] = poison;
  }
  const Gradients<float> got = problem.run();
  const float slack = variant.additive ? 1e-5F : 0.0F;
  const auto same = [&](const std::vector<float>& a, const std::vector<float>& b, std::int64_t row,
                        std::int64_t count) {
    for (auto at = static_cast<std::size_t>(row * count); count > 0; --count, ++at) {
      if (!(std::abs(a[at] - b[at]) <= slack * (1 + std::abs(b[at])))) return false;
    }
    return true;
  };
  const std::int64_t shared = sizes.heads / sizes.groups;
  for (std::int64_t b = 0; b < sizes.batch; ++b) {
    for (std::int64_t g = 0; g < sizes.groups; ++g) {
      std::vector<bool> reached(static_cast<std::size_t>(sizes.keys));
      for (std::int64_t h = g * shared; h < (g + 1) * shared; ++h) {
        for (std::int64_t i = 0; i < rows; ++i) {
          const bool bad = of_keys ? problem.allowed(b, h, i, hit) : i == hit;
          const std::int64_t row = (b * sizes.heads + h) * rows + i;
          if (!bad) CHECK(same(got.query, clean.query, row, sizes.depth));
          for (std::int64_t j = 0; bad && j < sizes.keys; ++j) {
            if (problem.allowed(b, h, i, j)) reached[static_cast<std::size_t>(j)] = true;
          }
        }
      }
      for (std::int64_t j = 0; j < sizes.keys; ++j) {
        if (reached[static_cast<std::size_t>(j)]) continue;
        const std::int64_t row = (b * sizes.groups + g) * sizes.keys + j;
        CHECK(same(got.key, clean.key, row, sizes.depth));
        CHECK(same(got.value, clean.value, row, sizes.columns));
      }
    }
  }
}

TEST(what_is_masked_reaches_no_gradient) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const Variant variants[] = {{.right = 0},
                              {.mask = MaskKind::boolean, .lengths = true},
                              {.mask = MaskKind::additive, .left = 5, .grad_lse = true},
                              {.left = 3, .right = 0, .softcap = 2, .dropout = 0.2, .sinks = true},
                              {.additive = true, .mask = MaskKind::boolean, .right = 5},
                              {.additive = true, .left = 5, .spread = 12, .lengths = true}};
  for_each_isa([&](const std::string& isa) {
    for (const Variant& variant : variants) {
      for (const Place place : {Place::key, Place::value, Place::query, Place::grad_out}) {
        for (const float poison : {kNan, kInf}) {
          for (const std::int64_t rows : {1, 2, 70}) {
            check::context = isa + " place " + std::to_string(static_cast<int>(place)) + " mask " +
                             std::to_string(static_cast<int>(variant.mask)) + " rows " +
                             std::to_string(rows);
            check_poison(place, poison, variant, rows);
          }
        }
      }
    }
  });
}

// A copy of a dense (B, H, N, C) array with the last axis reversed and outermost.
std::vector<float> turn(View<const float, 4>& view) {
  const std::int64_t plane = view.shape[0] * view.shape[1] * view.shape[2];
  std::vector<float> copy(static_cast<std::size_t>(plane * view.shape[3]));
  for (std::int64_t row = 0; row < plane; ++row) {
    for (std::int64_t c = 0; c < view.shape[3]; ++c) {
      copy[static_cast<std::size_t>((view.shape[3] - 1 - c) * plane + row)] =
          view.data[row * view.shape[3] + c];
    }
  }
  view.stride[0] = view.shape[1] * view.shape[2];
  view.stride[1] = view.shape[2];
  view.stride[2] = 1;
  view.stride[3] = -plane;
  view.data = copy.data() + (view.shape[3] - 1) * plane;
  return copy;
}

void check_strides(bool additive, std::int64_t rows) {
  for_each_isa([&](const std::string& isa) {
    check::context = isa;
    std::mt19937 random(6);
    const Sizes sizes{.batch = 2,
                      .heads = 4,
                      .groups = additive ? 4 : 2,
                      .rows = rows,
                      .keys = 67,
                      .depth = 19,
                      .columns = 21};
    const Variant variant{.additive = additive, .mask = MaskKind::additive, .right = 3};
    GradientProblem<float> problem(sizes, variant, random);
    const Gradients<float> want = problem.run();
    BackwardParams<float> params = problem.backward();
    std::vector<std::vector<float>> copies;
    for (View<const float, 4>* view : {&params.forward.query, &params.forward.key,
                                       &params.forward.value, &params.out, &params.grad_out}) {
      copies.push_back(turn(*view));
    }
    CHECK(same_bits(problem.run(params), want));
  });
}

TEST(strides) { check_strides(false, 37); }
TEST(strides_additive) {
  for (const std::int64_t rows : {1, 2, 37}) check_strides(true, rows);
}

void check_bits(bool additive, std::int64_t rows) {
  for_each_isa([&](const std::string& isa) {
    check::context = isa;
    std::mt19937 random(7);
    const Sizes sizes{.batch = 4,
                      .heads = 4,
                      .groups = additive ? 4 : 2,
                      .rows = rows,
                      .keys = additive ? 301 : 601,
                      .depth = 20,
                      .columns = 13};
    Variant variant{.additive = additive,
                    .mask = MaskKind::additive,
                    .right = 80,
                    .sinks = true,
                    .lengths = true};
    variant.mask_axes[1] = variant.mask_axes[2] = false;
    GradientProblem<float> problem(sizes, variant, random);
    set_threads(1);
    const Gradients<float> one = problem.run();
    for (const int count : {2, 5}) {
      set_threads(count);
      for (int repeat = 0; repeat < 3; ++repeat) CHECK(same_bits(problem.run(), one));
    }
    GradientProblem<float> alone = problem;
    alone.n.batch = 1;
    const auto keep_third = [](auto& data) {
      const auto entry = static_cast<std::ptrdiff_t>(data.size()) / 4;
      data = {data.begin() + 2 * entry, data.begin() + 3 * entry};
    };
    for (auto* data :
         {&alone.query, &alone.key, &alone.value, &alone.bias, &alone.grad_out, &alone.grad_lse}) {
      keep_third(*data);
    }
    keep_third(alone.boolean);
    keep_third(alone.lengths);
    alone.mask_shape[0] = 1;
    Gradients<float> third = one;
    for (auto* data : {&third.query, &third.key, &third.value, &third.mask, &third.mass}) {
      keep_third(*data);
    }
    Gradients<float> found = alone.run();
    found.v = third.v;  // a sum over the batch
    CHECK(same_bits(found, third));
  });
  set_threads(2);
}

TEST(the_same_bits_for_any_threads_and_any_batch) { check_bits(false, 1030); }
TEST(the_same_bits_for_any_threads_and_any_batch_additive) {
  for (const std::int64_t rows : {1, 2, 201}) check_bits(true, rows);
}

// Sequences of different lengths, one behind the other: each has the gradients that it has alone.
TEST(packed_sequences) {
  for_each_isa([](const std::string& isa) {
    check::context = isa;
    std::mt19937 random(8);
    const Variant variant{.right = 2, .slopes = true, .sinks = true, .grad_lse = true};
    const std::int64_t rows[] = {0, 70, 70, 75, 600};  // where sequences start and end
    const std::int64_t keys[] = {0, 130, 140, 140, 700};
    const Sizes sizes{
        .heads = 4, .groups = 2, .rows = 600, .keys = 700, .depth = 20, .columns = 13};
    GradientProblem<float> packed(sizes, variant, random);
    packed.run_forward();
    std::vector<GradientProblem<float>> single;
    std::vector<Gradients<float>> want;
    const auto cut = [](const std::vector<float>& data, std::int64_t heads, std::int64_t length,
                        std::int64_t begin, std::int64_t end) {
      const auto width = static_cast<std::int64_t>(data.size()) / (heads * length);
      std::vector<float> part;
      for (std::int64_t h = 0; h < heads; ++h) {
        const auto start = data.begin() + (h * length) * width;
        part.insert(part.end(), start + begin * width, start + end * width);
      }
      return part;
    };
    for (int b = 0; b < 4; ++b) {
      GradientProblem<float> one = packed;
      one.n.rows = rows[b + 1] - rows[b];
      one.n.keys = keys[b + 1] - keys[b];
      for (auto* data : {&one.query, &one.grad_out, &one.grad_lse}) {
        *data = cut(*data, 4, 600, rows[b], rows[b + 1]);
      }
      for (auto* data : {&one.key, &one.value}) *data = cut(*data, 2, 700, keys[b], keys[b + 1]);
      want.push_back(one.run());
      single.push_back(one);
      // The results of the forward pass, which test_attention checks, go to their place.
      const auto put = [&](std::vector<float>& to, const std::vector<float>& from,
                           std::int64_t width) {
        for (std::int64_t h = 0; h < 4; ++h) {
          std::copy_n(from.begin() + h * one.n.rows * width, one.n.rows * width,
                      to.begin() + (h * 600 + rows[b]) * width);
        }
      };
      put(packed.out, one.out, 13);
      put(packed.lse, one.lse, 1);
    }
    BackwardParams<float> params = packed.backward();
    params.forward.batch = 4;
    params.forward.query_offsets = rows;
    params.forward.key_offsets = keys;
    for (View<const float, 4>* view : {&params.forward.query, &params.forward.key,
                                       &params.forward.value, &params.out, &params.grad_out}) {
      view->stride[0] = 0;
    }
    params.forward.given_lse.stride[0] = params.grad_lse.stride[0] = 0;
    Gradients<float> got;
    params.grad_query = dense_output(got.query, 1, 4, 600, 20);
    params.grad_key = dense_output(got.key, 1, 2, 700, 20);
    params.grad_value = dense_output(got.value, 1, 2, 700, 13);
    params.grad_query.stride[0] = params.grad_key.stride[0] = params.grad_value.stride[0] = 0;
    run_backward<float>(params, attention_kernels_of<float>(kernels()).backward);
    for (std::size_t b = 0; b < 4; ++b) {
      CHECK(same_bits(cut(got.query, 4, 600, rows[b], rows[b + 1]), want[b].query));
      CHECK(same_bits(cut(got.key, 2, 700, keys[b], keys[b + 1]), want[b].key));
      CHECK(same_bits(cut(got.value, 2, 700, keys[b], keys[b + 1]), want[b].value));
    }
  });
}

// Leaving a gradient out changes no bit of the others.
void check_wanted(bool additive, std::int64_t rows) {
  for_each_isa([&](const std::string& isa) {
    check::context = isa;
    std::mt19937 random(9);
    const Sizes sizes{.rows = rows, .keys = 90, .depth = 16, .columns = 24};
    GradientProblem<float> problem(sizes, {.additive = additive, .right = 20}, random);
    const Gradients<float> all = problem.run();
    const AttentionKernels<float>& kernel = attention_kernels_of<float>(kernels());
    const BackwardKernels<float>& table = additive ? kernel.additive_backward : kernel.backward;
    for (int wanted = 1; wanted < (additive ? 16 : 8); ++wanted) {
      BackwardParams<float> params = problem.backward();
      Gradients<float> got;
      if (wanted & 1) params.grad_query = dense_output(got.query, 1, 1, rows, 16);
      if (wanted & 2) params.grad_key = dense_output(got.key, 1, 1, 90, 16);
      if (wanted & 4) params.grad_value = dense_output(got.value, 1, 1, 90, 24);
      got.v.resize(16);
      if (wanted & 8) params.grad_v = got.v.data();
      run_backward<float>(params, table);
      if (wanted & 8) CHECK(same_bits(got.v, all.v));
      if (wanted & 1) CHECK(same_bits(got.query, all.query));
      if (wanted & 2) CHECK(same_bits(got.key, all.key));
      if (wanted & 4) CHECK(same_bits(got.value, all.value));
    }
  });
}

TEST(only_what_is_wanted) { check_wanted(false, 70); }
TEST(only_what_is_wanted_additive) {
  for (const std::int64_t rows : {1, 2, 70}) check_wanted(true, rows);
}

}  // namespace
}  // namespace pyattn::testing

TEST_MAIN

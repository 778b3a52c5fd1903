// Rotary embedding on every instruction set against complex multiplication in double.
#include <cmath>
#include <complex>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "core/rotary.h"
#include "sample.h"

namespace pyattn {
namespace {

using testing::sample;

constexpr std::int64_t kPositions = 9;

// (B, T, H, D) in memory, so that the heads are strided; with `gap`, so are the numbers of a head.
template <class T>
struct Problem {
  std::int64_t batch;
  std::int64_t heads;
  std::int64_t length;
  std::int64_t size;
  std::int64_t pairs;
  std::int64_t gap = 1;
  std::vector<T> x = sample<T>(batch * heads * length * size * gap, 1);
  std::vector<T> cosine = sample<T>(kPositions * pairs, 2);
  std::vector<T> sine = sample<T>(kPositions * pairs, 3);
  std::vector<std::int64_t> positions = {};
  std::vector<T> out = std::vector<T>(static_cast<std::size_t>(batch * heads * length * size),
                                      std::numeric_limits<T>::quiet_NaN());

  RotaryParams<T> params(bool interleaved, bool inverse) {
    positions.clear();
    for (std::int64_t i = 0; i < batch * length; ++i) positions.push_back(i * 5 % kPositions);
    const std::int64_t row = heads * size;
    const std::int64_t shape[3] = {batch, kPositions, pairs};
    return {.input = {.data = x.data(),
                      .shape = {batch, heads, length, size},
                      .stride = {length * row * gap, size * gap, row * gap, gap}},
            .output = {.data = out.data(),
                       .shape = {batch, heads, length, size},
                       .stride = {length * row, length * size, size, 1}},
            .cosine = {.data = cosine.data(),
                       .shape = {shape[0], shape[1], shape[2]},
                       .stride = {0, pairs, 1}},
            .sine = {.data = sine.data(),
                     .shape = {shape[0], shape[1], shape[2]},
                     .stride = {0, pairs, 1}},
            .positions = positions.data(),
            .interleaved = interleaved,
            .inverse = inverse};
  }

  std::vector<T> run(bool interleaved, bool inverse) {
    run_rotary<T>(params(interleaved, inverse));
    return out;
  }

  double given(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t d) const {
    return static_cast<double>(
        x[static_cast<std::size_t>((((b * length + t) * heads + h) * size + d) * gap)]);
  }
  double found(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t d) const {
    return static_cast<double>(
        out[static_cast<std::size_t>(((b * heads + h) * length + t) * size + d)]);
  }

  void check_row(std::int64_t b, std::int64_t h, std::int64_t t, bool interleaved,
                 bool inverse) const {
    const double bound = 16 * static_cast<double>(std::numeric_limits<T>::epsilon());
    const std::int64_t position = positions[static_cast<std::size_t>(b * length + t)];
    for (std::int64_t k = 0; k < pairs; ++k) {
      const auto entry = static_cast<std::size_t>(position * pairs + k);
      const std::complex<double> angle(static_cast<double>(cosine[entry]),
                                       static_cast<double>(inverse ? -sine[entry] : sine[entry]));
      const std::int64_t first = interleaved ? 2 * k : k;
      const std::int64_t second = interleaved ? 2 * k + 1 : pairs + k;
      const auto want = angle * std::complex<double>(given(b, h, t, first), given(b, h, t, second));
      CHECK(std::abs(found(b, h, t, first) - want.real()) < bound);
      CHECK(std::abs(found(b, h, t, second) - want.imag()) < bound);
    }
    for (std::int64_t d = 2 * pairs; d < size; ++d) CHECK(found(b, h, t, d) == given(b, h, t, d));
  }

  void check_all() {
    for (int kind = 0; kind < 4; ++kind) {
      const bool interleaved = kind % 2 != 0;
      run(interleaved, kind / 2 != 0);
      for (std::int64_t i = 0; i < batch * heads * length; ++i) {
        check_row(i / (heads * length), i / length % heads, i % length, interleaved, kind / 2 != 0);
      }
    }
  }
};

template <class T>
void check_sizes() {
  for (const std::string& name : available_isas()) {
    set_isa(name);
    for (const std::int64_t pairs : {0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 65, 2500}) {
      for (const std::int64_t more : {0, 1, 6}) {
        for (const std::int64_t gap : {1, 3}) {
          check::context = name + " pairs " + std::to_string(pairs) + " more " +
                           std::to_string(more) + " gap " + std::to_string(gap);
          Problem<T> problem{.batch = 2,
                             .heads = 3,
                             .length = 5,
                             .size = 2 * pairs + more,
                             .pairs = pairs,
                             .gap = gap};
          problem.check_all();
        }
      }
    }
  }
}

TEST(float_sizes) { check_sizes<float>(); }
TEST(double_sizes) { check_sizes<double>(); }

TEST(threads_do_not_change_a_bit) {
  set_isa(available_isas().front());
  for (const bool interleaved : {false, true}) {
    set_threads(1);
    Problem<float> alone{.batch = 3, .heads = 5, .length = 333, .size = 68, .pairs = 33};
    const std::vector<float> want = alone.run(interleaved, false);
    alone.check_all();
    set_threads(3);
    Problem<float> together{.batch = 3, .heads = 5, .length = 333, .size = 68, .pairs = 33};
    CHECK(together.run(interleaved, false) == want);
  }
}

// Caches of their own for each batch entry, and strided.
TEST(without_positions) {
  Problem<double> problem{.batch = 2, .heads = 2, .length = 4, .size = 6, .pairs = 3};
  RotaryParams<double> params = problem.params(false, false);
  const std::vector<double> caches = sample<double>(2 * 4 * 3 * 2, 4);
  params.positions = nullptr;
  params.cosine = {.data = caches.data(), .shape = {2, 4, 3}, .stride = {24, 6, 2}};
  params.sine = {.data = caches.data() + 1, .shape = {2, 4, 3}, .stride = {24, 6, 2}};
  run_rotary<double>(params);
  for (std::int64_t i = 0; i < 2 * 2 * 4 * 3; ++i) {
    const std::int64_t b = i / 24;
    const std::int64_t h = i / 12 % 2;
    const std::int64_t t = i / 3 % 4;
    const std::int64_t k = i % 3;
    const double c = caches[static_cast<std::size_t>(b * 24 + t * 6 + k * 2)];
    const double s = caches[static_cast<std::size_t>(b * 24 + t * 6 + k * 2 + 1)];
    const double u = problem.given(b, h, t, k);
    const double v = problem.given(b, h, t, k + 3);
    CHECK(std::abs(problem.found(b, h, t, k) - (u * c - v * s)) < 1e-14);
    CHECK(std::abs(problem.found(b, h, t, k + 3) - (u * s + v * c)) < 1e-14);
  }
}

}  // namespace
}  // namespace pyattn

TEST_MAIN

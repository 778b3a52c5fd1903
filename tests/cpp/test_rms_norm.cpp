// RMS normalisation and its gradient on every instruction set against the formulas in double.
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "core/rowwise.h"
#include "sample.h"

namespace pyattn {
namespace {

using testing::sample;

constexpr double kEpsilon = 1e-3;

template <class T>
StridedArray<T> dense(const std::vector<T>& data, std::vector<std::int64_t> shape) {
  StridedArray<T> array{.data = data.data(), .shape = std::move(shape), .stride = {}};
  array.stride.resize(array.shape.size());
  std::int64_t step = 1;
  for (std::size_t axis = array.shape.size(); axis-- > 0;) {
    array.stride[axis] = step;
    step *= array.shape[axis];
  }
  return array;
}

template <class T>
struct Problem {
  std::int64_t rows;
  std::int64_t length;
  std::vector<T> x = sample<T>(rows * length, 1);
  std::vector<T> g = sample<T>(rows * length, 2);
  std::vector<T> scale = sample<T>(length, 3);
  std::vector<T> out = std::vector<T>(x.size(), std::numeric_limits<T>::quiet_NaN());
  std::vector<T> dx = out;
  std::vector<T> dscale = std::vector<T>(scale.size(), std::numeric_limits<T>::quiet_NaN());

  void run() {
    const auto input = dense(x, {rows, length});
    const auto scales = dense(scale, {length});
    run_rms_norm<T>(input, scales, static_cast<T>(kEpsilon), out.data());
    run_rms_norm_gradient<T>({.input = input,
                              .gradient = dense(g, {rows, length}),
                              .scale = scales,
                              .epsilon = static_cast<T>(kEpsilon),
                              .input_gradient = dx.data(),
                              .scale_gradient = dscale.data()});
  }

  double at(const std::vector<T>& data, std::int64_t row, std::int64_t i) const {
    return static_cast<double>(data[static_cast<std::size_t>(row * length + i)]);
  }

  void check_row(std::int64_t row, std::vector<double>& sums) const {
    double squares = 0;
    double along = 0;
    for (std::int64_t i = 0; i < length; ++i) {
      squares += at(x, row, i) * at(x, row, i);
      along += at(x, row, i) * at(g, row, i) * at(scale, 0, i);
    }
    const double count = static_cast<double>(length);
    const double r = 1 / std::sqrt(squares / count + kEpsilon);
    const double bound = 40 * static_cast<double>(std::numeric_limits<T>::epsilon());
    for (std::int64_t i = 0; i < length; ++i) {
      const double unit = at(x, row, i) * r;
      CHECK(std::abs(at(out, row, i) - unit * at(scale, 0, i)) < bound * (1 + std::abs(unit)));
      const double want = r * at(g, row, i) * at(scale, 0, i) - unit * r * r * along / count;
      CHECK(std::abs(at(dx, row, i) - want) < bound * (1 + r * r * r + std::abs(want)));
      sums[static_cast<std::size_t>(i)] += at(g, row, i) * unit;
    }
  }

  void check() const {
    std::vector<double> sums(scale.size());
    for (std::int64_t row = 0; row < rows; ++row) check_row(row, sums);
    const double bound = 40 * static_cast<double>(std::numeric_limits<T>::epsilon()) *
                         std::sqrt(static_cast<double>(rows));
    for (std::int64_t i = 0; i < length; ++i) {
      const double want = sums[static_cast<std::size_t>(i)];
      CHECK(std::abs(at(dscale, 0, i) - want) < bound * (4 + std::abs(want)));
    }
  }
};

template <class T>
void check_lengths() {
  for (const std::string& name : available_isas()) {
    set_isa(name);
    for (const std::int64_t length :
         {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 129, 5000}) {
      check::context = name + " length " + std::to_string(length);
      Problem<T> problem{.rows = 5, .length = length};
      problem.run();
      problem.check();
    }
  }
}

TEST(float_rows) { check_lengths<float>(); }
TEST(double_rows) { check_lengths<double>(); }

TEST(threads_do_not_change_a_bit) {
  set_isa(available_isas().front());
  for (const std::int64_t length : {33, 5000}) {
    set_threads(1);
    Problem<float> alone{.rows = 700, .length = length};
    alone.run();
    alone.check();
    set_threads(3);
    Problem<float> together{.rows = 700, .length = length};
    together.run();
    CHECK(alone.out == together.out && alone.dx == together.dx && alone.dscale == together.dscale);
  }
}

// Transposed arrays give the bits of their dense copies, with a scale that is repeated.
TEST(strided_rows) {
  set_threads(3);
  const std::int64_t rows = 300;
  const std::int64_t length = 65;
  Problem<float> want{.rows = rows, .length = length};
  want.scale.assign(want.scale.size(), want.scale[0]);
  want.run();
  std::vector<float> x(want.x.size());
  std::vector<float> g(want.g.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const std::size_t at = i % static_cast<std::size_t>(length) * static_cast<std::size_t>(rows) +
                           i / static_cast<std::size_t>(length);
    x[at] = want.x[i];
    g[at] = want.g[i];
  }
  const StridedArray<float> input{.data = x.data(), .shape = {rows, length}, .stride = {1, rows}};
  StridedArray<float> gradient = input;
  gradient.data = g.data();
  const StridedArray<float> scale{.data = want.scale.data(), .shape = {length}, .stride = {0}};
  Problem<float> got{.rows = rows, .length = length};
  run_rms_norm<float>(input, scale, static_cast<float>(kEpsilon), got.out.data());
  run_rms_norm_gradient<float>({.input = input,
                                .gradient = gradient,
                                .scale = scale,
                                .epsilon = static_cast<float>(kEpsilon),
                                .input_gradient = got.dx.data(),
                                .scale_gradient = got.dscale.data()});
  CHECK(got.out == want.out && got.dx == want.dx && got.dscale == want.dscale);
}

TEST(nothing_to_do) {
  const std::vector<float> none;
  std::vector<float> dscale(3, 7.0F);
  run_rms_norm_gradient<float>({.input = dense(none, {0, 3}),
                                .gradient = dense(none, {0, 3}),
                                .scale = dense(dscale, {3}),
                                .epsilon = 1.0F,
                                .scale_gradient = dscale.data()});
  CHECK(dscale == std::vector<float>(3, 0.0F));
  run_rms_norm<float>(dense(none, {4, 0}), dense(none, {0}), 1.0F, nullptr);
}

}  // namespace
}  // namespace pyattn

TEST_MAIN

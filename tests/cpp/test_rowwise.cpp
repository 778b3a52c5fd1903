// Element-wise and row-wise kernels on every instruction set against the C library in double.
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "core/rowwise.h"

namespace pyattn {
namespace {

template <class T>
constexpr double kEpsilon = static_cast<double>(std::numeric_limits<T>::epsilon());

template <class T>
std::vector<T> sample(std::size_t count, double size) {
  std::mt19937 random(static_cast<unsigned>(count));
  std::normal_distribution<double> normal(0, size);
  std::vector<T> data(count);
  for (T& x : data) x = static_cast<T>(normal(random));
  return data;
}

template <class T>
StridedArray<T> dense(const std::vector<T>& data, std::int64_t rows, std::int64_t length) {
  return {.data = data.data(), .shape = {rows, length}, .stride = {length, 1}};
}

template <class Body>
void for_each_isa_and_length(Body body) {
  for (const std::string& name : available_isas()) {
    set_isa(name);
    for (const std::int64_t length :
         {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 129, 5000}) {
      check::context = name + " length " + std::to_string(length);
      body(length);
    }
  }
}

template <class T>
void check_pointwise() {
  for_each_isa_and_length([](std::int64_t length) {
    const std::vector<T> x = sample<T>(static_cast<std::size_t>(length), 3);
    std::vector<T> out(x.size(), std::numeric_limits<T>::quiet_NaN());
    run_pointwise<T>(dense(x, 1, length), out.data(), kernels_of<T>(kernels()).erf);
    for (std::size_t i = 0; i < x.size(); ++i) {
      CHECK(std::abs(static_cast<double>(out[i]) - std::erf(static_cast<double>(x[i]))) <
            2 * kEpsilon<T>);
    }
    run_pointwise<T>(dense(x, 1, length), out.data(), kernels_of<T>(kernels()).gelu);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const auto value = static_cast<double>(x[i]);
      const double want = value * (1 + std::erf(value / std::sqrt(2.0))) / 2;
      CHECK(std::abs(static_cast<double>(out[i]) - want) < 2 * kEpsilon<T> * (1 + std::abs(value)));
    }
  });
}

TEST(pointwise_float) { check_pointwise<float>(); }
TEST(pointwise_double) { check_pointwise<double>(); }

TEST(pointwise_special_values) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> x = {0.0F, -0.0F, infinity, -infinity, std::nanf(""), 3e38F, 1e-45F};
  for (const std::string& name : available_isas()) {
    set_isa(name);
    check::context = name;
    std::vector<float> out(x.size());
    run_pointwise<float>(dense(x, 1, 7), out.data(), kernels().f32.erf);
    CHECK(out[0] == 0 && out[1] == 0 && std::signbit(out[1]));
    CHECK(out[2] == 1 && out[3] == -1 && std::isnan(out[4]) && out[5] == 1);
  }
}

template <class T>
void check_rows() {
  for_each_isa_and_length([](std::int64_t length) {
    const auto n = static_cast<std::size_t>(length);
    const std::vector<T> x = sample<T>(3 * n, 2);
    const std::vector<T> weight = sample<T>(n, 1);
    std::vector<T> out(x.size(), std::numeric_limits<T>::quiet_NaN());
    run_softmax<T>(dense(x, 3, length), out.data());
    std::vector<T> normal(x.size(), std::numeric_limits<T>::quiet_NaN());
    run_layer_norm<T>(dense(x, 3, length), normal.data(),
                      {.weight = weight.data(), .bias = weight.data(), .eps = T(1e-5)});
    for (std::size_t r = 0; r < 3; ++r) {
      double sum = 0;
      double mean = 0;
      for (std::size_t i = 0; i < n; ++i) {
        sum += std::exp(static_cast<double>(x[r * n + i]));
        mean += static_cast<double>(x[r * n + i]) / static_cast<double>(n);
      }
      double variance = 0;
      for (std::size_t i = 0; i < n; ++i) {
        variance += std::pow(static_cast<double>(x[r * n + i]) - mean, 2) / static_cast<double>(n);
      }
      for (std::size_t i = 0; i < n; ++i) {
        const auto value = static_cast<double>(x[r * n + i]);
        CHECK(std::abs(static_cast<double>(out[r * n + i]) - std::exp(value) / sum) <
              4 * kEpsilon<T>);
        const auto w = static_cast<double>(weight[i]);
        const double want = (value - mean) / std::sqrt(variance + 1e-5) * w + w;
        CHECK(std::abs(static_cast<double>(normal[r * n + i]) - want) <
              200 * kEpsilon<T> * (1 + std::abs(want)));
      }
    }
  });
}

TEST(rows_float) { check_rows<float>(); }
TEST(rows_double) { check_rows<double>(); }

// A transposed, reversed view gives the bits of its dense copy, in several tasks.
TEST(strided_input) {
  set_isa(available_isas().front());
  set_threads(3);
  const std::int64_t rows = 700;
  const std::int64_t length = 33;
  const std::vector<float> x = sample<float>(static_cast<std::size_t>(rows * length), 2);
  const StridedArray<float> view{.data = x.data() + rows * length - 1,
                                 .shape = {7, rows / 7, length},
                                 .stride = {-rows / 7, -1, -rows}};
  std::vector<float> copy;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t i = 0; i < length; ++i) {
      copy.push_back(x[static_cast<std::size_t>(rows * length - 1 - r - i * rows)]);
    }
  }
  std::vector<float> want(copy.size());
  std::vector<float> got(copy.size());
  run_softmax<float>(dense(copy, rows, length), want.data());
  run_softmax<float>(view, got.data());
  CHECK(got == want);
  run_pointwise<float>(dense(copy, rows, length), want.data(), kernels().f32.gelu);
  run_pointwise<float>(view, got.data(), kernels().f32.gelu);
  CHECK(got == want);
}

}  // namespace
}  // namespace pyattn

TEST_MAIN

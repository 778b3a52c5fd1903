// Registers, elementary functions and storage types on every instruction set.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "tested_isas.h"

namespace pyattn::testing {
namespace {

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();
template <class T>
constexpr T kNan = std::numeric_limits<T>::quiet_NaN();

// Calls body(VecFunctions<T>) for both element types of every instruction set of this machine.
template <class Body>
void for_each_vec(Body body) {
  for (const IsaFunctions* isa : functions()) {
    check::context = std::string(isa->name) + " float";
    body(isa->f32);
    check::context = std::string(isa->name) + " double";
    body(isa->f64);
  }
}

template <class T>
std::vector<T> normal_sample(std::size_t count) {
  std::mt19937 random(5);
  std::normal_distribution<double> normal;
  std::vector<T> data(count);
  for (T& x : data) x = static_cast<T>(normal(random));
  return data;
}

TEST(every_instruction_set_is_tested) {
  std::vector<std::string> tested;
  for (const IsaFunctions* isa : functions()) tested.emplace_back(isa->name);
  CHECK(!tested.empty() && tested.back() == "scalar");
#ifdef PYATTN_X86
  for (const char* name : {"avx512", "avx2"}) {
    const auto names = available_isas();
    const bool has = std::find(names.begin(), names.end(), name) != names.end();
    CHECK(has == (std::find(tested.begin(), tested.end(), name) != tested.end()));
  }
#endif
}

// A count reads and writes nothing behind it, and the lanes left over are 0.
TEST(counts) {
  for_each_vec([]<class T>(const VecFunctions<T>& f) {
    for (int count = 0; count <= 3 * f.lanes; ++count) {
      const auto n = static_cast<std::size_t>(count);
      const std::vector<T> from = normal_sample<T>(n);  // the sanitizer sees its end
      std::vector<T> to(n + 1, T(7));
      f.copy(from.data(), to.data(), count);
      CHECK(std::equal(from.begin(), from.end(), to.begin()) && to[n] == T(7));
    }
  });
}

TEST(arithmetic_and_comparisons) {
  for_each_vec([]<class T>(const VecFunctions<T>& f) {
    const auto n = static_cast<std::size_t>(f.lanes);
    std::vector<T> a = normal_sample<T>(3 * n);
    const std::vector<T> b(a.begin() + f.lanes, a.begin() + 2 * f.lanes);
    const std::vector<T> c(a.begin() + 2 * f.lanes, a.end());
    a.resize(n);
    a[1] = b[1];
    std::vector<T> fma(n), fnma(n), top(n), low(n);
    f.fma(a.data(), b.data(), c.data(), fma.data());
    f.fnma(a.data(), b.data(), c.data(), fnma.data());
    f.max(a.data(), b.data(), top.data());
    f.min(a.data(), b.data(), low.data());
    for (std::size_t i = 0; i < n; ++i) {
      const T tolerance = 8 * std::numeric_limits<T>::epsilon();
      CHECK(std::abs(fma[i] - (a[i] * b[i] + c[i])) < tolerance);
      CHECK(std::abs(fnma[i] - (c[i] - a[i] * b[i])) < tolerance);
      CHECK(top[i] == std::max(a[i], b[i]) && low[i] == std::min(a[i], b[i]));
      CHECK((f.less(a.data(), b.data()) >> i & 1) == (a[i] < b[i] ? 1U : 0U));
      CHECK((f.equal(a.data(), b.data()) >> i & 1) == (i == 1 ? 1U : 0U));
    }
    CHECK(f.less(a.data(), b.data()) >> n == 0);
    // The second operand wins where either is NaN, and no comparison holds.
    const std::vector<T> nan(n, kNan<T>);
    f.max(a.data(), nan.data(), top.data());
    f.min(a.data(), nan.data(), low.data());
    CHECK(std::isnan(top[0]) && std::isnan(low[0]));
    f.max(nan.data(), a.data(), top.data());
    f.min(nan.data(), a.data(), low.data());
    CHECK(top == a && low == a);
    CHECK(f.less(a.data(), nan.data()) == 0 && f.less(nan.data(), a.data()) == 0);
    CHECK(f.equal(nan.data(), nan.data()) == 0);
  });
}

TEST(masks) {
  for_each_vec([]<class T>(const VecFunctions<T>& f) {
    const auto n = static_cast<std::size_t>(f.lanes);
    const std::vector<T> yes(n, T(1));
    const std::vector<T> no(n, T(2));
    std::vector<T> got(n);
    for (std::uint64_t bits = 0; bits < std::uint64_t{1} << n; ++bits) {
      const std::uint64_t above = ~std::uint64_t{0} << n;  // other lanes' bits are ignored
      CHECK(f.mask_bits(bits | above) == bits);
      f.select(bits | above, yes.data(), no.data(), got.data());
      for (std::size_t i = 0; i < n; ++i) CHECK(got[i] == ((bits >> i & 1) != 0 ? T(1) : T(2)));
    }
  });
}

TEST(transposition) {
  for_each_vec([]<class T>(const VecFunctions<T>& f) {
    const auto n = static_cast<std::size_t>(f.lanes);
    std::vector<T> square(n * n);
    for (std::size_t i = 0; i < square.size(); ++i) square[i] = static_cast<T>(i);
    f.transpose(square.data());
    for (std::size_t i = 0; i < square.size(); ++i) {
      CHECK(square[i] == static_cast<T>(i % n * n + i / n));
    }
  });
}

// Whole numbers, whose sums are exact in any order.
TEST(sums_and_maxima_of_lanes) {
  for_each_vec([]<class T>(const VecFunctions<T>& f) {
    const auto n = static_cast<std::size_t>(f.lanes);
    std::vector<T> square(n * n);
    for (std::size_t i = 0; i < square.size(); ++i) square[i] = static_cast<T>((i * 37 + 5) % 101);
    std::vector<T> sums(n);
    f.sum_each(square.data(), sums.data());
    for (std::size_t i = 0; i < n; ++i) {
      const T* row = square.data() + i * n;
      CHECK(sums[i] == std::accumulate(row, row + n, T(0)));
      CHECK(f.sum_lanes(row) == sums[i]);
      CHECK(f.max_lanes(row) == *std::max_element(row, row + n));
    }
  });
}

// |got - want| in units in the last place of want.
template <class T>
double ulps(T got, long double want) {
  const T rounded = static_cast<T>(want);
  if (got == rounded) return 0;
  const T size = std::abs(rounded);
  const T unit = std::max(std::nextafter(size, kInfinity<T>) - size,
                          std::numeric_limits<T>::min() * std::numeric_limits<T>::epsilon());
  return static_cast<double>(std::abs(static_cast<long double>(got) - want) /
                             static_cast<long double>(unit));
}

template <class T, class Reference>
double worst(typename VecFunctions<T>::Pointwise function, const std::vector<T>& x,
             Reference reference) {
  std::vector<T> y(x.size(), kNan<T>);
  function(x.data(), y.data(), static_cast<std::int64_t>(x.size()));
  double most = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double error = ulps(y[i], reference(static_cast<long double>(x[i])));
    most = std::isnan(error) ? kInfinity<double> : std::max(most, error);
  }
  return most;
}

template <class T>
std::vector<T> between(double low, double high, std::size_t count) {
  std::vector<T> x(count);
  std::mt19937_64 random(9);
  std::uniform_real_distribution<double> uniform(low, high);
  for (T& value : x) value = static_cast<T>(uniform(random));
  return x;
}

TEST(exponential) {
  const auto exact = [](long double x) { return std::exp(x); };
  for_each_vec([&]<class T>(const VecFunctions<T>& f) {
    const double limit = sizeof(T) == 8 ? 708.39 : 87;
    for (const double range : {1e-3, 1.0, 30.0, limit}) {
      const std::vector<T> x = between<T>(-range, range, 60000);
      // In float it takes a fused multiply-add to know what x * log2 e lost.
      const bool loses = sizeof(T) == 4 && check::context.starts_with("scalar");
      CHECK(worst<T>(f.exp_accurate, x, exact) <= (loses ? 2 + range : 2));
      if (sizeof(T) == 8 || range <= 1) CHECK(worst<T>(f.exp_fast, x, exact) <= 2);
    }
    const std::vector<T> x = {T(0), -T(0), -kInfinity<T>, kNan<T>, T(-1e4), -T(3e38)};
    std::vector<T> y(x.size());
    f.exp_fast(x.data(), y.data(), static_cast<std::int64_t>(x.size()));
    CHECK(y[0] == 1 && y[1] == 1 && y[2] == 0 && std::isnan(y[3]) && y[4] == 0 && y[5] == 0);
  });
}

// Below the normal range: flushed, or right to the spacing of the subnormal numbers.
TEST(exponential_of_very_negative_numbers) {
  for (const IsaFunctions* isa : functions()) {
    check::context = isa->name;
    const std::vector<double> x = between<double>(-760, -708.39, 20000);
    std::vector<double> y(x.size());
    isa->f64.exp_fast(x.data(), y.data(), static_cast<std::int64_t>(x.size()));
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double want = std::exp(x[i]);
      CHECK(y[i] == 0 || std::abs(y[i] - want) <= 2 * std::numeric_limits<double>::denorm_min());
      if (want >= std::numeric_limits<double>::min()) CHECK(y[i] != 0);
    }
  }
}

TEST(reciprocal) {
  const auto exact = [](long double x) { return 1 / x; };
  for_each_vec([&]<class T>(const VecFunctions<T>& f) {
    for (const double range : {2.0, 1e3, 1e30}) {
      CHECK(worst<T>(f.reciprocal, between<T>(1, range, 30000), exact) <= 2);
    }
  });
}

TEST(hyperbolic_tangent_of_float) {
  // Every 1009th float, which leaves no binade out.
  std::vector<float> x;
  for (std::uint32_t bits = 0; bits < 0x7f800000; bits += 1009) {
    x.push_back(std::bit_cast<float>(bits));
  }
  std::vector<float> negative(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) negative[i] = -x[i];
  std::vector<float> y(x.size());
  std::vector<float> z(x.size());
  for (const IsaFunctions* isa : functions()) {
    check::context = isa->name;
    isa->f32.tanh_accurate(x.data(), y.data(), static_cast<std::int64_t>(x.size()));
    isa->f32.tanh_accurate(negative.data(), z.data(), static_cast<std::int64_t>(x.size()));
    double most = 0;
    bool odd = true;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double want = std::tanh(static_cast<double>(x[i]));
      most = std::max(most, ulps(y[i], want));
      odd = odd &&
            std::bit_cast<std::uint32_t>(y[i]) == (std::bit_cast<std::uint32_t>(z[i]) ^ 1U << 31);
      if (x[i] > 9.02F) odd = odd && y[i] == 1;
    }
    CHECK(most <= 4);
    CHECK(odd);
  }
}

TEST(hyperbolic_tangent_at_the_ends) {
  for_each_vec([]<class T>(const VecFunctions<T>& f) {
    const T tiny = std::numeric_limits<T>::denorm_min();
    const std::vector<T> x = {T(0),    -T(0), kInfinity<T>, -kInfinity<T>,
                              kNan<T>, tiny,  T(100),       T(0.5)};
    std::vector<T> y(x.size());
    f.tanh_accurate(x.data(), y.data(), static_cast<std::int64_t>(x.size()));
    CHECK(y[0] == 0 && !std::signbit(y[0]) && y[1] == 0 && std::signbit(y[1]));
    CHECK(y[2] == 1 && y[3] == -1 && std::isnan(y[4]) && y[5] == tiny && y[6] == 1);
    CHECK(ulps(y[7], std::tanh(0.5L)) <= 4);
  });
}

}  // namespace
}  // namespace pyattn::testing

TEST_MAIN

// Matrix products on every instruction set, against plain loops in double.
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "check.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "core/product.h"
#include "sample.h"

namespace pyattn {
namespace {

using testing::sample;

// left (M, K) and right (K, N) in either order in memory.
template <class T>
struct Product {
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t depth;
  bool left_turned;
  bool right_turned;
  std::vector<T> left = sample<T>(rows * depth, 1);
  std::vector<T> right = sample<T>(depth * columns, 2);
  std::vector<T> bias = sample<T>(columns, 3);
  std::vector<T> out = sample<T>(rows * columns, 4);
  std::vector<T> before = out;

  double run(bool add) {
    run_product<T>({.rows = rows,
                    .columns = columns,
                    .depth = depth,
                    .left = left.data(),
                    .left_row = left_turned ? 1 : depth,
                    .left_depth = left_turned ? rows : 1,
                    .right = right.data(),
                    .right_depth = right_turned ? 1 : columns,
                    .right_column = right_turned ? depth : 1,
                    .bias = bias.data(),
                    .out = out.data(),
                    .out_row = columns,
                    .add = add});
    double worst = 0;
    for (std::int64_t m = 0; m < rows; ++m) {
      for (std::int64_t n = 0; n < columns; ++n) {
        const auto at = static_cast<std::size_t>(m * columns + n);
        double sum = static_cast<double>(bias[static_cast<std::size_t>(n)]);
        if (add) sum += static_cast<double>(before[at]);
        for (std::int64_t k = 0; k < depth; ++k) {
          const auto l = static_cast<std::size_t>(left_turned ? k * rows + m : m * depth + k);
          const auto r = static_cast<std::size_t>(right_turned ? n * depth + k : k * columns + n);
          sum += static_cast<double>(left[l]) * static_cast<double>(right[r]);
        }
        const double error = std::fabs(static_cast<double>(out[at]) - sum);
        worst = error <= worst ? worst : error;
      }
    }
    return worst;
  }
};

TEST(products) {
  const int before = threads();
  set_threads(3);
  for (const std::string& isa : available_isas()) {
    set_isa(isa);
    for (const std::int64_t rows : {1, 5, 6, 13, 200}) {
      for (const std::int64_t columns : {1, 31, 64, 65}) {
        for (const std::int64_t depth : {0, 1, 17, 255, 256, 300}) {
          for (const int order : {0, 1, 2, 3}) {
            check::context = isa + " " + std::to_string(rows) + " " + std::to_string(columns) +
                             " " + std::to_string(depth) + " " + std::to_string(order);
            Product<float> single{rows, columns, depth, order % 2 == 1, order / 2 == 1};
            CHECK(single.run(depth % 2 == 1) < 1e-4);
            Product<double> wide{rows, columns, depth, order % 2 == 1, order / 2 == 1};
            CHECK(wide.run(depth % 2 == 0) < 1e-12);
          }
        }
      }
    }
  }
  set_isa(available_isas().front());
  set_threads(before);
}

}  // namespace
}  // namespace pyattn

TEST_MAIN

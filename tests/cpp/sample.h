// Normal random numbers.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace pyattn::testing {

template <class T>
std::vector<T> sample(std::int64_t count, unsigned seed, double scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(0, scale);
  std::vector<T> data(static_cast<std::size_t>(count));
  for (T& x : data) x = static_cast<T>(normal(random));
  return data;
}

}  // namespace pyattn::testing

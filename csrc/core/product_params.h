// What the kernels of matrix products are told: plain aggregates, as in params.h.
#pragma once

#include <cstdint>

namespace pyattn {

// out[m][n] = sum_k left[m][k] right[k][n] + bias[n], or added to what is there. Of each operand
// one stride is 1, of which the other axis may have any.
template <class T>
struct ProductParams {
  std::int64_t rows = 0;     // M
  std::int64_t columns = 0;  // N
  std::int64_t depth = 0;    // K

  const T* left = nullptr;
  std::int64_t left_row = 0;
  std::int64_t left_depth = 1;
  const T* right = nullptr;
  std::int64_t right_depth = 0;
  std::int64_t right_column = 1;
  const T* bias = nullptr;  // (N,) or null
  T* out = nullptr;         // unit stride along a row
  std::int64_t out_row = 0;
  bool add = false;
  // K * (N rounded up to kProductColumns); null for a single row and a right operand with
  // right_depth = 1, which is read where it lies.
  T* packed = nullptr;
};

// Columns that are packed together, at most.
inline constexpr std::int64_t kProductColumns = 64;

// One task: a panel of columns, and of the rows some.
struct ProductPart {
  std::int64_t panel = 0;
  std::int64_t first_row = 0;
  std::int64_t end_row = 0;
};

}  // namespace pyattn

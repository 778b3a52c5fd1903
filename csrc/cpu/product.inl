// Matrix products of recurrent layers over all steps at once, by the micro-kernel of their steps.
// NumPy's BLAS would do, but on Zen 5 OpenBLAS reaches 110 GFLOP/s with a thread where this reaches
// 215 to 240, its threads and ours wait for the same processors, and its bits depend on how many
// there are.
//
// The right operand is packed into panels of four registers of columns, depth-major; the left one
// is read a scalar at a time where it lies, rows in memory or columns. A panel is used in pieces of
// kDepth, which stay in the cache while all rows of a task pass; with pieces of 128, which would
// stay in the first-level cache, it was 2 % slower.
#pragma once

#include "core/product_params.h"
#include "cpu/panels.inl"

namespace pyattn {
namespace {

constexpr std::int64_t kDepth = 512;

template <class V>
void pack_product(const ProductParams<typename V::Scalar>& p, std::int64_t panel) noexcept {
  using T = typename V::Scalar;
  constexpr int kColumns = 4 * V::kLanes;
  static_assert(kProductColumns % kColumns == 0);
  const std::int64_t column = panel * kColumns;
  const std::int64_t left = p.columns - column;
  T* to = p.packed + panel * p.depth * kColumns;
  if (p.right_column == 1) {
    pack_columns<V>(p.right + column, p.right_depth, p.depth, left, to);
    return;
  }
  for (int n = 0; n < 4; ++n) {
    const std::int64_t first = n * V::kLanes;
    pack_rows<V, 4>(p.right + (column + first) * p.right_column, p.right_column, p.depth,
                    left - first, to + first);
  }
}

// A register of the result at the first piece of the depth, or what is there at a later one.
template <class V>
void store_product(const ProductParams<typename V::Scalar>& p, std::int64_t row,
                   std::int64_t column, bool first, const typename V::Scalar* sums) {
  for (int n = 0; n < 4; ++n) {
    const std::int64_t at = column + n * V::kLanes;
    if (at >= p.columns) return;
    const std::int64_t left = p.columns - at;
    auto* place = p.out + row * p.out_row + at;
    V sum = V::load(sums + n * V::kLanes);
    if (first && p.bias != nullptr) sum = sum + load_left<V>(p.bias + at, left);
    if (!first || p.add) sum = sum + load_left<V>(place, left);
    store_left(sum, place, left);
  }
}

// The sums of one row with depths `at` .. `at + depth` of the columns of a panel.
template <class V>
void dot_columns(const ProductParams<typename V::Scalar>& p, std::int64_t panel, std::int64_t at,
                 std::int64_t depth, const typename V::Scalar* row, typename V::Scalar* sums) {
  Unpacked<typename V::Scalar, 4> matrix{.step = p.right_column};
  for (int n = 0; n < 4; ++n) {
    const std::int64_t column = (panel * 4 + n) * V::kLanes;
    matrix.first[n] = p.right + (column < p.columns ? column : 0) * p.right_column + at;
    matrix.count[n] = p.columns - column;
  }
  dot_unpacked<V, 4>(matrix, row, depth, sums);
}

template <class V>
void product(const ProductParams<typename V::Scalar>& p, const ProductPart& part) noexcept {
  using T = typename V::Scalar;
  constexpr int kColumns = 4 * V::kLanes;
  constexpr int kMost = kPanelRows<V, 4>;
  alignas(64) T sums[kMost * kColumns];
  const T* rows[kMost];
  std::int64_t at = 0;
  do {
    const T* panel =
        p.packed == nullptr ? nullptr : p.packed + (part.panel * p.depth + at) * kColumns;
    const std::int64_t depth = p.depth - at < kDepth ? p.depth - at : kDepth;
    for (std::int64_t row = part.first_row; row < part.end_row;) {
      const std::int64_t left = part.end_row - row;
      const std::int64_t shares = (left + kMost - 1) / kMost;
      const int count = static_cast<int>((left + shares - 1) / shares);
      for (int i = 0; i < count; ++i) {
        rows[i] = p.left + (row + i) * p.left_row + at * p.left_depth;
      }
      if (p.packed == nullptr) {
        dot_columns<V>(p, part.panel, at, depth, rows[0], sums);
      } else if (p.left_depth == 1) {
        dot_some<V, 4, false>(panel, rows, count, depth, 1, sums);
      } else {
        dot_some<V, 4, true>(panel, rows, count, depth, p.left_depth, sums);
      }
      for (int i = 0; i < count; ++i) {
        store_product<V>(p, row + i, part.panel * kColumns, at == 0, sums + i * kColumns);
      }
      row += count;
    }
    at += depth;
  } while (at < p.depth);
}

}  // namespace
}  // namespace pyattn

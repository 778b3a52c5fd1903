// Panels: the operand of a product that is packed, so that a micro-kernel reads it in order.
//
// A panel is N registers of columns, stored depth-major (panel[d][register][lane]). The other
// operand is read a scalar at a time where it lies. Every number is one chain of multiply-adds,
// whichever rows go through the panel together.
#pragma once

#include "cpu/few_rows.inl"

namespace pyattn {
namespace {

// Rows that go through a panel of N registers together. More than kRows, which would fit if N is
// less than kVecs, made a step of 32 entries a fifth slower (N = 3, eight rows, Zen 5).
template <class V, int N>
constexpr int kPanelRows = N < V::kVecs ? V::kRows : V::kVecs * V::kRows / N;

// sums[row][register][lane] = sum_d panel[d][register][lane] * rows[row][d * step]. `kAdjacent`:
// the rows are columns in memory, rows[row] = rows[0] + row; else `step` is 1.
template <class V, int N, bool kAdjacent, int R>
void dot_panel(const typename V::Scalar* panel, const typename V::Scalar* const* rows,
               std::int64_t depth, std::int64_t step, typename V::Scalar* sums) {
  using T = typename V::Scalar;
  V sum[R][N];
  const T* row[R];
  PYATTN_UNROLL
  for (int i = 0; i < R; ++i) {
    row[i] = rows[i];
    PYATTN_UNROLL
    for (int n = 0; n < N; ++n) sum[i][n] = V::broadcast(T(0));
  }
  const T* column = rows[0];
  for (std::int64_t d = 0; d < depth; ++d) {
    V weight[N];
    PYATTN_UNROLL
    for (int n = 0; n < N; ++n) weight[n] = V::load(panel + (d * N + n) * V::kLanes);
    PYATTN_UNROLL
    for (int i = 0; i < R; ++i) {
      const V x = V::broadcast(kAdjacent ? column[i] : row[i][d]);
      PYATTN_UNROLL
      for (int n = 0; n < N; ++n) sum[i][n] = V::fma(weight[n], x, sum[i][n]);
    }
    if constexpr (kAdjacent) column += step;
  }
  PYATTN_UNROLL
  for (int i = 0; i < R; ++i) {
    PYATTN_UNROLL
    for (int n = 0; n < N; ++n) sum[i][n].store(sums + (i * N + n) * V::kLanes);
  }
}

template <class V, int N, bool kAdjacent = false, int R = kPanelRows<V, N>>
void dot_some(const typename V::Scalar* panel, const typename V::Scalar* const* rows, int count,
              std::int64_t depth, std::int64_t step, typename V::Scalar* sums) {
  if constexpr (R > 0) {
    if (count == R) {
      dot_panel<V, N, kAdjacent, R>(panel, rows, depth, step, sums);
    } else {
      dot_some<V, N, kAdjacent, R - 1>(panel, rows, count, depth, step, sums);
    }
  }
}

// Packs rows of a matrix `step` apart, up to kLanes of them, as one register of a panel of N: the
// lanes beyond the last row are 0.
template <class V, int N>
void pack_rows(const typename V::Scalar* matrix, std::int64_t step, std::int64_t depth,
               std::int64_t rows, typename V::Scalar* panel) {
  const int count = rows < 0 ? 0 : rows < V::kLanes ? static_cast<int>(rows) : V::kLanes;
  if (count == 0) {
    for (std::int64_t d = 0; d < depth; ++d) {
      V::broadcast(typename V::Scalar(0)).store(panel + d * N * V::kLanes);
    }
    return;
  }
  const typename V::Scalar* row[V::kLanes];
  for (int lane = 0; lane < count; ++lane) row[lane] = matrix + lane * step;
  transpose_in<V>(row, count, depth, panel, N * V::kLanes);
}

// Packs columns of `depth` rows of a matrix, `left` of them, as a panel of four registers.
template <class V>
void pack_columns(const typename V::Scalar* matrix, std::int64_t step, std::int64_t depth,
                  std::int64_t left, typename V::Scalar* panel) {
  for (std::int64_t d = 0; d < depth; ++d) {
    for (int n = 0; n < 4; ++n) {
      const std::int64_t first = n * V::kLanes;
      V columns = V::broadcast(typename V::Scalar(0));
      if (first < left) columns = load_left<V>(matrix + d * step + first, left - first);
      columns.store(panel + (d * 4 + n) * V::kLanes);
    }
  }
}

// The rows of a matrix that a panel of N registers would hold: register n those from first[n] on,
// count[n] of them.
template <class T, int N>
struct Unpacked {
  const T* first[N];
  std::int64_t count[N];
  std::int64_t step = 0;  // from row to row
};

// The sums of M registers from `first` on.
template <class V, int M, int N>
void dot_rows(const Unpacked<typename V::Scalar, N>& matrix, int first,
              const typename V::Scalar* row, std::int64_t depth, typename V::Scalar* sums) {
  using T = typename V::Scalar;
  constexpr int L = V::kLanes;
  const T* rows[M][L];
  int count[M];
  V sum[M];
  for (int m = 0; m < M; ++m) {
    const std::int64_t left = matrix.count[first + m];
    count[m] = left < 0 ? 0 : left < L ? static_cast<int>(left) : L;
    for (int lane = 0; lane < L; ++lane) {
      rows[m][lane] = matrix.first[first + m] + (lane < count[m] ? lane : 0) * matrix.step;
    }
    sum[m] = V::broadcast(T(0));
  }
  // Up to a multiple of a register's size in memory first, so that no load is of two lines.
  constexpr std::uintptr_t kBytes = L * sizeof(T);
  const auto address = reinterpret_cast<std::uintptr_t>(rows[0][0]);
  auto width = static_cast<std::int64_t>((kBytes - address % kBytes) / sizeof(T));
  for (std::int64_t d = 0; d < depth; d += width, width = L) {
    width = depth - d < width ? depth - d : width;
    for (int m = 0; m < M; ++m) {
      if (count[m] == 0) continue;
      V square[L];
      load_square<V>(rows[m], count[m], d, static_cast<int>(width), square);
      for (int c = 0; c < width; ++c) sum[m] = V::fma(square[c], V::broadcast(row[d + c]), sum[m]);
    }
  }
  for (int m = 0; m < M; ++m) sum[m].store(sums + (first + m) * L);
}

// The sums of dot_panel, to the bit, for one row; squares of the matrix are turned in registers. To
// pack it for a single row takes twice as long as this. Two registers take turns, for a single
// chain of multiply-adds is all latency; four took half as long again, for rows a power of two
// apart drive each other out of the cache.
template <class V, int N>
void dot_unpacked(const Unpacked<typename V::Scalar, N>& matrix, const typename V::Scalar* row,
                  std::int64_t depth, typename V::Scalar* sums) {
  for (int n = 0; n + 1 < N; n += 2) dot_rows<V, 2>(matrix, n, row, depth, sums);
  if constexpr (N % 2 == 1) dot_rows<V, 1>(matrix, N - 1, row, depth, sums);
}

}  // namespace
}  // namespace pyattn

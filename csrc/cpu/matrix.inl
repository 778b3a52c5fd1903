// The two micro-kernels of attention and the transpositions around them.
//
// Queries are in the lanes: a panel is kPanel = kVecs * kLanes queries, stored depth-major
// (panel[d][lane]). A score is then s[key][lane] = sum_d panel[d][lane] * key[d], an output
// o[e][lane] = sum_key p[key][lane] * value[key][e]. The other operand, a row of K or V, is read
// one scalar at a time where it lies, so K and V are neither packed nor copied, at any row stride,
// and a row can be left out by leaving out its pointer. Row maximum and sum need no shuffle. A
// lane's arithmetic does not depend on the other lanes nor on how many rows share the panel.
#pragma once

#include "cpu/math.inl"

namespace pyattn {
namespace {

template <class V>
constexpr int kPanel = V::kVecs * V::kLanes;

// Rows that will be read soon. A kernel touches a few of them between two groups of its own rows,
// so that the requests for memory spread over the arithmetic; asked for all at once they would fill
// the miss queue and stall it. Masked rows may be among them: prefetching is not reading.
template <class T>
struct Ahead {
  const T* data = nullptr;
  std::int64_t stride = 0;
  std::int64_t rows = 0;
  std::int64_t columns = 0;

  PYATTN_INLINE void touch(std::int64_t first, std::int64_t count) const {
    const std::int64_t last = first + count < rows ? first + count : rows;
    for (std::int64_t r = first; r < last; ++r) {
      for (std::int64_t c = 0; c < columns; c += 64 / static_cast<std::int64_t>(sizeof(T))) {
        PYATTN_PREFETCH(data + r * stride + c);
      }
    }
  }
};

// sums[row][lane] = sum_d panel[d][lane] * rows[row][d] for NR rows of K.
template <class V, int NV, int NR>
void dot_rows(const typename V::Scalar* panel, const typename V::Scalar* const* rows,
              std::int64_t depth, typename V::Scalar* sums) {
  using T = typename V::Scalar;
  V sum[NR][NV];
  const T* row[NR];
  PYATTN_UNROLL
  for (int i = 0; i < NR; ++i) {
    row[i] = rows[i];
    PYATTN_UNROLL
    for (int v = 0; v < NV; ++v) sum[i][v] = V::broadcast(T(0));
  }
  for (std::int64_t d = 0; d < depth; ++d) {
    V query[NV];
    PYATTN_UNROLL
    for (int v = 0; v < NV; ++v) query[v] = V::load(panel + d * kPanel<V> + v * V::kLanes);
    PYATTN_UNROLL
    for (int i = 0; i < NR; ++i) {
      const V key = V::broadcast(row[i][d]);
      PYATTN_UNROLL
      for (int v = 0; v < NV; ++v) sum[i][v] = V::fma(query[v], key, sum[i][v]);
    }
  }
  PYATTN_UNROLL
  for (int i = 0; i < NR; ++i) {
    PYATTN_UNROLL
    for (int v = 0; v < NV; ++v) sum[i][v].store(sums + i * kPanel<V> + v * V::kLanes);
  }
}

// out[e][lane] = out[e][lane] * scale[lane] + sum_key p[key][lane] * rows[key][e] for NR columns e.
// The tile is summed apart from the running output: two short sums err less than one long one.
template <class V, int NV, int NR>
void add_rows(const typename V::Scalar* p, const typename V::Scalar* const* rows, int keys,
              std::int64_t column, const typename V::Scalar* scale, typename V::Scalar* out) {
  using T = typename V::Scalar;
  V sum[NR][NV];
  PYATTN_UNROLL
  for (int i = 0; i < NR; ++i) {
    PYATTN_UNROLL
    for (int v = 0; v < NV; ++v) sum[i][v] = V::broadcast(T(0));
  }
  for (int k = 0; k < keys; ++k) {
    V weight[NV];
    const T* row = rows[k] + column;
    PYATTN_UNROLL
    for (int v = 0; v < NV; ++v) weight[v] = V::load(p + k * kPanel<V> + v * V::kLanes);
    PYATTN_UNROLL
    for (int i = 0; i < NR; ++i) {
      const V value = V::broadcast(row[i]);
      PYATTN_UNROLL
      for (int v = 0; v < NV; ++v) sum[i][v] = V::fma(weight[v], value, sum[i][v]);
    }
  }
  PYATTN_UNROLL
  for (int v = 0; v < NV; ++v) {
    const V factor = V::load(scale + v * V::kLanes);
    PYATTN_UNROLL
    for (int i = 0; i < NR; ++i) {
      T* place = out + (column + i) * kPanel<V> + v * V::kLanes;
      V::fma(V::load(place), factor, sum[i][v]).store(place);
    }
  }
}

template <class V, int NV, int NR>
void dot_tail(const typename V::Scalar* panel, const typename V::Scalar* const* rows, int count,
              std::int64_t depth, typename V::Scalar* sums) {
  if constexpr (NR > 0) {
    if (count == NR) {
      dot_rows<V, NV, NR>(panel, rows, depth, sums);
    } else {
      dot_tail<V, NV, NR - 1>(panel, rows, count, depth, sums);
    }
  }
}

template <class V, int NV>
void dot_tile(const typename V::Scalar* panel, const typename V::Scalar* const* rows, int count,
              std::int64_t depth, const Ahead<typename V::Scalar>& ahead,
              typename V::Scalar* sums) {
  int i = 0;
  for (; i + V::kRows <= count; i += V::kRows) {
    ahead.touch(i, V::kRows);
    dot_rows<V, NV, V::kRows>(panel, rows + i, depth, sums + i * kPanel<V>);
  }
  ahead.touch(i, V::kRows);
  dot_tail<V, NV, V::kRows - 1>(panel, rows + i, count - i, depth, sums + i * kPanel<V>);
}

template <class V, int NV, int NR>
void add_tail(const typename V::Scalar* p, const typename V::Scalar* const* rows, int keys,
              std::int64_t column, std::int64_t columns, const typename V::Scalar* scale,
              typename V::Scalar* out) {
  if constexpr (NR > 0) {
    if (columns - column == NR) {
      add_rows<V, NV, NR>(p, rows, keys, column, scale, out);
    } else {
      add_tail<V, NV, NR - 1>(p, rows, keys, column, columns, scale, out);
    }
  }
}

template <class V, int NV>
void add_tile(const typename V::Scalar* p, const typename V::Scalar* const* rows, int keys,
              std::int64_t columns, const typename V::Scalar* scale,
              const Ahead<typename V::Scalar>& ahead, typename V::Scalar* out) {
  if (columns == 0) return;
  const std::int64_t share = ahead.rows * V::kRows / columns + 1;
  std::int64_t next = 0;
  std::int64_t column = 0;
  for (; column + V::kRows <= columns; column += V::kRows, next += share) {
    ahead.touch(next, share);
    add_rows<V, NV, V::kRows>(p, rows, keys, column, scale, out);
  }
  add_tail<V, NV, V::kRows - 1>(p, rows, keys, column, columns, scale, out);
}

// to[c][r] = from[r][c], rows given by pointers, unit stride along a row; `to` has a fixed row
// length. Rows from `count` up to the next multiple of kLanes are written as 0.
template <class V>
void transpose_in(const typename V::Scalar* const* from, int count, std::int64_t columns,
                  typename V::Scalar* to, std::int64_t to_stride) {
  using T = typename V::Scalar;
  constexpr int L = V::kLanes;
  for (int r = 0; r < count; r += L) {
    const int rows = count - r < L ? count - r : L;
    for (std::int64_t c = 0; c < columns; c += L) {
      const int width = columns - c < L ? static_cast<int>(columns - c) : L;
      V square[L];
      for (int i = 0; i < L; ++i) {
        square[i] = i < rows ? load_left<V>(from[r + i] + c, width) : V::broadcast(T(0));
      }
      V::transpose(square);
      for (int i = 0; i < width; ++i) square[i].store(to + (c + i) * to_stride + r);
    }
  }
}

// to[r][c] = from[c][r] * scale[r]: back to rows given by pointers; `from` has a fixed row length
// that is a multiple of kLanes. A null scale is 1.
template <class V>
void transpose_out(const typename V::Scalar* from, std::int64_t from_stride, std::int64_t columns,
                   const typename V::Scalar* scale, typename V::Scalar* const* to, int count) {
  using T = typename V::Scalar;
  constexpr int L = V::kLanes;
  for (int r = 0; r < count; r += L) {
    const int rows = count - r < L ? count - r : L;
    const V factor = scale == nullptr ? V::broadcast(T(1)) : V::load(scale + r);
    for (std::int64_t c = 0; c < columns; c += L) {
      const int width = columns - c < L ? static_cast<int>(columns - c) : L;
      V square[L];
      for (int i = 0; i < L; ++i) {
        square[i] =
            i < width ? V::load(from + (c + i) * from_stride + r) * factor : V::broadcast(T(0));
      }
      V::transpose(square);
      for (int i = 0; i < rows; ++i) store_left(square[i], to[r + i] + c, width);
    }
  }
}

}  // namespace
}  // namespace pyattn

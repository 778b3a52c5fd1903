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

template <int N>
struct Count {
  static constexpr int value = N;
};

// Calls body(Count<n>) for the number of registers, 1..kVecs, that hold `lanes` queries.
template <class V, int N = V::kVecs, class Body>
PYATTN_INLINE void with_vecs(int lanes, Body&& body) {
  if constexpr (N > 1) {
    if (lanes <= (N - 1) * V::kLanes) {
      with_vecs<V, N - 1>(lanes, body);
      return;
    }
  }
  body(Count<N>{});
}

// How the micro-kernels multiply operands of type U, of which a V is one register: numbers of the
// arithmetic here; pairs of narrower ones where an instruction set multiplies those (pairs.inl).
template <class V, class U>
struct Products {
  static PYATTN_INLINE V broadcast(const U* p) { return V::broadcast(*p); }
  static PYATTN_INLINE V multiply_add(V a, V b, V sum) { return V::fma(a, b, sum); }
};

// What becomes of a dot product on its way to memory: nothing, or a multiplication.
template <class V>
struct Unscaled {
  PYATTN_INLINE V operator()(V sum) const { return sum; }
};
template <class V>
struct Scaled {
  V factor;
  PYATTN_INLINE V operator()(V sum) const { return sum * factor; }
};

// sums[row][lane] = scale(sum_d panel[d][lane] * rows[row][d]) for NR rows of K.
template <class V, int NV, int NR, class U, class Scale>
void dot_rows(const U* panel, const U* const* rows, std::int64_t depth, const Scale& scale,
              typename V::Scalar* sums) {
  using T = typename V::Scalar;
  V sum[NR][NV];
  const U* row[NR];
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
      const V key = Products<V, U>::broadcast(row[i] + d);
      PYATTN_UNROLL
      for (int v = 0; v < NV; ++v) {
        sum[i][v] = Products<V, U>::multiply_add(query[v], key, sum[i][v]);
      }
    }
  }
  PYATTN_UNROLL
  for (int i = 0; i < NR; ++i) {
    PYATTN_UNROLL
    for (int v = 0; v < NV; ++v) scale(sum[i][v]).store(sums + i * kPanel<V> + v * V::kLanes);
  }
}

// out[e][lane] = out[e][lane] * scale[lane] + sum_key p[key][lane] * rows[key][e] for NR columns e.
// The tile is summed apart from the running output: two short sums err less than one long one.
template <class V, int NV, int NR, class U>
void add_rows(const U* p, const U* const* rows, int keys, std::int64_t column,
              const typename V::Scalar* scale, typename V::Scalar* out) {
  using T = typename V::Scalar;
  V sum[NR][NV];
  PYATTN_UNROLL
  for (int i = 0; i < NR; ++i) {
    PYATTN_UNROLL
    for (int v = 0; v < NV; ++v) sum[i][v] = V::broadcast(T(0));
  }
  for (int k = 0; k < keys; ++k) {
    V weight[NV];
    const U* row = rows[k] + column;
    PYATTN_UNROLL
    for (int v = 0; v < NV; ++v) weight[v] = V::load(p + k * kPanel<V> + v * V::kLanes);
    PYATTN_UNROLL
    for (int i = 0; i < NR; ++i) {
      const V value = Products<V, U>::broadcast(row + i);
      PYATTN_UNROLL
      for (int v = 0; v < NV; ++v) {
        sum[i][v] = Products<V, U>::multiply_add(weight[v], value, sum[i][v]);
      }
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

template <class V, int NV, int NR, class U, class Scale>
void dot_tail(const U* panel, const U* const* rows, int count, std::int64_t depth,
              const Scale& scale, typename V::Scalar* sums) {
  if constexpr (NR > 0) {
    if (count == NR) {
      dot_rows<V, NV, NR>(panel, rows, depth, scale, sums);
    } else {
      dot_tail<V, NV, NR - 1>(panel, rows, count, depth, scale, sums);
    }
  }
}

// `ahead`: as in rows.inl.
template <class V, int NV, class U, class Rows, class Scale = Unscaled<V>>
void dot_tile(const U* panel, const U* const* rows, int count, std::int64_t depth, Rows& ahead,
              typename V::Scalar* sums, const Scale& scale = {}) {
  int i = 0;
  const std::int64_t share = ahead.lines(V::kRows);
  for (; i + V::kRows <= count; i += V::kRows) {
    ahead.touch(share);
    dot_rows<V, NV, V::kRows>(panel, rows + i, depth, scale, sums + i * kPanel<V>);
  }
  ahead.touch(share);
  dot_tail<V, NV, V::kRows - 1>(panel, rows + i, count - i, depth, scale, sums + i * kPanel<V>);
}

template <class V, int NV, int NR, class U>
void add_tail(const U* p, const U* const* rows, int keys, std::int64_t column, std::int64_t columns,
              const typename V::Scalar* scale, typename V::Scalar* out) {
  if constexpr (NR > 0) {
    if (columns - column == NR) {
      add_rows<V, NV, NR>(p, rows, keys, column, scale, out);
    } else {
      add_tail<V, NV, NR - 1>(p, rows, keys, column, columns, scale, out);
    }
  }
}

template <class V, int NV, class U, class Rows>
void add_tile(const U* p, const U* const* rows, int keys, std::int64_t columns,
              const typename V::Scalar* scale, Rows& ahead, typename V::Scalar* out) {
  if (columns == 0) return;
  const std::int64_t share = ahead.lines(kTileKeys) * V::kRows / columns + 1;
  std::int64_t column = 0;
  for (; column + V::kRows <= columns; column += V::kRows) {
    ahead.touch(share);
    add_rows<V, NV, V::kRows>(p, rows, keys, column, scale, out);
  }
  add_tail<V, NV, V::kRows - 1>(p, rows, keys, column, columns, scale, out);
}

// to[c][r] = scale(from[r][c]), rows given by pointers, unit stride along a row; `to` has a fixed
// row length. Rows from `count` up to the next multiple of kLanes are written as 0.
template <class V, class X, class U, class Scale = Unscaled<V>>
void transpose_in(const X* const* from, int count, std::int64_t columns, U* to,
                  std::int64_t to_stride, const Scale& scale = {}) {
  using T = typename V::Scalar;
  constexpr int L = V::kLanes;
  for (int r = 0; r < count; r += L) {
    const int rows = count - r < L ? count - r : L;
    for (std::int64_t c = 0; c < columns; c += L) {
      const int width = columns - c < L ? static_cast<int>(columns - c) : L;
      V square[L];
      for (int i = 0; i < L; ++i) {
        square[i] = i < rows ? scale(load_left<V>(from[r + i] + c, width)) : V::broadcast(T(0));
      }
      V::transpose(square);
      for (int i = 0; i < width; ++i) square[i].store(to + (c + i) * to_stride + r);
    }
  }
}

// to[r][c] = from[c][r] * scale[r]: back to rows given by pointers; `from` has a fixed row length
// that is a multiple of kLanes. A null scale is 1.
template <class V, class X>
void transpose_out(const typename V::Scalar* from, std::int64_t from_stride, std::int64_t columns,
                   const typename V::Scalar* scale, X* const* to, int count) {
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

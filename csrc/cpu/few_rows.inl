// Blocks of few queries: decoding. With queries in the lanes most of a register would be empty, so
// here keys are in the lanes for Q K^T, and columns for P V. Each number is still the same chain of
// multiply-adds as in a panel, over d and over the keys of a tile in order: a query gets the same
// bits in a block of one as in a block of 64.
#pragma once

#include "cpu/matrix.inl"

namespace pyattn {
namespace {

template <class V>
constexpr bool is_few(int rows) {
  return rows <= V::kLanes;
}

// Queries that share a transposed square of K; more of them go through it again, from the cache.
template <class V>
constexpr int kFewRows = V::kLanes < 16 ? (V::kLanes < 4 ? V::kLanes : 4) : 8;

// A square of K, kLanes keys and as many columns from `d` on, with the keys in the lanes.
template <class V, class X>
PYATTN_INLINE void load_square(const X* const* rows, int keys, std::int64_t d, int width,
                               V (&square)[V::kLanes]) {
  using T = typename V::Scalar;
  constexpr int L = V::kLanes;
  if (keys >= L && width == L) {
    PYATTN_UNROLL
    for (int k = 0; k < L; ++k) square[k] = V::load(rows[k] + d);
  } else {
    for (int k = 0; k < L; ++k) {
      square[k] = k < keys ? load_left<V>(rows[k] + d, width) : V::broadcast(T(0));
    }
  }
  V::transpose(square);
}

// sum[i] of NR queries += query[i][c] * square[c]
template <class V, int NR, class U>
PYATTN_INLINE void add_square(const U* query, std::int64_t depth, int width,
                              const V (&square)[V::kLanes], V (&sum)[NR]) {
  constexpr int L = V::kLanes;
  if (width == L) {
    PYATTN_UNROLL
    for (int c = 0; c < L; ++c) {
      PYATTN_UNROLL
      for (int i = 0; i < NR; ++i) {
        const V factor = Products<V, U>::broadcast(query + i * depth + c);
        sum[i] = Products<V, U>::multiply_add(square[c], factor, sum[i]);
      }
    }
    return;
  }
  for (int c = 0; c < width; ++c) {
    for (int i = 0; i < NR; ++i) {
      const V factor = Products<V, U>::broadcast(query + i * depth + c);
      sum[i] = Products<V, U>::multiply_add(square[c], factor, sum[i]);
    }
  }
}

// sums[key][query] for NR queries and up to NG registers of keys. A chain of multiply-adds over d
// is all latency; for few queries a second register of keys fills the gaps.
template <class V, int NR, int NG, class U, class X>
void dot_squares(const U* queries, std::int64_t depth, const X* const* rows, int keys,
                 typename V::Scalar* sums) {
  using T = typename V::Scalar;
  constexpr int L = V::kLanes;
  V sum[NG][NR];
  PYATTN_UNROLL
  for (int g = 0; g < NG; ++g) {
    PYATTN_UNROLL
    for (int i = 0; i < NR; ++i) sum[g][i] = V::broadcast(T(0));
  }
  for (std::int64_t d = 0; d < depth; d += L) {
    const int width = depth - d < L ? static_cast<int>(depth - d) : L;
    PYATTN_UNROLL
    for (int g = 0; g < NG; ++g) {
      V square[L];
      load_square(rows + g * L, keys - g * L, d, width, square);
      add_square(queries + d, depth, width, square, sum[g]);
    }
  }
  for (int g = 0; g < NG; ++g) {
    V column[L];
    PYATTN_UNROLL
    for (int i = 0; i < L; ++i) column[i] = i < NR ? sum[g][i] : V::broadcast(T(0));
    V::transpose(column);
    const int width = keys - g * L < L ? keys - g * L : L;
    for (int k = 0; k < width; ++k) {
      T* place = sums + (g * L + k) * kPanel<V>;
      if constexpr (NR == L) {
        column[k].store(place);
      } else {
        column[k].store(place, NR);
      }
    }
  }
}

template <class V, int NR, class U, class X>
void dot_few_rows(const U* queries, int count, std::int64_t depth, const X* const* rows, int keys,
                  typename V::Scalar* sums) {
  if constexpr (NR > 0) {
    if (count == NR) {
      constexpr int kGroups = 2 * NR <= kFewRows<V> ? 2 : 1;
      for (int k = 0; k < keys; k += kGroups * V::kLanes) {
        dot_squares<V, NR, kGroups>(queries, depth, rows + k, keys - k, sums + k * kPanel<V>);
      }
    } else {
      dot_few_rows<V, NR - 1>(queries, count, depth, rows, keys, sums);
    }
  }
}

// sums[key][query] of a tile for `count` queries, rows of `depth`; the other lanes are 0.
template <class V, class U, class X, class Y>
void dot_few(const U* queries, int count, std::int64_t depth, const X* const* rows, int keys,
             const Ahead<Y>& ahead, typename V::Scalar* sums) {
  using T = typename V::Scalar;
  constexpr int L = V::kLanes;
  for (int k = 0; k < keys; ++k) V::broadcast(T(0)).store(sums + k * kPanel<V>);
  constexpr int kStep = 2 * L;
  for (int k = 0; k < keys; k += kStep) {
    const int width = keys - k < kStep ? keys - k : kStep;
    ahead.touch(k, kStep);
    for (int i = 0; i < count; i += kFewRows<V>) {
      const int some = count - i < kFewRows<V> ? count - i : kFewRows<V>;
      dot_few_rows<V, kFewRows<V>>(queries + i * depth, some, depth, rows + k, width,
                                   sums + k * kPanel<V> + i);
    }
  }
}

// out[i][e] = out[i][e] * scale[i] + sum_key p[key][i] * rows[key][e] for NR queries and NE
// registers of columns, of which the last may be a part.
template <class V, int NE, int NR, class U>
void add_columns(const U* p, const U* const* rows, int keys, std::int64_t column,
                 std::int64_t columns, const typename V::Scalar* scale, typename V::Scalar* out) {
  using T = typename V::Scalar;
  constexpr int L = V::kLanes;
  V sum[NR][NE];
  PYATTN_UNROLL
  for (int i = 0; i < NR; ++i) {
    PYATTN_UNROLL
    for (int e = 0; e < NE; ++e) sum[i][e] = V::broadcast(T(0));
  }
  for (int k = 0; k < keys; ++k) {
    V value[NE];
    PYATTN_UNROLL
    for (int e = 0; e < NE; ++e) {
      const U* place = rows[k] + column + e * L;
      value[e] = NE > 1 ? V::load(place) : load_left<V>(place, columns - column);
    }
    PYATTN_UNROLL
    for (int i = 0; i < NR; ++i) {
      const V weight = Products<V, U>::broadcast(p + k * kPanel<V> + i);
      PYATTN_UNROLL
      for (int e = 0; e < NE; ++e) {
        sum[i][e] = Products<V, U>::multiply_add(weight, value[e], sum[i][e]);
      }
    }
  }
  PYATTN_UNROLL
  for (int i = 0; i < NR; ++i) {
    const V factor = V::broadcast(scale[i]);
    PYATTN_UNROLL
    for (int e = 0; e < NE; ++e) {
      T* place = out + i * columns + column + e * L;
      const std::int64_t left = NE > 1 ? L : columns - column;
      store_left(V::fma(load_left<V>(place, left), factor, sum[i][e]), place, left);
    }
  }
}

template <class V, int NR, class U>
void add_few_rows(const U* p, const U* const* rows, int keys, std::int64_t columns,
                  const typename V::Scalar* scale, typename V::Scalar* out) {
  constexpr int L = V::kLanes;
  constexpr int kWide = V::kVecs;
  std::int64_t e = 0;
  if constexpr (kWide > 1) {
    for (; e + kWide * L <= columns; e += kWide * L) {
      add_columns<V, kWide, NR>(p, rows, keys, e, columns, scale, out);
    }
  }
  for (; e < columns; e += L) add_columns<V, 1, NR>(p, rows, keys, e, columns, scale, out);
}

template <class V, int NR, class U>
void add_few_tail(const U* p, const U* const* rows, int keys, int count, std::int64_t columns,
                  const typename V::Scalar* scale, typename V::Scalar* out) {
  if constexpr (NR > 0) {
    if (count == NR) {
      add_few_rows<V, NR>(p, rows, keys, columns, scale, out);
    } else {
      add_few_tail<V, NR - 1>(p, rows, keys, count, columns, scale, out);
    }
  }
}

// The same for `count` queries.
template <class V, class U>
void add_few(const U* p, const U* const* rows, int keys, int count, std::int64_t columns,
             const typename V::Scalar* scale, typename V::Scalar* out) {
  int i = 0;
  for (; i + V::kRows <= count; i += V::kRows) {
    add_few_rows<V, V::kRows>(p + i, rows, keys, columns, scale + i, out + i * columns);
  }
  add_few_tail<V, V::kRows - 1>(p + i, rows, keys, count - i, columns, scale + i,
                                out + i * columns);
}

}  // namespace
}  // namespace pyattn

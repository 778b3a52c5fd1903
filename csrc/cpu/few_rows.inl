// Blocks of few queries: decoding. With queries in the lanes most of a register would be empty, so
// here keys are in the lanes for Q K^T, and columns for P V. Each number is still the same chain of
// multiply-adds as in a panel, over d and over the keys of a tile in order: a query gets the same
// bits in a block of one as in a block of 64.
//
// Scores are written as sums[key * stride + query]. A stride of kPanel is that of panels;
// few_stride leaves no gaps, so that one register holds the scores of several keys. What memory
// asks of them is said in attention.inl. Eight columns of 32 keys at once instead of sixteen of 16:
// 1.2 times as fast in the cache.
#pragma once

#include "cpu/matrix.inl"

namespace pyattn {
namespace {

// Three quarters of a register: a panel takes 7 and 8 queries through AVX2 a fifth faster, and 16
// queries of 16 keys through AVX-512 a tenth.
template <class V>
constexpr bool is_few(int rows) {
  return rows <= V::kLanes - V::kLanes / 4;
}

template <class V>
constexpr int few_stride(int rows) {
  if (V::kLanes > 4 && rows <= 4) return 4;
  if (V::kLanes > 8 && rows <= 8) return 8;
  return V::kLanes;
}

// Calls body(Count<stride>) for a stride that few_stride gives.
template <class V, class Body>
PYATTN_INLINE void with_few_stride(int stride, Body&& body) {
  if constexpr (V::kLanes > 4) {
    if (stride == 4) return body(Count<4>{});
  }
  if constexpr (V::kLanes > 8) {
    if (stride == 8) return body(Count<8>{});
  }
  body(Count<V::kLanes>{});
}

// Queries that share a transposed square of K; more of them go through it again, from the cache.
template <class V>
constexpr int kFewRows = V::kLanes < 16 ? (V::kLanes < 4 ? V::kLanes : 4) : 8;

// Whether columns of two squares of keys can be loaded at once, half a square each.
template <class V, class X>
constexpr bool kLoadsColumns =
    requires(const X* const* rows, V (&columns)[V::kLanes]) { V::load_columns(rows, 0, columns); };

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

// The part of the depth that two squares of keys can go through together; returns where it ends.
// Their chains of multiply-adds alternate, and a broadcast serves both.
template <class V, int NR, class U, class X, class Rows>
PYATTN_INLINE std::int64_t add_columns_of_two(const U* queries, std::int64_t depth,
                                              const X* const* rows, int keys, Rows& ahead,
                                              V (&sum)[2][NR]) {
  constexpr int L = V::kLanes;
  constexpr int kHalf = L / 2;
  const X* row[2 * L];  // keys beyond the last one repeat it
  for (int k = 0; k < 2 * L; ++k) row[k] = rows[k < keys ? k : keys - 1];
  std::int64_t d = 0;
  for (; d + kHalf <= depth; d += kHalf) {
    V column[L];
    ahead.touch(L * L * static_cast<std::int64_t>(sizeof(X)) / 64);
    V::load_columns(row, d, column);
    PYATTN_UNROLL
    for (int c = 0; c < kHalf; ++c) {
      PYATTN_UNROLL
      for (int i = 0; i < NR; ++i) {
        const V factor = Products<V, U>::broadcast(queries + i * depth + d + c);
        PYATTN_UNROLL
        for (int g = 0; g < 2; ++g) {
          sum[g][i] = Products<V, U>::multiply_add(column[2 * c + g], factor, sum[g][i]);
        }
      }
    }
  }
  return d;
}

// sums[key][query] = sum[query] with the keys in the lanes; queries up to kFewRows are written as
// 0.
template <class V, int NR>
PYATTN_INLINE void store_sums(const V (&sum)[NR], int keys, int stride, typename V::Scalar* sums) {
  using T = typename V::Scalar;
  constexpr int L = V::kLanes;
  if constexpr (NR <= 4 && requires(V(&four)[4]) { V::interleave(four); }) {
    if (stride == 4 && keys >= L) {
      V four[4];
      for (int i = 0; i < 4; ++i) four[i] = i < NR ? sum[i] : V::broadcast(T(0));
      V::interleave(four);
      for (int i = 0; i < 4; ++i) four[i].store(sums + i * L);
      return;
    }
  }
  V column[L];
  PYATTN_UNROLL
  for (int i = 0; i < L; ++i) column[i] = i < NR ? sum[i] : V::broadcast(T(0));
  V::transpose(column);
  const int written = stride < kFewRows<V> ? stride : kFewRows<V>;
  for (int k = 0; k < keys && k < L; ++k) store_left(column[k], sums + k * stride, written);
}

// sums[key][query] for NR queries and up to NG registers of keys. A chain of multiply-adds over d
// is all latency; for few queries a second register of keys fills the gaps.
template <class V, int NR, int NG, class U, class X, class Rows>
void dot_squares(const U* queries, std::int64_t depth, const X* const* rows, int keys, int stride,
                 Rows& ahead, typename V::Scalar* sums) {
  using T = typename V::Scalar;
  constexpr int L = V::kLanes;
  V sum[NG][NR];
  PYATTN_UNROLL
  for (int g = 0; g < NG; ++g) {
    PYATTN_UNROLL
    for (int i = 0; i < NR; ++i) sum[g][i] = V::broadcast(T(0));
  }
  std::int64_t d = 0;
  if constexpr (NG == 2 && kLoadsColumns<V, X>) {
    d = add_columns_of_two<V, NR>(queries, depth, rows, keys, ahead, sum);
  }
  for (; d < depth; d += L) {
    const int width = depth - d < L ? static_cast<int>(depth - d) : L;
    ahead.touch(NG * L * L * static_cast<std::int64_t>(sizeof(X)) / 64);
    PYATTN_UNROLL
    for (int g = 0; g < NG; ++g) {
      V square[L];
      load_square(rows + g * L, keys - g * L, d, width, square);
      add_square(queries + d, depth, width, square, sum[g]);
    }
  }
  PYATTN_UNROLL
  for (int g = 0; g < NG; ++g) {
    if (keys > g * L) store_sums<V, NR>(sum[g], keys - g * L, stride, sums + g * L * stride);
  }
}

template <class V, int NR, class U, class X, class Rows>
void dot_few_rows(const U* queries, int count, std::int64_t depth, const X* const* rows, int keys,
                  int stride, Rows& ahead, typename V::Scalar* sums) {
  if constexpr (NR > 0) {
    if (count == NR) {
      constexpr int kMostOfTwo = kLoadsColumns<V, X> ? 4 : kFewRows<V> / 2;
      constexpr int kGroups = NR <= kMostOfTwo ? 2 : 1;
      for (int k = 0; k < keys; k += kGroups * V::kLanes) {
        dot_squares<V, NR, kGroups>(queries, depth, rows + k, keys - k, stride, ahead,
                                    sums + k * stride);
      }
    } else {
      dot_few_rows<V, NR - 1>(queries, count, depth, rows, keys, stride, ahead, sums);
    }
  }
}

// The scores of a tile for `count` queries, rows of `depth`; the other lanes up to few_stride are
// 0.
template <class V, class U, class X, class Rows>
void dot_few(const U* queries, int count, std::int64_t depth, const X* const* rows, int keys,
             int stride, Rows& ahead, typename V::Scalar* sums) {
  using T = typename V::Scalar;
  constexpr int L = V::kLanes;
  if (stride > L) {
    for (int k = 0; k < keys; ++k) V::broadcast(T(0)).store(sums + k * stride);
  }
  constexpr int kStep = 2 * L;
  for (int k = 0; k < keys; k += kStep) {
    const int width = keys - k < kStep ? keys - k : kStep;
    for (int i = 0; i < few_stride<V>(count); i += kFewRows<V>) {
      const int some = count - i < kFewRows<V> ? count - i : kFewRows<V>;
      dot_few_rows<V, kFewRows<V>>(queries + i * depth, some, depth, rows + k, width, stride, ahead,
                                   sums + k * stride + i);
    }
  }
}

// Rows of numbers that become numbers of the arithmetic on their way to a register.
template <class V, class X>
struct WideRows {
  static constexpr int kBytes = V::kLanes * static_cast<int>(sizeof(X));  // of a register
  const X* const* row;

  PYATTN_INLINE V load(int k, std::int64_t e) const { return V::load(row[k] + e); }
  PYATTN_INLINE V load(int k, std::int64_t e, std::int64_t left) const {
    return load_left<V>(row[k] + e, left);
  }
};

// out[i][e] = out[i][e] * scale[i] + sum_key p[key][i] * rows[key][e] for NR queries and NE
// registers of columns, of which the last may be a part.
template <class V, int NE, int NR, class U, class Values, class Rows>
void add_columns(const U* p, int stride, const Values& rows, int keys, std::int64_t column,
                 std::int64_t columns, const typename V::Scalar* scale, Rows& ahead,
                 typename V::Scalar* out) {
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
    ahead.touch((NE * Values::kBytes + 63) / 64);
    PYATTN_UNROLL
    for (int e = 0; e < NE; ++e) {
      value[e] = NE > 1 ? rows.load(k, column + e * L) : rows.load(k, column, columns - column);
    }
    PYATTN_UNROLL
    for (int i = 0; i < NR; ++i) {
      const V weight = Products<V, U>::broadcast(p + k * stride + i);
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

template <class V, int NR, class U, class Values, class Rows>
void add_few_rows(const U* p, int stride, const Values& rows, int keys, std::int64_t columns,
                  const typename V::Scalar* scale, Rows& ahead, typename V::Scalar* out) {
  constexpr int L = V::kLanes;
  constexpr int kWide = V::kVecs;
  std::int64_t e = 0;
  if constexpr (kWide > 1) {
    for (; e + kWide * L <= columns; e += kWide * L) {
      add_columns<V, kWide, NR>(p, stride, rows, keys, e, columns, scale, ahead, out);
    }
  }
  for (; e < columns; e += L) {
    add_columns<V, 1, NR>(p, stride, rows, keys, e, columns, scale, ahead, out);
  }
}

template <class V, int NR, class U, class Values, class Rows>
void add_few_tail(const U* p, int stride, const Values& rows, int keys, int count,
                  std::int64_t columns, const typename V::Scalar* scale, Rows& ahead,
                  typename V::Scalar* out) {
  if constexpr (NR > 0) {
    if (count == NR) {
      add_few_rows<V, NR>(p, stride, rows, keys, columns, scale, ahead, out);
    } else {
      add_few_tail<V, NR - 1>(p, stride, rows, keys, count, columns, scale, ahead, out);
    }
  }
}

// The same for `count` queries.
template <class V, class U, class Values, class Rows>
void add_few(const U* p, int stride, const Values& rows, int keys, int count, std::int64_t columns,
             const typename V::Scalar* scale, Rows& ahead, typename V::Scalar* out) {
  int i = 0;
  for (; i + V::kRows <= count; i += V::kRows) {
    add_few_rows<V, V::kRows>(p + i, stride, rows, keys, columns, scale + i, ahead,
                              out + i * columns);
  }
  add_few_tail<V, V::kRows - 1>(p + i, stride, rows, keys, count - i, columns, scale + i, ahead,
                                out + i * columns);
}

}  // namespace
}  // namespace pyattn

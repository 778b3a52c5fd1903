// Blocks of one query or a few: decoding. With queries in the lanes most of a register would be
// empty, so here the depth and the columns are in the lanes and the rows stay as they come.
// AVX-512, Zen 5, 512 keys of depth 64 in the cache: 1.75 times faster for one row, 1.25 for two,
// slower from four on.
#pragma once

#include "cpu/matrix.inl"

namespace pyattn {
namespace {

template <class V>
constexpr bool is_few(int rows) {
  return rows * 5 <= V::kLanes;
}

// query . key, in two registers and then across the lanes.
template <class V>
typename V::Scalar dot_across(const typename V::Scalar* query, const typename V::Scalar* key,
                              std::int64_t depth) {
  using T = typename V::Scalar;
  constexpr int L = V::kLanes;
  V even = V::broadcast(T(0));
  V odd = even;
  std::int64_t d = 0;
  for (; d + 2 * L <= depth; d += 2 * L) {
    even = V::fma(V::load(query + d), V::load(key + d), even);
    odd = V::fma(V::load(query + d + L), V::load(key + d + L), odd);
  }
  for (; d < depth; d += L) {
    even = V::fma(load_left<V>(query + d, depth - d), load_left<V>(key + d, depth - d), even);
  }
  return sum_lanes(even + odd);
}

// out[e] = out[e] * scale + sum_key p[key] * rows[key][e]; `p` has the stride of a panel.
template <class V>
void add_across(const typename V::Scalar* p, const typename V::Scalar* const* rows, int keys,
                std::int64_t columns, typename V::Scalar scale, typename V::Scalar* out) {
  using T = typename V::Scalar;
  constexpr int L = V::kLanes;
  constexpr int kWide = 4;
  const V factor = V::broadcast(scale);
  std::int64_t e = 0;
  for (; e + kWide * L <= columns; e += kWide * L) {
    V sum[kWide];
    PYATTN_UNROLL
    for (int i = 0; i < kWide; ++i) sum[i] = V::broadcast(T(0));
    for (int k = 0; k < keys; ++k) {
      const V weight = V::broadcast(p[k * kPanel<V>]);
      PYATTN_UNROLL
      for (int i = 0; i < kWide; ++i) sum[i] = V::fma(weight, V::load(rows[k] + e + i * L), sum[i]);
    }
    PYATTN_UNROLL
    for (int i = 0; i < kWide; ++i) {
      V::fma(V::load(out + e + i * L), factor, sum[i]).store(out + e + i * L);
    }
  }
  for (; e < columns; e += L) {
    V sum = V::broadcast(T(0));
    for (int k = 0; k < keys; ++k) {
      sum = V::fma(V::broadcast(p[k * kPanel<V>]), load_left<V>(rows[k] + e, columns - e), sum);
    }
    store_left(V::fma(load_left<V>(out + e, columns - e), factor, sum), out + e, columns - e);
  }
}

}  // namespace
}  // namespace pyattn

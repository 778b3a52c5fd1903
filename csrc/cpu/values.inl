// Rows of V for the product P V, which multiplies every row with the weight of every query, also
// with the 0 of one that may not attend to it. Where that happens and a number of the row is not
// finite, the number is replaced by 0 in a copy and added afterwards, for the queries that may: the
// other columns, and the other queries, are summed as if nothing was amiss.
#pragma once

#include "cpu/few_rows.inl"
#include "cpu/softmax_tile.inl"

namespace pyattn {
namespace {

template <class V, class X>
bool finite(const X* row, std::int64_t columns) {
  using T = typename V::Scalar;
  const V zero = V::broadcast(T(0));
  V sum = zero;
  for (std::int64_t e = 0; e < columns; e += V::kLanes) {
    sum = V::fma(load_left<V>(row + e, columns - e), zero, sum);
  }
  return V::to_bits(V::equal(sum, zero)) == low_bits(V::kLanes);
}

// to = row, with 0 for a NaN or an infinity; they may be the same.
template <class V, class X>
void copy_finite(const X* row, std::int64_t columns, X* to) {
  const V zero = V::broadcast(typename V::Scalar(0));
  for (std::int64_t e = 0; e < columns; e += V::kLanes) {
    const V x = load_left<V>(row + e, columns - e);
    store_left(V::select(V::equal(x * zero, zero), x, zero), to + e, columns - e);
  }
}

// If a number of `row`, that of kept key `k`, must not be multiplied by 0, notes this in `tile`
// and returns a copy of the row without it. `source` is the row where it lies.
template <class V, class X, class U>
const U* hide_odd(const U* row, std::int64_t columns, int k, const X* source, std::int64_t step,
                  U* copy, Tile<X>& tile) {
  if (finite<V>(row, columns)) return row;
  tile.odd[tile.odd_count++] = {k, source, step};
  copy_finite<V>(row, columns, copy);
  return copy;
}

// The rows of the kept keys; `copies` has room for all of them.
template <class V, class X, class U>
void load_values(const AttentionParams<X>& p, const Queries<X>& queries, std::int64_t group,
                 U* copies, Tile<X>& tile, const U** rows) {
  const std::int64_t columns = p.value.shape[3];
  const std::int64_t step = p.value.stride[3];
  const TileRows<X> source(p, p.value, queries.block.batch, group, tile.first);
  tile.odd_count = 0;
  if constexpr (sizeof(X) == sizeof(U)) {
    if (step == 1 && tile.count == tile.width && !tile.partial) {
      source.list(tile.count, rows);
      return;
    }
  }
  for (int k = 0; k < tile.count; ++k, copies += columns) {
    const X* row = source[tile.index[k]];
    rows[k] = unit_row<V>(row, step, columns, copies);
    if (!tile.partial || tile.bits[k] == queries.valid) continue;
    rows[k] = hide_odd<V>(rows[k], columns, k, row, step, copies, tile);
  }
}

// Calls body(odd row, column, number) for the numbers that were replaced by 0.
template <class V, class X, class Body>
void for_each_odd(const Tile<X>& tile, int keys, std::int64_t columns, Body&& body) {
  for (int i = 0; i < tile.odd_count && tile.odd[i].key < keys; ++i) {
    const OddRow<X>& odd = tile.odd[i];
    for (std::int64_t e = 0; e < columns; ++e) {
      const Compute<X> x = widen<V>(odd.row + e * odd.step);
      if (!(x - x == Compute<X>(0))) body(odd, e, x);
    }
  }
}

// out[e][lane] += p[key][lane] * number
template <class V, int NV, class X>
void add_odd_rows(const Tile<X>& tile, int lane, int keys, std::int64_t columns,
                  const Compute<X>* p, Compute<X>* out) {
  using T = Compute<X>;
  for_each_odd<V>(tile, keys, columns, [&](const OddRow<X>& odd, std::int64_t e, T x) {
    for (int v = 0; v < NV; ++v) {
      const int at = v * V::kLanes;
      T* place = out + e * kPanel<V> + at;
      const V before = V::load(place);
      const V after = V::fma(V::load(p + odd.key * kPanel<V> + at), V::broadcast(x), before);
      V::select(V::from_bits(tile.bits[odd.key] >> (lane + at)), after, before).store(place);
    }
  });
}

// P V with the values as numbers of the arithmetic.
template <class V, class X>
class RowValues {
 public:
  using T = Compute<X>;

  void load(const AttentionParams<X>& p, const Queries<X>& queries, std::int64_t group,
            const Workspace<T>& w, bool by_rows, Tile<X>& tile) {
    columns_ = p.value.shape[3];
    if (by_rows) {
      load_values<V>(p, queries, group, reinterpret_cast<X*>(w.values), tile, few_);
    } else {
      load_values<V>(p, queries, group, w.values, tile, row_);
    }
  }

  template <int NV>
  void add_panel(const Tile<X>& tile, const Strip<V>& strip, const T* p, const T* scale,
                 Ahead<X>& ahead, T* out) const {
    add_tile<V, NV>(p, row_, strip.keys, columns_, scale, ahead, out);
    add_odd_rows<V, NV>(tile, strip.lane, strip.keys, columns_, p, out);
  }

  template <int NV>
  void add_rows(const Tile<X>& tile, const Strip<V>& strip, const T* p, int stride, const T* scale,
                Ahead<X>& ahead, T* out) const {
    const WideRows<V, X> rows{few_};
    add_few<V>(p, stride, rows, strip.keys, strip.lanes, columns_, scale, ahead, out);
    for_each_odd<V>(tile, strip.keys, columns_, [&](const OddRow<X>& odd, std::int64_t e, T x) {
      for (int lane = 0; lane < strip.lanes; ++lane) {
        if ((tile.bits[odd.key] >> lane & 1) == 0) continue;
        T* place = out + lane * columns_ + e;
        const V weight = V::broadcast(p[odd.key * stride + lane]);
        V::fma(weight, V::broadcast(x), V::broadcast(*place)).store(place, 1);
      }
    });
  }

 private:
  std::int64_t columns_ = 0;
  const T* row_[kTileKeys];
  const X* few_[kTileKeys];  // of few queries: as they lie in memory
};

}  // namespace
}  // namespace pyattn

// Pieces of the backward pass: its memory, rows of queries beside panels of them, and what happens
// to a tile between the products.
//
// A block holds its queries and the gradients of its outputs twice. As panels (queries in the
// lanes) they give scores and dp = grad_out value^T by dot_tile, and dQ by add_tile, all as in the
// forward pass. As rows (columns in the lanes) they are the other operand of dV = p^T grad_out and
// dK = ds^T query, where p and ds are read one scalar at a time, a key's being contiguous.
#pragma once

#include "core/backward.h"
#include "cpu/output.inl"

namespace pyattn {
namespace {

template <class T>
struct GradientWorkspace {
  T* query;      // [panel][d][lane], scaled; additive: as in Workspace
  T* query_exp;  // additive only, as are the next three
  T* rows_exp;   // [row][d]
  T* keys_exp;
  T* v;
  T* grad_out;    // [panel][e][lane]
  T* query_rows;  // [panel of columns][row][column], scaled
  T* grad_rows;
  T* weights;  // [panel][key][lane]: scores, then p
  T* grads;    // the same: dp, then ds
  T* slack;    // the same: derivative of the softcap
  T* bias;
  T* keys;
  T* values;
  T* finite_keys;
  T* row;
  T* lse;  // per lane, as are the following
  T* delta;
  T* slope;
  T* relative;
  T* ones;

  GradientWorkspace(T* scratch, std::int64_t depth, std::int64_t columns) {
    const auto take = [&scratch](std::int64_t count) {
      T* piece = scratch;
      scratch += (count + 15) / 16 * 16;
      return piece;
    };
    const auto wide = [](std::int64_t count) {
      return (count + kBlockRows - 1) / kBlockRows * kBlockRows;
    };
    const std::int64_t even = depth + depth % 2;
    query = take(kBlockRows * even);
    query_exp = take(kBlockRows * even);
    rows_exp = take(kBlockRows * even);
    keys_exp = take(kTileKeys * even);
    v = take(even);
    grad_out = take(kBlockRows * columns);
    query_rows = take(kBlockRows * wide(even));
    grad_rows = take(kBlockRows * wide(columns));
    T** const tiles[] = {&weights, &grads, &slack, &bias};
    for (T** piece : tiles) *piece = take(kBlockRows * kTileKeys);
    keys = take(kTileKeys * even);
    values = take(kTileKeys * columns);
    finite_keys = take(kTileKeys * depth);
    row = take(depth + columns);
    T** const lanes[] = {&lse, &delta, &slope, &relative, &ones};
    for (T** piece : lanes) *piece = take(kBlockRows);
  }
};

// The row length of KeySums.
constexpr std::int64_t sum_stride(std::int64_t columns) {
  return (columns + kSumAlign - 1) / kSumAlign * kSumAlign;
}

// A row of `view` for `lane`, scaled, in the type of the arithmetic.
template <class V, class X>
void copy_row(const Queries<X>& queries, const View<const X, 4>& view, int lane, Compute<X> scale,
              Compute<X>* to) {
  const std::int64_t columns = view.shape[3];
  const X* row = queries.input(view.data, view.stride, lane);
  const Compute<X>* dense = unit_row<V>(row, view.stride[3], columns, to);
  const V factor = V::broadcast(scale);
  for (std::int64_t c = 0; c < columns; c += V::kLanes) {
    store_left(load_left<V>(dense + c, columns - c) * factor, to + c, columns - c);
  }
}

// rows[panel of columns][lane][column] = scale * row. Returns the lanes whose rows are not finite:
// 0 * NaN would reach keys that these queries may not see, so their rows are left 0.
template <class V, class X>
std::uint64_t load_row_panels(const Queries<X>& queries, const View<const X, 4>& view,
                              Compute<X> scale, Compute<X>* row, Compute<X>* rows) {
  using T = Compute<X>;
  const std::int64_t columns = view.shape[3];
  std::uint64_t odd = 0;
  for (int lane = 0; lane < queries.count; ++lane) {
    copy_row<V>(queries, view, lane, scale, row);
    const bool even = finite<V>(row, columns);
    if (!even) odd |= std::uint64_t{1} << lane;
    for (std::int64_t c = 0; c < columns; c += V::kLanes) {
      const V x = even ? load_left<V>(row + c, columns - c) : V::broadcast(T(0));
      x.store(rows + c / kPanel<V> * kPanel<V> * kBlockRows + lane * kPanel<V> + c % kPanel<V>);
    }
  }
  return odd;
}

// delta of a lane: grad_out . out - grad_lse.
template <class V, class X>
Compute<X> delta_of(const BackwardParams<X>& params, const Queries<X>& queries, int lane,
                    const GradientWorkspace<Compute<X>>& w) {
  const std::int64_t columns = params.out.shape[3];
  // Both rows fit: the spare row and the copies of values are not in use yet.
  const auto* grad = unit_row<V>(queries.input(params.grad_out.data, params.grad_out.stride, lane),
                                 params.grad_out.stride[3], columns, w.row);
  const auto* out = unit_row<V>(queries.input(params.out.data, params.out.stride, lane),
                                params.out.stride[3], columns, w.values);
  V sum = V::broadcast(Compute<X>(0));
  for (std::int64_t e = 0; e < columns; e += V::kLanes) {
    sum = V::fma(load_left<V>(grad + e, columns - e), load_left<V>(out + e, columns - e), sum);
  }
  const Compute<X> delta = sum_lanes(sum);
  if (params.grad_lse.data == nullptr) return delta;
  return delta - *queries.output(params.grad_lse.data, params.grad_lse.stride, lane);
}

// to[i][column] += sum over the lanes begin .. end - 1 of weights[panel][i][lane] *
// columns[lane][column], for NR keys and NV registers of columns.
template <class V, int NV, int NR>
void add_products(const typename V::Scalar* weights, int begin, int end,
                  const typename V::Scalar* columns, typename V::Scalar* const* to) {
  using T = typename V::Scalar;
  V sum[NR][NV];
  PYATTN_UNROLL
  for (int i = 0; i < NR; ++i) {
    PYATTN_UNROLL
    for (int v = 0; v < NV; ++v) {
      PYATTN_PREFETCH(to[i] + v * V::kLanes);
      sum[i][v] = V::broadcast(T(0));
    }
  }
  for (int base = begin / kPanel<V> * kPanel<V>; base < end; base += kPanel<V>) {
    const T* weight = weights + base * kTileKeys;
    const int last = end - base < kPanel<V> ? end - base : kPanel<V>;
    for (int lane = begin > base ? begin - base : 0; lane < last; ++lane) {
      V column[NV];
      PYATTN_UNROLL
      for (int v = 0; v < NV; ++v) {
        column[v] = V::load(columns + (base + lane) * kPanel<V> + v * V::kLanes);
      }
      PYATTN_UNROLL
      for (int i = 0; i < NR; ++i) {
        const V x = V::broadcast(weight[i * kPanel<V> + lane]);
        PYATTN_UNROLL
        for (int v = 0; v < NV; ++v) sum[i][v] = V::fma(column[v], x, sum[i][v]);
      }
    }
  }
  PYATTN_UNROLL
  for (int i = 0; i < NR; ++i) {
    PYATTN_UNROLL
    for (int v = 0; v < NV; ++v) {
      T* place = to[i] + v * V::kLanes;
      (V::load(place) + sum[i][v]).store(place);
    }
  }
}

template <class V, int NV, int NR>
void add_products_tail(const typename V::Scalar* weights, int count, int begin, int end,
                       const typename V::Scalar* columns, typename V::Scalar* const* to) {
  if constexpr (NR > 0) {
    if (count == NR) {
      add_products<V, NV, NR>(weights, begin, end, columns, to);
    } else {
      add_products_tail<V, NV, NR - 1>(weights, count, begin, end, columns, to);
    }
  }
}

// sums[index of key] += weights^T rows for the kept keys of a tile. Lanes that may attend to none
// of the keys that go together are left out, which halves the work on the diagonal of a causal
// mask.
template <class V, class X>
void add_tile_products(const Tile<X>& tile, int lanes, const Compute<X>* weights,
                       const Compute<X>* rows, std::int64_t columns, Compute<X>* sums) {
  using T = Compute<X>;
  const std::int64_t stride = sum_stride(columns);
  for (std::int64_t c = 0; c < columns; c += kPanel<V>) {
    const int width = columns - c < kPanel<V> ? static_cast<int>(columns - c) : kPanel<V>;
    with_vecs<V>(width, [&](auto vecs) {
      constexpr int NV = decltype(vecs)::value;
      for (int k = 0; k < tile.count; k += V::kRows) {
        const int count = tile.count - k < V::kRows ? tile.count - k : V::kRows;
        T* to[V::kRows];
        std::uint64_t used = 0;
        for (int i = 0; i < count; ++i) {
          to[i] = sums + tile.index[k + i] * stride + c;
          used |= tile.bits[k + i];
        }
        int begin = 0;
        int end = lanes;
        if (tile.partial) {
          while ((used >> begin & 0xff) == 0) begin += 8;
          while ((used >> (end - 1)) == 0) --end;
        }
        const T* weight = weights + k * kPanel<V>;
        add_products_tail<V, NV, V::kRows>(weight, count, begin, end, rows + c * kBlockRows, to);
      }
    });
  }
}

// slack = 1 - (s / cap)^2, the derivative of the softcap at a capped score s.
template <class V, int NV>
void differentiate_cap(int keys, typename V::Scalar cap, const typename V::Scalar* scores,
                       typename V::Scalar* slack) {
  using T = typename V::Scalar;
  const V inverse = V::broadcast(T(1) / cap);
  const V one = V::broadcast(T(1));
  for (int k = 0; k < keys; ++k) {
    for (int v = 0; v < NV; ++v) {
      const int at = k * kPanel<V> + v * V::kLanes;
      const V x = V::load(scores + at) * inverse;
      V::fnma(x, x, one).store(slack + at);
    }
  }
}

// The lanes of a tile whose weights are kept by dropout, and what they are multiplied by.
template <class T>
struct Kept {
  const std::uint64_t* lanes = nullptr;  // null: all of them
  T factor = T(1);
};

// Scores to weights, p = exp(s - lse). With `grads`, there dp to ds = p (kept dp - delta), and the
// weights become those that dropout leaves. All pointers start at the strip.
template <class V, int NV, class X>
void differentiate_softmax(const Tile<X>& tile, const Strip<V>& strip, const Kept<Compute<X>>& kept,
                           const Compute<X>* lse, const Compute<X>* delta, Compute<X>* weights,
                           Compute<X>* grads) {
  using T = Compute<X>;
  const V zero = V::broadcast(T(0));
  const V factor = V::broadcast(kept.factor);
  for (int v = 0; v < NV; ++v) {
    const int at = v * V::kLanes;
    const V normaliser = finite_max(V::load(lse + at));
    const V mean = V::load(delta + at);
    for (int k = 0; k < strip.keys; ++k) {
      T* place = weights + k * kPanel<V> + at;
      const int shift = strip.lane + at;
      V p = exp_fast(V::load(place) - normaliser);
      // A row whose log-sum-exp is NaN, or a value that is, must not reach masked keys.
      if (tile.partial) p = V::select(V::from_bits(tile.bits[k] >> shift), p, zero);
      V dropped = p;
      if (kept.lanes != nullptr) {
        dropped = V::select(V::from_bits(kept.lanes[k] >> shift), p * factor, zero);
      }
      if (grads != nullptr) {
        T* grad = grads + k * kPanel<V> + at;
        V ds = V::load(grad);
        if (kept.lanes != nullptr) {
          ds = V::select(V::from_bits(kept.lanes[k] >> shift), ds * factor, zero);
        }
        ds = p * (ds - mean);
        if (tile.partial) ds = V::select(V::from_bits(tile.bits[k] >> shift), ds, zero);
        ds.store(grad);
      }
      dropped.store(place);
    }
  }
}

// ds = ds slack. At a masked pair ds is 0, but the slack of a key that is not finite is NaN.
template <class V, int NV, class X>
void apply_slack(const Tile<X>& tile, const Strip<V>& strip, const Compute<X>* slack,
                 Compute<X>* grads) {
  const V zero = V::broadcast(Compute<X>(0));
  for (int k = 0; k < strip.keys; ++k) {
    for (int v = 0; v < NV; ++v) {
      const int at = k * kPanel<V> + v * V::kLanes;
      const V ds = V::load(grads + at) * V::load(slack + at);
      const auto allowed = V::from_bits(tile.bits[k] >> (strip.lane + v * V::kLanes));
      V::select(allowed, ds, zero).store(grads + at);
    }
  }
}

// Rows of the queries' side that are not finite, for the keys that they may see: sums += weight
// row.
template <class V, class X>
void add_odd_queries(const Queries<X>& queries, const Tile<X>& tile, std::uint64_t odd,
                     const View<const X, 4>& view, Compute<X> scale, const Compute<X>* weights,
                     Compute<X>* row, Compute<X>* sums) {
  const std::int64_t columns = view.shape[3];
  for (int lane = 0; lane < queries.count; ++lane) {
    if ((odd >> lane & 1) == 0) continue;
    copy_row<V>(queries, view, lane, scale, row);
    for (int k = 0; k < tile.count; ++k) {
      if ((tile.bits[k] >> lane & 1) == 0) continue;
      const V weight = V::broadcast(weights[panel_offset<V>(lane, kTileKeys) + k * kPanel<V>]);
      Compute<X>* to = sums + tile.index[k] * sum_stride(columns);
      for (std::int64_t c = 0; c < columns; c += V::kLanes) {
        V::fma(weight, load_left<V>(row + c, columns - c), V::load(to + c)).store(to + c);
      }
    }
  }
}

}  // namespace
}  // namespace pyattn

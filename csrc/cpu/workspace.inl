// The memory of one task, and the state of the online softmax that it holds.
#pragma once

#include "cpu/tile.inl"

namespace pyattn {
namespace {

// m, l and o of every lane: maximum, sum of the numerators relative to it, sum of the values so
// weighted. o is [panel][column][lane], or [row][column] for few queries.
template <class T>
struct State {
  T* max;
  T* sum;
  T* out;
};

template <class T>
struct Workspace {
  T* query;       // [panel][depth][lane], or [row][depth] for few queries
  T* query_exp;   // the same, additive only
  T* query_rows;  // [row][depth], additive only
  T* rows_exp;    // the same
  T* scores;      // [panel][key][lane]
  T* bias;        // the same
  T* spare;       // the same
  T* keys;        // copies of rows of K, or what the mechanism makes of them
  T* keys_exp;
  T* values;           // copies of rows of V
  void* turned_query;  // [row][depth] in the storage type, as the next
  void* turned_keys;
  T* wide;  // a row of them
  T* zeros;
  T* v;
  State<T> part;
  State<T> total;
  T* scale;     // per lane, as are the following
  T* factor;    // a second one
  T* slope;     // of ALiBi
  T* relative;  // position of the query less that of the tile's first key
  T* entropy;

  Workspace(T* scratch, std::int64_t depth, std::int64_t columns) {
    const auto take = [&scratch](std::int64_t count) {
      T* piece = scratch;
      scratch += (count + 15) / 16 * 16;
      return piece;
    };
    depth += depth % 2;
    query = take(kBlockRows * depth);
    query_exp = take(kBlockRows * depth);
    scores = take(kBlockRows * kTileKeys);
    bias = take(kBlockRows * kTileKeys);
    spare = take(kBlockRows * kTileKeys);
    part.out = take(kBlockRows * columns);
    total.out = take(kBlockRows * columns);
    keys = take(kTileKeys * depth);
    keys_exp = take(kTileKeys * depth);
    values = take(kTileKeys * columns);
    turned_query = query_rows = take(kBlockRows * depth);
    turned_keys = rows_exp = take(kTileKeys * depth);
    wide = take(depth);
    zeros = take(columns);
    v = take(depth);
    T** const lanes[] = {&part.max, &part.sum, &total.max, &total.sum, &scale,
                         &factor,   &slope,    &relative,  &entropy};
    for (T** piece : lanes) *piece = take(kBlockRows);
  }
};

// Where the part of a [panel][row][lane] buffer with `rows` rows that belongs to `lane` starts.
template <class V>
constexpr std::int64_t panel_offset(int lane, std::int64_t rows) {
  return lane / kPanel<V> * kPanel<V> * rows + lane % kPanel<V>;
}

// The exponents are taken relative to this: 0 where no key was allowed yet.
template <class V>
PYATTN_INLINE V finite_max(V max) {
  using T = typename V::Scalar;
  const V masked = V::broadcast(-static_cast<T>(HUGE_VAL));
  return V::select(V::equal(max, masked), V::broadcast(T(0)), max);
}

// The state before the first key, for `count` queries.
template <class V>
void clear_state(const State<typename V::Scalar>& state, int count, std::int64_t columns,
                 bool by_rows) {
  using T = typename V::Scalar;
  const V zero = V::broadcast(T(0));
  const V lowest = V::broadcast(-static_cast<T>(HUGE_VAL));
  for (int lane = 0; lane < kBlockRows; lane += V::kLanes) {
    lowest.store(state.max + lane);
    zero.store(state.sum + lane);
  }
  if (by_rows) {
    std::memset(state.out, 0, sizeof(T) * static_cast<std::size_t>(count * columns));
    return;
  }
  for (int lane = 0; lane < count; lane += kPanel<V>) {
    with_vecs<V>(count - lane, [&](auto vecs) {
      T* panel = state.out + lane * columns;
      for (std::int64_t e = 0; e < columns; ++e) {
        PYATTN_UNROLL
        for (int v = 0; v < decltype(vecs)::value; ++v) {
          zero.store(panel + e * kPanel<V> + v * V::kLanes);
        }
      }
    });
  }
}

// total = total + part, for parts that come in the order of their keys:
//   m' = max(m, m_p)   a = exp(m - m')   b = exp(m_p - m')   l' = l a + l_p b   o' = o a + o_p b
template <class V>
void merge_state(const State<typename V::Scalar>& total, const State<typename V::Scalar>& part,
                 int count, std::int64_t columns, bool by_rows, typename V::Scalar* scale,
                 typename V::Scalar* factor) {
  for (int lane = 0; lane < kBlockRows; lane += V::kLanes) {
    const V before = V::load(total.max + lane);
    const V other = V::load(part.max + lane);
    const V top = V::max(before, other);
    const V a = exp_fast(before - finite_max(top));
    const V b = exp_fast(other - finite_max(top));
    top.store(total.max + lane);
    a.store(scale + lane);
    b.store(factor + lane);
    V::fma(V::load(total.sum + lane), a, V::load(part.sum + lane) * b).store(total.sum + lane);
  }
  for (int lane = 0; by_rows && lane < count; ++lane) {
    const V a = V::broadcast(scale[lane]);
    const V b = V::broadcast(factor[lane]);
    for (std::int64_t e = 0; e < columns; e += V::kLanes) {
      auto* place = total.out + lane * columns + e;
      const V added = load_left<V>(part.out + lane * columns + e, columns - e) * b;
      store_left(V::fma(load_left<V>(place, columns - e), a, added), place, columns - e);
    }
  }
  for (int lane = 0; !by_rows && lane < count; lane += V::kLanes) {
    const V a = V::load(scale + lane);
    const V b = V::load(factor + lane);
    const std::int64_t at = panel_offset<V>(lane, columns);
    for (std::int64_t e = 0; e < columns; ++e) {
      auto* place = total.out + at + e * kPanel<V>;
      V::fma(V::load(place), a, V::load(part.out + at + e * kPanel<V>) * b).store(place);
    }
  }
}

// One more score without a value: it enters the sum, and the others make room.
template <class V, class X>
void add_sinks(const Queries<X>& queries, const State<Compute<X>>& total, Compute<X>* scale) {
  for (int lane = 0; lane < queries.count; ++lane)
    scale[lane] = queries.p.sinks[queries.head(lane)];
  for (int lane = 0; lane < queries.count; lane += V::kLanes) {
    const V before = V::load(total.max + lane);
    const V sink = V::load(scale + lane);
    const V top = finite_max(V::max(before, sink));
    const V a = exp_fast(before - top);
    V::max(before, sink).store(total.max + lane);
    V::fma(V::load(total.sum + lane), a, exp_fast(sink - top)).store(total.sum + lane);
    a.store(scale + lane);
  }
}

}  // namespace
}  // namespace pyattn

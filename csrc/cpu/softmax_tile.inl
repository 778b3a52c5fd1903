// What happens to a tile of scores between the two products: softcap, biases, masks, and one step
// of the online softmax. The recurrence is described in attention.inl.
#pragma once

#include "cpu/random.inl"
#include "cpu/workspace.inl"

namespace pyattn {
namespace {

// Queries that go through a tile together. Where pairs are masked, narrower strips of a panel
// follow the diagonal of the causal mask more closely: a strip ends at the last key it may attend
// to.
template <class V>
struct Strip {
  int lane;
  int lanes;
  int keys;
};

template <class V, class X, class Body>
void for_each_strip(const Tile<X>& tile, int count, Body&& body) {
  constexpr int kNarrow = 32 < kPanel<V> ? 32 : kPanel<V>;
  const int width = tile.partial ? kNarrow : kPanel<V>;
  for (int lane = 0; lane < count; lane += width) {
    Strip<V> strip{lane, count - lane < width ? count - lane : width, tile.count};
    if (tile.partial) {
      const std::uint64_t mine = low_bits(strip.lanes) << lane;
      while (strip.keys > 0 && (tile.bits[strip.keys - 1] & mine) == 0) --strip.keys;
    }
    if (strip.keys > 0) with_vecs<V>(strip.lanes, [&](auto vecs) { body(vecs, strip); });
  }
}

// s = cap tanh(s / cap)
template <class V, int NV>
void cap_scores(int keys, typename V::Scalar cap, typename V::Scalar* scores) {
  using T = typename V::Scalar;
  const V limit = V::broadcast(cap);
  const V inverse = V::broadcast(T(1) / cap);
  for (int k = 0; k < keys; ++k) {
    for (int v = 0; v < NV; ++v) {
      T* place = scores + k * kPanel<V> + v * V::kLanes;
      (limit * tanh_accurate(V::load(place) * inverse)).store(place);
    }
  }
}

// s = s - slope |p - j|; `slope` and `relative` start at the strip's first lane.
template <class V, int NV>
void slope_scores(const int* index, int keys, const typename V::Scalar* slope,
                  const typename V::Scalar* relative, typename V::Scalar* scores) {
  using T = typename V::Scalar;
  for (int v = 0; v < NV; ++v) {
    const int at = v * V::kLanes;
    const V factor = V::load(slope + at);
    const V position = V::load(relative + at);
    for (int k = 0; k < keys; ++k) {
      T* place = scores + k * kPanel<V> + at;
      const V distance = abs(position - V::broadcast(static_cast<T>(index[k])));
      V::fnma(factor, distance, V::load(place)).store(place);
    }
  }
}

// s = s + bias, and -inf where masked; `bias` and `scores` start at the panel of the strip.
template <class V, int NV, class X>
void mask_scores(const Tile<X>& tile, int lane, int keys, const Compute<X>* bias,
                 Compute<X>* scores) {
  using T = Compute<X>;
  const V masked = V::broadcast(-static_cast<T>(HUGE_VAL));
  for (int k = 0; k < keys; ++k) {
    for (int v = 0; v < NV; ++v) {
      const int at = v * V::kLanes;
      T* place = scores + k * kPanel<V> + at;
      V s = V::load(place);
      if (tile.biased) s = s + V::load(bias + tile.index[k] * kPanel<V> + at);
      s = V::select(V::from_bits(tile.bits[k] >> (lane + at)), s, masked);
      s.store(place);
    }
  }
}

// Scores to numerators in place; updates m and l and leaves a in `scale`.
template <class V, int NV>
void softmax_step(int keys, typename V::Scalar* scores, typename V::Scalar* max,
                  typename V::Scalar* sum, typename V::Scalar* scale) {
  using T = typename V::Scalar;
  V top[NV];
  V total[NV];
  PYATTN_UNROLL
  for (int v = 0; v < NV; ++v) top[v] = V::load(max + v * V::kLanes);
  for (int k = 0; k < keys; ++k) {
    PYATTN_UNROLL
    for (int v = 0; v < NV; ++v) {
      // This order drops a NaN from the maximum; it comes back in the exponential.
      top[v] = V::max(V::load(scores + k * kPanel<V> + v * V::kLanes), top[v]);
    }
  }
  PYATTN_UNROLL
  for (int v = 0; v < NV; ++v) {
    const V before = V::load(max + v * V::kLanes);
    top[v].store(max + v * V::kLanes);
    top[v] = finite_max(top[v]);
    exp_fast(before - top[v]).store(scale + v * V::kLanes);
    total[v] = V::broadcast(T(0));
  }
  for (int k = 0; k < keys; ++k) {
    PYATTN_UNROLL
    for (int v = 0; v < NV; ++v) {
      T* place = scores + k * kPanel<V> + v * V::kLanes;
      const V numerator = exp_fast(V::load(place) - top[v]);
      numerator.store(place);
      total[v] = total[v] + numerator;
    }
  }
  PYATTN_UNROLL
  for (int v = 0; v < NV; ++v) {
    const V l = V::load(sum + v * V::kLanes);
    V::fma(l, V::load(scale + v * V::kLanes), total[v]).store(sum + v * V::kLanes);
  }
}

// The same for the scores of few queries without gaps, scores[key][query] with R lanes to a key.
// The sum is made key by key, as above, so that a query gets the same bits.
template <class V, int R>
void softmax_few(int keys, typename V::Scalar* scores, typename V::Scalar* max,
                 typename V::Scalar* sum, typename V::Scalar* scale) {
  using T = typename V::Scalar;
  constexpr int L = V::kLanes;
  const V masked = V::broadcast(-static_cast<T>(HUGE_VAL));
  if (keys * R % L != 0) masked.store(scores + keys * R);  // the rest of the last register
  V top = masked;
  for (int i = 0; i < keys * R; i += L) top = V::max(V::load(scores + i), top);
  T lane[L];
  T relative[L];
  top.store(lane);
  for (int i = R; i < L; ++i) {
    lane[i % R] = lane[i] > lane[i % R] ? lane[i] : lane[i % R];
    lane[i] = -static_cast<T>(HUGE_VAL);
  }
  const V before = V::load(max);
  top = V::max(V::load(lane), before);
  top.store(max);
  exp_fast(before - finite_max(top)).store(scale);
  finite_max(top).store(relative);
  for (int i = R; i < L; ++i) relative[i] = relative[i % R];
  top = V::load(relative);
  T total[L] = {};
  for (int i = 0; i < keys * R; i += L) {
    T numerator[L];
    const V p = exp_fast(V::load(scores + i) - top);
    p.store(scores + i);
    p.store(numerator);
    for (int k = 0; k < L; k += R) {
      PYATTN_UNROLL
      for (int r = 0; r < R; ++r) total[r] += numerator[k + r];
    }
  }
  V::fma(V::load(sum), V::load(scale), V::load(total)).store(sum);
}

// kept[i] = the lanes whose weight for key i of the tile is not dropped.
template <class X>
void load_dropout(const Queries<X>& queries, const Tile<X>& tile,
                  std::uint64_t (&kept)[kTileKeys]) {
  const auto& dropout = queries.p.dropout;
  const std::int64_t offset = tile.first % kTileKeys;  // of a narrow tile
  for (int lane = 0; lane < kTileKeys; ++lane) kept[lane] = 0;
  for (int lane = 0; lane < queries.count; ++lane) {
    kept[lane] = kept_keys(dropout.seed, queries.block.batch, queries.head(lane),
                           queries.source(lane), tile.first - offset, dropout.threshold) >>
                 offset;
  }
  transpose_bits(kept);
  for (int i = 0; i < tile.count; ++i) kept[i] = kept[tile.index[i]];
}

template <class V, int NV>
void drop_numerators(const std::uint64_t* kept, int lane, int keys, typename V::Scalar* p) {
  using T = typename V::Scalar;
  for (int k = 0; k < keys; ++k) {
    for (int v = 0; v < NV; ++v) {
      const int at = v * V::kLanes;
      T* place = p + k * kPanel<V> + at;
      V::select(V::from_bits(kept[k] >> (lane + at)), V::load(place), V::broadcast(T(0)))
          .store(place);
    }
  }
}

}  // namespace
}  // namespace pyattn

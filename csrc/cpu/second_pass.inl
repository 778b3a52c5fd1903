// What needs the final maximum and sum of every row, and hence a second pass over the keys: the
// weights w = exp(s - m) / l and what is made of them. Scores arrive masked.
#pragma once

#include "cpu/output.inl"

namespace pyattn {
namespace {

// Kept keys apart again: scores[index[k]] = scores[k], `rest` in between.
template <class V, class X>
void spread_keys(const Strip<V>& strip, const Tile<X>& tile, Compute<X> rest, Compute<X>* scores) {
  int k = strip.keys - 1;
  for (int j = tile.width - 1; j >= 0; --j) {
    const bool kept = k >= 0 && tile.index[k] == j;
    for (int i = 0; i < strip.lanes; i += V::kLanes) {
      const V x = kept ? V::load(scores + k * kPanel<V> + i) : V::broadcast(rest);
      x.store(scores + j * kPanel<V> + i);
    }
    if (kept) --k;
  }
}

// A tile of scores or weights to rows of `view`; spreads the keys in `scores`.
template <class V, class X>
void store_tile(const Queries<X>& queries, const View<X, 4>& view, const Strip<V>& strip,
                const Tile<X>& tile, Compute<X> rest, Compute<X>* scores) {
  X* row[kPanel<V>];
  for (int i = 0; i < strip.lanes; ++i) {
    row[i] = queries.output(view.data, view.stride, strip.lane + i) + tile.first;
  }
  if (strip.keys < tile.width) spread_keys<V>(strip, tile, rest, scores);
  transpose_out<V>(scores, kPanel<V>, tile.width, static_cast<const Compute<X>*>(nullptr), row,
                   strip.lanes);
}

// s = exp(s - m) / l in place, and -sum w log w with log w = s - m - log l. The sum of a tile is
// made apart, as for the output: equal terms, added to a large number, all err in one direction.
template <class V, int NV>
void weigh_scores(int keys, const typename V::Scalar* max, const typename V::Scalar* scale,
                  const typename V::Scalar* log_sum, typename V::Scalar* scores,
                  typename V::Scalar* entropy) {
  using T = typename V::Scalar;
  const V zero = V::broadcast(T(0));
  for (int v = 0; v < NV; ++v) {
    const int at = v * V::kLanes;
    const V top = finite_max(V::load(max + at));
    const V inverse = V::load(scale + at);
    const V logarithm = V::load(log_sum + at);
    V sum = zero;
    for (int k = 0; k < keys; ++k) {
      T* place = scores + k * kPanel<V> + at;
      const V relative = V::load(place) - top;
      const V weight = exp_fast(relative) * inverse;
      // A weight of 0 adds nothing, though its logarithm is not finite.
      const V added = V::select(V::equal(weight, zero), zero, weight * (logarithm - relative));
      sum = sum + added;
      weight.store(place);
    }
    (V::load(entropy + at) + sum).store(entropy + at);
  }
}

// The k largest weights of each row, in the memory of the outputs; -1 stands for none yet. Keys
// come in order, so that among equals the first is kept.
template <class V, class X>
void rank_weights(const Queries<X>& queries, const Strip<V>& strip, const Tile<X>& tile,
                  const Compute<X>* weights) {
  using T = Compute<X>;
  const AttentionParams<X>& p = queries.p;
  const std::int64_t last = p.top_weights.shape[3] - 1;
  for (int i = 0; i < strip.lanes; ++i) {
    const int lane = strip.lane + i;
    T* top = queries.output(p.top_weights.data, p.top_weights.stride, lane);
    std::int64_t* index = queries.output(p.top_indices.data, p.top_indices.stride, lane);
    for (int k = 0; k < strip.keys; ++k) {
      const T weight = weights[k * kPanel<V> + i];
      if (!(weight > top[last]) || (tile.bits[k] >> lane & 1) == 0) continue;
      std::int64_t place = last;
      for (; place > 0 && weight > top[place - 1]; --place) {
        top[place] = top[place - 1];
        index[place] = index[place - 1];
      }
      top[place] = weight;
      index[place] = tile.first + tile.index[k];
    }
  }
}

template <class X>
void begin_ranks(const Queries<X>& queries) {
  const AttentionParams<X>& p = queries.p;
  for (int lane = 0; lane < queries.count; ++lane) {
    for (std::int64_t i = 0; i < p.top_weights.shape[3]; ++i) {
      queries.output(p.top_weights.data, p.top_weights.stride, lane)[i] = Compute<X>(-1);
      queries.output(p.top_indices.data, p.top_indices.stride, lane)[i] = -1;
    }
  }
}

template <class X>
void end_ranks(const Queries<X>& queries) {
  const AttentionParams<X>& p = queries.p;
  for (int lane = 0; lane < queries.count; ++lane) {
    Compute<X>* top = queries.output(p.top_weights.data, p.top_weights.stride, lane);
    for (std::int64_t i = 0; i < p.top_weights.shape[3]; ++i) {
      if (top[i] < 0) top[i] = Compute<X>(0);
    }
  }
}

// Fills the rows of `view`; tiles without an allowed key are not visited.
template <class V, class X>
void fill_rows(const Queries<X>& queries, const View<X, 4>& view, Compute<X> value) {
  for (int lane = 0; view.data != nullptr && lane < queries.count; ++lane) {
    X* row = queries.output(view.data, view.stride, lane);
    for (std::int64_t j = 0; j < view.shape[3]; j += V::kLanes) {
      store_left(V::broadcast(value), row + j, view.shape[3] - j);
    }
  }
}

}  // namespace
}  // namespace pyattn

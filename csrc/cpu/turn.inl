// Rotary position embedding of the rows of Q and K as they are loaded: the arithmetic of
// rotary.inl, rounded to the storage type, so that the scores have the bits of those of turned
// arrays.
//
// The rows of Q are turned once per block of queries, those of K once per tile and block. For a
// block of 64 queries that is 6 % of the two products at D = 128, less than writing and reading
// turned arrays costs while few blocks read the same keys.
#pragma once

#include "cpu/rotary.inl"
#include "cpu/workspace.inl"

namespace pyattn {
namespace {

template <class V, class X>
void turn_at(const Turn<Compute<X>>& turn, std::int64_t position, const X* row,
             std::int64_t columns, Compute<X>* wide, X* to) {
  using T = Compute<X>;
  constexpr bool kNarrow = sizeof(X) < sizeof(T);
  const T* from = unit_row<V>(row, 1, columns, wide);
  T* turned = wide;
  if constexpr (!kNarrow) turned = to;
  const T* cosine = turn.cosine + position * turn.stride;
  const T* sine = turn.sine + position * turn.stride;
  if (turn.interleaved) {
    turn_interleaved<V>(from, cosine, sine, turn.pairs, turned);
  } else {
    turn_halves<V>(from, cosine, sine, turn.pairs, turn.pairs, turned);
  }
  if constexpr (kNarrow) {
    for (std::int64_t d = 0; d < columns; d += V::kLanes) {
      store_left(load_left<V>(wide + d, columns - d), to + d, columns - d);
    }
  } else {
    for (std::int64_t d = 2 * turn.pairs; d < columns; ++d) to[d] = row[d];
  }
}

template <class V, class X>
void turn_queries(Queries<X>& queries, const Workspace<Compute<X>>& w) {
  const std::int64_t columns = queries.p.query.shape[3];
  X* to = static_cast<X*>(w.turned_query);
  for (int lane = 0; lane < queries.count; ++lane) {
    turn_at<V>(queries.p.turn, queries.position[lane], queries.query(lane), columns, w.wide,
               to + lane * columns);
  }
  queries.turned = to;
}

template <class V, class X>
void turn_keys(const AttentionParams<X>& p, Tile<X>& tile, const Workspace<Compute<X>>& w) {
  const std::int64_t columns = p.key.shape[3];
  X* to = static_cast<X*>(w.turned_keys);
  for (int k = 0; k < tile.count; ++k, to += columns) {
    turn_at<V>(p.turn, tile.first + tile.index[k], tile.key[k], columns, w.wide, to);
    tile.key[k] = to;
  }
}

}  // namespace
}  // namespace pyattn

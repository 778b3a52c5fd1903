// The block loop shared by every attention mechanism: softmax(score) V for up to 64 queries.
//
// Papers: Milakov and Gimelshein 2018 (arXiv:1805.02867), Rabe and Staats 2021 (arXiv:2112.05682),
//   Dao et al. 2022 (arXiv:2205.14135).
// Recurrence over tiles of 64 keys, per query, with m = -inf, l = 0, o = 0 at the start:
//   m' = max(m, max_j s_j)   a = exp(m - m')   p_j = exp(s_j - m')
//   l' = l a + sum_j p_j     o' = o a + sum_j p_j v_j
//   out = o / l,  lse = m + log l,  weights_j = exp(s_j - m) / l in a second pass over the keys.
//   It starts anew every kPartKeys keys, and the parts are merged in order (merge_state).
// Stored: 64 queries, one 64 x 64 tile of scores, o: 64 (D + 2 E + 64) numbers, most of which fit a
//   first-level cache at D = E = 64. Nothing of size T x S.
// A row with no allowed key keeps m = -inf and l = 0; m' is replaced by 0 in the exponents, so that
//   nothing is NaN, and out and weights are 0.
// Blocks of a few queries (decoding) keep them as rows instead (few_rows.inl), and go through all
//   keys of a part before its values: memory sets their pace, and it is read up to a fifth faster
//   in runs of 128 KiB than in runs of 16. Measured on Zen 5, 2 threads, against the rate of
//   reading: 1 query of 64 numbers 0.80 tile by tile, 0.86 so; 4 queries of 128 that share their
//   keys 0.81 and 0.87. Rows are asked for in the order of memory, 8 KiB ahead: 0.5 if not.
// Tried on Zen 5, AVX-512, one thread: 2 x 12 accumulators instead of 4 x 6, 3 to 5 % slower.
#pragma once

#include "cpu/score_block.inl"
#include "cpu/second_pass.inl"

namespace pyattn {
namespace {

template <class V, class X, class Score, class Values = RowValues<V, X>>
class Block : private ScoreBlock<V, X, Score> {
 public:
  using T = Compute<X>;
  using Base = ScoreBlock<V, X, Score>;
  using Base::Base;

  void run() {
    if (p_.out.data != nullptr) {
      first_pass();
      if (block_.part != nullptr) return;
      store_output<V>(queries_, w_.total, by_rows_, w_.scale);
    } else if (p_.given_lse.data != nullptr) {
      for (int lane = 0; lane < kBlockRows; ++lane) {
        const bool used = lane < queries_.count;
        w_.total.max[lane] =
            used ? *queries_.output(p_.given_lse.data, p_.given_lse.stride, lane) : T(0);
        w_.total.sum[lane] = T(1);
      }
    }
    if (p_.weights.data != nullptr || p_.entropy.data != nullptr ||
        p_.top_weights.data != nullptr || p_.scores.data != nullptr) {
      second_pass();
    }
  }

 private:
  using Base::ahead;
  using Base::block_;
  using Base::by_rows_;
  using Base::columns_;
  using Base::for_each_tile;
  using Base::group_;
  using Base::p_;
  using Base::queries_;
  using Base::score_;
  using Base::w_;
  using Base::without_gaps;

  void first_pass() {
    if (block_.key_begin == block_.key_end) {
      clear_state<V>(w_.total, queries_.count, columns_, by_rows_);
    }
    bool whole = true;  // nothing is in `total` yet
    for (std::int64_t first = block_.key_begin; first < block_.key_end;) {
      const std::int64_t next = (first / kPartKeys + 1) * kPartKeys;
      const std::int64_t end = next < block_.key_end ? next : block_.key_end;
      clear_state<V>(w_.part, queries_.count, columns_, by_rows_);
      add_part(first, end);
      if (block_.part != nullptr) {
        save_part();
      } else if (whole) {
        const State<T> swapped = w_.total;
        w_.total = w_.part;
        w_.part = swapped;
        whole = false;
      } else {
        merge_state<V>(w_.total, w_.part, queries_.count, columns_, by_rows_, w_.scale, w_.factor);
      }
      first = end;
    }
  }

  void save_part() {
    T* to = static_cast<T*>(block_.part);
    std::memcpy(to, w_.part.max, sizeof(T) * kBlockRows);
    std::memcpy(to + kBlockRows, w_.part.sum, sizeof(T) * kBlockRows);
    for (int lane = 0; lane < kBlockRows; ++lane) w_.scale[lane] = T(1);
    store_rows<V>(w_.part.out, w_.scale, queries_.count, columns_, by_rows_,
                  [&](int lane) { return to + 2 * kBlockRows + lane * columns_; });
  }

  // What is wanted while few queries read the tile at `first`, of rows up to `end` of `view`: the
  // rows that lie rows_ahead behind it, with those of `after` from `begin` on behind the last one.
  Ahead<X> following(const View<const X, 4>& view, std::int64_t first, std::int64_t end,
                     const View<const X, 4>& after, std::int64_t begin) const {
    const std::int64_t from = first + rows_ahead(view);
    const std::int64_t to = from + kTileKeys;
    Ahead<X> rows(p_, view, block_.batch, group_, from, to < end ? to : end);
    const std::int64_t limit = begin + to - end;
    rows.then(after, from < end ? begin : begin + from - end,
              limit < block_.key_end ? limit : block_.key_end);
    return rows;
  }

  void add_part(std::int64_t begin, std::int64_t end) {
    if constexpr (Base::kHasRows) {
      if (by_rows_) return add_part_by_rows(begin, end);
    }
    for_each_tile(begin, end, [&](Tile<X>& tile) { add_tile_of_keys(tile); });
  }

  // All keys, then all values. Tiles whose scores must be masked or changed do not wait.
  void add_part_by_rows(std::int64_t begin, std::int64_t end) {
    const int stride = few_stride<V>(queries_.count);
    const int room = kBlockRows / stride < kPartTiles ? kBlockRows / stride : kPartTiles;
    int waiting = 0;
    const auto add_waiting = [&] {
      for (int i = 0; i < waiting; ++i) add_values(i, stride, end);
      waiting = 0;
    };
    for (std::int64_t first = begin; first < end; first += kTileKeys) {
      Tile<X>& tile = tiles_[waiting];
      if (!Base::load(first, end, tile)) continue;
      if (without_gaps(tile)) {
        weigh_keys(waiting, stride, begin, end);
        if (++waiting == room) add_waiting();
      } else {
        add_waiting();
        add_tile_of_keys(tile);
      }
    }
    add_waiting();
  }

  void weigh_keys(int i, int stride, std::int64_t begin, std::int64_t end) {
    const Tile<X>& tile = tiles_[i];
    const Strip<V> strip{0, queries_.count, tile.count};
    T* scores = w_.scores + i * kTileKeys * stride;
    Ahead<X> next = following(p_.key, tile.first, end, p_.value, begin);
    score_.template strip<1>(tile, strip, stride, next, scores);
    with_few_stride<V>(stride, [&](auto lanes) {
      softmax_few<V, decltype(lanes)::value>(tile.count, scores, w_.part.max, w_.part.sum,
                                             scales_[i]);
    });
  }

  void add_values(int i, int stride, std::int64_t end) {
    Tile<X>& tile = tiles_[i];
    const Strip<V> strip{0, queries_.count, tile.count};
    const T* scores = w_.scores + i * kTileKeys * stride;
    Ahead<X> next = following(p_.value, tile.first, end, p_.key, end);
    values_.load(p_, queries_, group_, w_, true, tile);
    values_.template add_rows<1>(tile, strip, scores, stride, scales_[i], next, w_.part.out);
  }

  // Many queries read rows from the cache, where only the first block of them finds them missing:
  // what comes next is wanted, whichever that is.
  void add_tile_of_keys(Tile<X>& tile) {
    if (p_.dropout.on) load_dropout(queries_, tile, kept_);
    Ahead<X> first = by_rows_ ? ahead(p_.key, tile.first + rows_ahead(p_.key), kTileKeys)
                              : ahead(p_.value, tile.first, kTileKeys);
    Ahead<X> second = by_rows_ ? ahead(p_.value, tile.first + rows_ahead(p_.value), kTileKeys)
                               : ahead(p_.key, tile.first + kTileKeys, kTileKeys);
    bool loaded = false;
    for_each_strip<V>(tile, queries_.count, [&](auto vecs, const Strip<V>& strip) {
      constexpr int kVecs = decltype(vecs)::value;
      T* scores = weigh_strip<kVecs>(tile, strip, first);
      // Not before the scores: by now the rows that were asked for are here.
      if (!loaded) values_.load(p_, queries_, group_, w_, by_rows_, tile);
      add_strip<kVecs>(tile, strip, second, scores);
      first = second = {};  // once per tile is enough
      loaded = true;
    });
  }

  // The numerators of a strip; updates m and l.
  template <int NV>
  T* weigh_strip(const Tile<X>& tile, const Strip<V>& strip, Ahead<X>& next) {
    const int lane = strip.lane;
    const State<T>& state = w_.part;
    T* scores = Base::template masked_scores<NV>(tile, strip, next);
    softmax_step<V, NV>(strip.keys, scores, state.max + lane, state.sum + lane, w_.scale + lane);
    if (p_.dropout.on) drop_numerators<V, NV>(kept_, lane, strip.keys, scores);
    return scores;
  }

  template <int NV>
  void add_strip(const Tile<X>& tile, const Strip<V>& strip, Ahead<X>& next, const T* scores) {
    const int lane = strip.lane;
    const State<T>& state = w_.part;
    if constexpr (Base::kHasRows) {
      if (by_rows_) {
        values_.template add_rows<NV>(tile, strip, scores, kPanel<V>, w_.scale, next, state.out);
        return;
      }
    }
    T* out = state.out + panel_offset<V>(lane, columns_);
    values_.template add_panel<NV>(tile, strip, scores, w_.scale + lane, next, out);
  }

  void second_pass() {
    const T masked = -static_cast<T>(HUGE_VAL);
    fill_rows<V>(queries_, p_.weights, T(0));
    fill_rows<V>(queries_, p_.scores, masked);
    if (p_.top_weights.data != nullptr) begin_ranks(queries_);
    for (int lane = 0; lane < kBlockRows; ++lane) {
      w_.entropy[lane] = T(0);
      w_.factor[lane] = static_cast<T>(::log(static_cast<double>(w_.total.sum[lane])));
    }
    invert_sums(w_.total.sum, T(1), w_.scale);
    for_each_tile(block_.key_begin, block_.key_end, [&](Tile<X>& tile) {
      for_each_strip<V>(tile, queries_.count, [&](auto vecs, const Strip<V>& strip) {
        use_strip<decltype(vecs)::value>(tile, strip);
      });
    });
    for (int lane = 0; p_.entropy.data != nullptr && lane < queries_.count; ++lane) {
      *queries_.output(p_.entropy.data, p_.entropy.stride, lane) = w_.entropy[lane];
    }
    if (p_.top_weights.data != nullptr) end_ranks(queries_);
  }

  template <int NV>
  void use_strip(const Tile<X>& tile, const Strip<V>& strip) {
    const int lane = strip.lane;
    Ahead<X> nothing;
    T* scores = Base::template masked_scores<NV>(tile, strip, nothing);
    if (p_.scores.data != nullptr) {
      // The weights are not wanted in the same call.
      store_tile<V>(queries_, p_.scores, strip, tile, -static_cast<T>(HUGE_VAL), scores);
      return;
    }
    weigh_scores<V, NV>(strip.keys, w_.total.max + lane, w_.scale + lane, w_.factor + lane, scores,
                        w_.entropy + lane);
    if (p_.top_weights.data != nullptr) rank_weights<V>(queries_, strip, tile, scores);
    if (p_.weights.data != nullptr) store_tile<V>(queries_, p_.weights, strip, tile, T(0), scores);
  }

  static constexpr int kPartTiles = static_cast<int>(kPartKeys / kTileKeys);

  Values values_;
  Tile<X> tiles_[kPartTiles];  // of few queries: their values are still to be added
  T scales_[kPartTiles][V::kLanes];
  std::uint64_t kept_[kTileKeys];
};

// The states of the parts of a block, as save_part wrote them, to its output.
template <class V, class X>
void merge_parts(const AttentionParams<X>& p, const AttentionBlock& block, const Compute<X>* parts,
                 std::int64_t count, std::int64_t step, Compute<X>* scratch) noexcept {
  using T = Compute<X>;
  const std::int64_t columns = p.value.shape[3];
  const Workspace<T> w(scratch, p.query.shape[3], columns);
  const Queries<X> queries(p, block);
  const auto bytes = sizeof(T) * static_cast<std::size_t>(queries.count * columns);
  State<T> part = w.part;
  clear_state<V>(w.total, queries.count, columns, true);
  for (std::int64_t i = 0; i < count; ++i, parts += step) {
    if (i == 0) {
      std::memcpy(w.total.max, parts, sizeof(T) * kBlockRows);
      std::memcpy(w.total.sum, parts + kBlockRows, sizeof(T) * kBlockRows);
      std::memcpy(w.total.out, parts + 2 * kBlockRows, bytes);
      continue;
    }
    std::memcpy(part.max, parts, sizeof(T) * kBlockRows);
    std::memcpy(part.sum, parts + kBlockRows, sizeof(T) * kBlockRows);
    std::memcpy(part.out, parts + 2 * kBlockRows, bytes);
    merge_state<V>(w.total, part, queries.count, columns, true, w.scale, w.factor);
  }
  store_output<V>(queries, w.total, true, w.scale);
}

}  // namespace
}  // namespace pyattn

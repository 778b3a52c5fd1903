// The scores of a block of queries, tile by tile of keys, as the softmax sees them.
//
// A Score is made once per block and packs the queries; begin(tile) may prepare the keys, and
// strip<NV>(tile, strip, stride, ahead, sums) writes sums[key * stride + lane] for the keys of the
// strip. kLeavesNoGaps: for few queries the stride may be that of few_rows.inl instead of kPanel.
// A Score with a member kPanelsOnly keeps few queries in a panel, too.
#pragma once

#include "cpu/output.inl"
#include "cpu/turn.inl"

namespace pyattn {
namespace {

// How many rows ahead decoding asks for: 8 KiB, so that what was asked for is still in a
// first-level cache when it is read, but not fewer than a group of keys that is read at once.
template <class X>
std::int64_t rows_ahead(const View<const X, 4>& view) {
  constexpr std::int64_t kNumbers = 8192 / static_cast<std::int64_t>(sizeof(X));
  const std::int64_t rows = view.shape[3] == 0 ? 0 : kNumbers / view.shape[3];
  return rows < 32 ? 32 : rows < 2 * kTileKeys ? rows : 2 * kTileKeys;
}

template <class V, class X, class Score>
class ScoreBlock {
 public:
  using T = Compute<X>;
  static constexpr bool kHasRows = !requires { Score::kPanelsOnly; };

  ScoreBlock(const AttentionParams<X>& p, const AttentionBlock& block, T* scratch)
      : p_(p),
        block_(block),
        columns_(p.value.shape[3]),
        group_(block.first_head / (p.query.shape[1] / p.key.shape[1])),
        w_(scratch, p.query.shape[3], columns_),
        queries_(p, block),
        by_rows_(kHasRows && is_few<V>(queries_.count)),
        score_(start(), w_) {
    std::memset(w_.zeros, 0, sizeof(T) * static_cast<std::size_t>(columns_));
    if (p_.slopes == nullptr) return;
    for (int lane = 0; lane < kBlockRows; ++lane) {
      w_.slope[lane] = lane < queries_.count ? p_.slopes[queries_.head(lane)] : T(0);
      w_.relative[lane] = T(0);
    }
  }

 protected:
  const Queries<X>& start() {
    Ahead<X> keys = ahead(p_.key, block_.key_begin, 2 * kTileKeys);
    keys.touch(keys.lines(by_rows_ ? rows_ahead(p_.key) : kTileKeys));
    if (p_.turn.cosine != nullptr) turn_queries<V>(queries_, w_);
    return queries_;
  }

  Ahead<X> ahead(const View<const X, 4>& view, std::int64_t first, std::int64_t count) const {
    const std::int64_t end = first + count < block_.key_end ? first + count : block_.key_end;
    return {p_, view, block_.batch, group_, first, end};
  }

  // Whether the scores of few queries can do without gaps: nothing but the softmax is done to them.
  bool without_gaps(const Tile<X>& tile) const {
    return Score::kLeavesNoGaps && by_rows_ && !tile.partial && !tile.biased &&
           p_.softcap == T(0) && p_.slopes == nullptr && !p_.dropout.on;
  }

  // Calls body(tile) for every tile that has a key to attend to.
  template <class Body>
  void for_each_tile(std::int64_t begin, std::int64_t end, Body&& body) {
    Tile<X> tile;
    for (std::int64_t first = begin; first < end; first += kTileKeys) {
      if (load(first, end, tile)) body(tile);
    }
  }

  // The next keys of first .. end - 1; false if nobody may attend to any of them.
  bool load(std::int64_t first, std::int64_t end, Tile<X>& tile) {
    const int width = end - first < kTileKeys ? static_cast<int>(end - first) : kTileKeys;
    load_tile<V>(p_, queries_, group_, first, width, w_.bias, tile);
    if (tile.count == 0) return false;
    if (p_.turn.keys) turn_keys<V>(p_, tile, w_);
    score_.begin(tile);
    for (int lane = 0; p_.slopes != nullptr && lane < queries_.count; ++lane) {
      w_.relative[lane] = static_cast<T>(queries_.position[lane] - first);
    }
    return true;
  }

  // The scores of a strip, in its part of w.scores.
  template <int NV>
  T* masked_scores(const Tile<X>& tile, const Strip<V>& strip, Ahead<X>& ahead) {
    const std::int64_t at = panel_offset<V>(strip.lane, kTileKeys);
    T* scores = w_.scores + at;
    score_.template strip<NV>(tile, strip, kPanel<V>, ahead, scores);
    if (p_.softcap != T(0)) cap_scores<V, NV>(strip.keys, p_.softcap, scores);
    if (p_.slopes != nullptr) {
      slope_scores<V, NV>(tile.index, strip.keys, w_.slope + strip.lane, w_.relative + strip.lane,
                          scores);
    }
    if (tile.partial || tile.biased) {
      mask_scores<V, NV>(tile, strip.lane, strip.keys, w_.bias + at, scores);
    }
    return scores;
  }

  const AttentionParams<X>& p_;
  const AttentionBlock& block_;
  std::int64_t columns_;
  std::int64_t group_;
  Workspace<T> w_;
  Queries<X> queries_;
  bool by_rows_;
  Score score_;
};

}  // namespace
}  // namespace pyattn

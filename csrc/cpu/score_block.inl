// The scores of a block of queries, tile by tile of keys, as the softmax sees them.
//
// A Score is made once per block and packs the queries; begin(tile) may prepare the keys, and
// strip<NV>(tile, strip, ahead, sums) writes sums[key][lane] for the keys of the strip.
#pragma once

#include "cpu/output.inl"

namespace pyattn {
namespace {

template <class V, class X, class Score>
class ScoreBlock {
 public:
  using T = Compute<X>;

  ScoreBlock(const AttentionParams<X>& p, const AttentionBlock& block, T* scratch)
      : p_(p),
        block_(block),
        columns_(p.value.shape[3]),
        group_(block.first_head / (p.query.shape[1] / p.key.shape[1])),
        w_(scratch, p.query.shape[3], columns_),
        queries_(p, block),
        by_rows_(is_few<V>(queries_.count)),
        score_(start(), w_) {
    std::memset(w_.zeros, 0, sizeof(T) * static_cast<std::size_t>(columns_));
    if (p_.slopes == nullptr) return;
    for (int lane = 0; lane < kBlockRows; ++lane) {
      w_.slope[lane] = lane < queries_.count ? p_.slopes[queries_.head(lane)] : T(0);
      w_.relative[lane] = T(0);
    }
  }

 protected:
  const Queries<X>& start() const {
    ahead(p_.key, block_.key_begin).touch(0, kTileKeys);
    return queries_;
  }

  // The rows of a tile from `first` on, if a prefetch of them makes sense.
  Ahead<X> ahead(const View<const X, 4>& view, std::int64_t first) const {
    if (view.stride[3] != 1 || first >= block_.key_end) return {};
    const std::int64_t left = block_.key_end - first;
    const std::int64_t page =
        p_.pages.table == nullptr ? left : p_.pages.size - first % p_.pages.size;
    const std::int64_t most = left < page ? left : page;
    return {.data = row_of(p_, view, block_.batch, group_, first),
            .stride = view.stride[2],
            .rows = most < kTileKeys ? most : kTileKeys,
            .columns = view.shape[3]};
  }

  // Calls body(tile) for every tile that has a key to attend to.
  template <class Body>
  void for_each_tile(std::int64_t begin, std::int64_t end, Body&& body) {
    Tile<X> tile;
    for (std::int64_t first = begin; first < end; first += kTileKeys) {
      const int width = end - first < kTileKeys ? static_cast<int>(end - first) : kTileKeys;
      load_tile<V>(p_, queries_, group_, first, width, w_.bias, tile);
      if (tile.count == 0) continue;
      score_.begin(tile);
      for (int lane = 0; p_.slopes != nullptr && lane < queries_.count; ++lane) {
        w_.relative[lane] = static_cast<T>(queries_.position[lane] - first);
      }
      body(tile);
    }
  }

  // The scores of a strip, in its part of w.scores.
  template <int NV>
  T* masked_scores(const Tile<X>& tile, const Strip<V>& strip, const Ahead<X>& ahead) {
    const std::int64_t at = panel_offset<V>(strip.lane, kTileKeys);
    T* scores = w_.scores + at;
    score_.template strip<NV>(tile, strip, ahead, scores);
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

// Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762): score = scale * q . k.
// The scale is folded into the packed queries, so a score costs D multiply-adds and nothing else.
#pragma once

#include "cpu/attention.inl"

namespace pyattn {
namespace {

template <class V, class X>
class DotScore {
 public:
  using T = Compute<X>;

  DotScore(const Queries<X>& queries, const Workspace<T>& w)
      : w_(w),
        depth_(queries.p.query.shape[3]),
        step_(queries.p.key.stride[3]),
        count_(queries.count),
        few_(is_few<V>(queries.count)) {
    const AttentionParams<X>& p = queries.p;
    if (!few_) {
      load_queries<V>(queries, depth_, p.scale, w.query);
      return;
    }
    const V scale = V::broadcast(p.scale);
    for (int lane = 0; lane < count_; ++lane) {
      const X* row = queries.query(lane);
      T* copy = w.query + lane * depth_;
      const T* dense = unit_row<V>(row, p.query.stride[3], depth_, copy);
      for (std::int64_t d = 0; d < depth_; d += V::kLanes) {
        store_left(load_left<V>(dense + d, depth_ - d) * scale, copy + d, depth_ - d);
      }
    }
  }

  void begin(const Tile<X>& tile) {
    if (few_ && step_ == 1) return;
    for (int k = 0; k < tile.count; ++k) {
      key_[k] = unit_row<V>(tile.key[k], step_, depth_, w_.keys + k * depth_);
    }
  }

  static constexpr bool kLeavesNoGaps = true;

  // `ahead`: rows that are wanted after these keys.
  template <int NV>
  void strip(const Tile<X>& tile, const Strip<V>& strip, int stride, Ahead<X>& ahead,
             T* sums) const {
    if (!few_) {
      dot_tile<V, NV>(w_.query + panel_offset<V>(strip.lane, depth_), key_, strip.keys, depth_,
                      ahead, sums);
    } else if (step_ == 1) {
      dot_few<V>(w_.query, count_, depth_, tile.key, strip.keys, stride, ahead, sums);
    } else {
      dot_few<V>(w_.query, count_, depth_, key_, strip.keys, stride, ahead, sums);
    }
  }

 private:
  const Workspace<T>& w_;
  std::int64_t depth_;
  std::int64_t step_;
  int count_;
  bool few_;  // queries are rows, not panels
  const T* key_[kTileKeys];
};

template <class V, class X>
void sdpa(const AttentionParams<X>& p, const AttentionBlock& block, Compute<X>* scratch) noexcept {
  Block<V, X, DotScore<V, X>>(p, block, scratch).run();
}

}  // namespace
}  // namespace pyattn

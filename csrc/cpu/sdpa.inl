// Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762):
//   s_ij = scale * q_i . k_j, then the block loop of attention.inl.
// The scale is folded into the packed queries, so a score costs D multiply-adds and nothing else.
#pragma once

#include "cpu/attention.inl"

namespace pyattn {
namespace {

template <class V>
class DotScore {
 public:
  using T = typename V::Scalar;

  DotScore(const AttentionParams<T>& p, const Queries<T>& queries, const Workspace<T>& w)
      : query_(w.query), depth_(p.query.shape[3]) {
    load_queries<V>(p, queries, depth_, p.scale, query_);
  }

  void begin(const Tile<T>&) {}

  template <int NV>
  void strip(const Tile<T>& tile, const Strip<V>& strip, const Ahead<T>& ahead, T* sums) const {
    dot_tile<V, NV>(query_ + panel_offset<V>(strip.lane, depth_), tile.key, strip.keys, depth_,
                    ahead, sums);
  }

 private:
  T* query_;
  std::int64_t depth_;
};

template <class V>
void sdpa(const AttentionParams<typename V::Scalar>& p, const AttentionBlock& block,
          typename V::Scalar* scratch) noexcept {
  Block<V, DotScore<V>>(p, block, scratch).run();
}

}  // namespace
}  // namespace pyattn

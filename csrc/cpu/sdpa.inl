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
      : query_(w.query), depth_(p.query.shape[3]), few_(is_few<V>(queries.count)) {
    if (!few_) {
      load_queries<V>(p, queries, depth_, p.scale, query_);
      return;
    }
    for (int lane = 0; lane < queries.count; ++lane) {
      const T* row = queries.start(p.query.data, p.query.stride, lane);
      for (std::int64_t d = 0; d < depth_; ++d) {
        query_[lane * depth_ + d] = row[d * p.query.stride[3]] * p.scale;
      }
    }
  }

  void begin(const Tile<T>&) {}

  template <int NV>
  void strip(const Tile<T>& tile, const Strip<V>& strip, const Ahead<T>& ahead, T* sums) const {
    if (few_) {
      for (int k = 0; k < strip.keys; ++k) {
        ahead.touch(k, 1);
        T* place = sums + k * kPanel<V>;
        V::broadcast(T(0)).store(place);  // the lanes without a query
        for (int lane = 0; lane < strip.lanes; ++lane) {
          place[lane] = dot_across<V>(query_ + lane * depth_, tile.key[k], depth_);
        }
      }
      return;
    }
    dot_tile<V, NV>(query_ + panel_offset<V>(strip.lane, depth_), tile.key, strip.keys, depth_,
                    ahead, sums);
  }

 private:
  T* query_;
  std::int64_t depth_;
  bool few_;  // queries are rows, not panels
};

template <class V>
void sdpa(const AttentionParams<typename V::Scalar>& p, const AttentionBlock& block,
          typename V::Scalar* scratch) noexcept {
  Block<V, DotScore<V>>(p, block, scratch).run();
}

}  // namespace
}  // namespace pyattn

// What follows from the gradients of the scores of scaled dot-product attention:
//   dQ = scale ds K   dK = scale ds^T Q
// by the micro-kernels of the forward pass and add_products. Rows of K and Q that are not finite
// stay out of the products and are added pair by pair.
#pragma once

#include "cpu/backward_block.inl"

namespace pyattn {
namespace {

template <class V, class X>
class DotGradient {
 public:
  using T = Compute<X>;
  static constexpr bool kFew = false;

  DotGradient(const Queries<X>& queries, const GradientWorkspace<T>& w)
      : queries_(queries), p_(queries.p), w_(w), depth_(p_.query.shape[3]) {
    load_panels<V>(queries_, p_.query, depth_, p_.scale, w_.query);
  }

  void begin_sums(const KeySums<T>& sums, T* query_sums) {
    sums_ = sums;
    query_sums_ = query_sums;
    if (sums.key == nullptr) return;
    odd_queries_ = load_row_panels<V>(queries_, p_.query, p_.scale, w_.row, w_.query_rows);
  }

  void begin(Tile<X>& tile) {
    for (int k = 0; k < tile.count; ++k) {
      key_[k] = unit_row<V>(tile.key[k], p_.key.stride[3], depth_, w_.keys + k * depth_);
    }
    if (query_sums_ != nullptr) hide_odd_keys(tile);
  }

  template <int NV>
  void strip(const Tile<X>&, const Strip<V>& strip, T* scores) {
    dot_tile<V, NV>(w_.query + panel_offset<V>(strip.lane, depth_), key_, strip.keys, depth_,
                    nothing_, scores);
  }

  template <int NV>
  void add_strip(const Tile<X>& tile, const Strip<V>& strip) {
    if (query_sums_ == nullptr) return;
    const int lane = strip.lane;
    const T* grads = w_.grads + panel_offset<V>(lane, kTileKeys);
    T* sums = query_sums_ + panel_offset<V>(lane, depth_);
    pyattn::add_tile<V, NV>(grads, finite_key_, strip.keys, depth_, w_.ones + lane, nothing_, sums);
    add_odd_rows<V, NV>(tile, lane, strip.keys, depth_, grads, sums);
  }

  void add_tile(const Tile<X>& tile) {
    if (sums_.key == nullptr) return;
    T* rows = sums_.key + (tile.first - sums_.first) * sum_stride(depth_);
    add_tile_products<V>(tile, queries_.count, w_.grads, w_.query_rows, depth_, rows);
    add_odd_queries<V>(queries_, tile, odd_queries_, p_.query, p_.scale, w_.grads, w_.row, rows);
  }

 private:
  // Rows of K for ds K, as those of V for P V.
  void hide_odd_keys(Tile<X>& tile) {
    tile.odd_count = 0;
    for (int k = 0; k < tile.count; ++k) {
      finite_key_[k] = key_[k];
      if (!tile.partial || tile.bits[k] == queries_.valid) continue;
      finite_key_[k] = hide_odd<V>(key_[k], depth_, k, tile.key[k], p_.key.stride[3],
                                   w_.finite_keys + k * depth_, tile);
    }
  }

  const Queries<X>& queries_;
  const AttentionParams<X>& p_;
  const GradientWorkspace<T>& w_;
  std::int64_t depth_;
  KeySums<T> sums_;
  T* query_sums_ = nullptr;
  NothingAhead nothing_;
  std::uint64_t odd_queries_ = 0;
  const T* key_[kTileKeys];
  const T* finite_key_[kTileKeys];
};

template <class V, class X>
void store_query_gradients(const BackwardParams<X>& params, const AttentionBlock& block,
                           const Compute<X>* query_sums, Compute<X>* scratch) noexcept {
  const Queries<X> queries(params.forward, block);
  for (int lane = 0; lane < kBlockRows; ++lane) scratch[lane] = params.forward.scale;
  const View<X, 4>& view = params.grad_query;
  store_rows<V>(query_sums, scratch, queries.count, view.shape[3], false,
                [&](int lane) { return queries.output(view.data, view.stride, lane); });
}

}  // namespace
}  // namespace pyattn

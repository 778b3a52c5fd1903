// The backward pass of scaled dot-product attention, one block of queries at a time.
//
// Papers: Dao et al. 2022 (arXiv:2205.14135), section 3.1 and appendix B; Rabe and Staats 2021
//   (arXiv:2112.05682).
// From the log-sum-exp of the forward pass, with nothing of size T x S stored, per tile of 64 keys:
//   p = exp(s - lse)   dp = grad_out value^T   ds = p (kept dp - delta)   dV += (kept p)^T grad_out
//   dQ += ds K         dK += ds^T Q            with ds (1 - (s / cap)^2) in the last two
//   delta_i = sum_e grad_out_ie out_ie - grad_lse_i
// Five products of the cost of one, by the micro-kernels of the forward pass and add_products.
// "Masked means never read" holds for gradients too: p and ds are 0 where a pair is masked,
// whatever
//   the rows hold, and rows of K, Q or grad_out that are not finite stay out of the products and
//   are added pair by pair.
// Order: the caller goes over some hundred keys at a time with all blocks of a segment, so that K,
//   V, dK and dV stay in the second-level cache, at the price of packing the queries again.
#pragma once

#include "cpu/attention.inl"
#include "cpu/backward_tile.inl"

namespace pyattn {
namespace {

template <class V, class X>
class GradientBlock {
 public:
  using T = Compute<X>;

  // `grads`: ds will be asked for, not only the weights.
  GradientBlock(const BackwardParams<X>& params, const AttentionBlock& block, bool grads,
                T* scratch)
      : params_(params),
        p_(params.forward),
        depth_(p_.query.shape[3]),
        columns_(p_.value.shape[3]),
        group_(block.first_head / (p_.query.shape[1] / p_.key.shape[1])),
        grads_(grads),
        w_(scratch, depth_, columns_),
        queries_(p_, block) {
    load_panels<V>(queries_, p_.query, depth_, p_.scale, w_.query);
    if (grads_) load_panels<V>(queries_, params.grad_out, columns_, T(1), w_.grad_out);
    for (int lane = 0; lane < kBlockRows; ++lane) {
      const bool used = lane < queries_.count;
      // Lanes beyond the last query weigh nothing.
      w_.lse[lane] = used ? *queries_.output(p_.given_lse.data, p_.given_lse.stride, lane)
                          : static_cast<T>(HUGE_VAL);
      w_.delta[lane] = used && grads_ ? delta_of<V>(params, queries_, lane, w_) : T(0);
      w_.slope[lane] = used && p_.slopes != nullptr ? p_.slopes[queries_.head(lane)] : T(0);
      w_.relative[lane] = T(0);
      w_.ones[lane] = T(1);
    }
  }

  // Adds dQ, dK and dV of the block, those of them that are wanted.
  void add(const KeySums<T>& sums, T* query_sums) {
    if (sums.key != nullptr) {
      odd_queries_ = load_row_panels<V>(queries_, p_.query, p_.scale, w_.row, w_.query_rows);
    }
    if (sums.value != nullptr) {
      odd_grads_ = load_row_panels<V>(queries_, params_.grad_out, T(1), w_.row, w_.grad_rows);
    }
    for_each_tile([&](Tile<X>& tile) {
      if (query_sums != nullptr) hide_odd_keys(tile);
      if (tile.partial) {
        std::memset(w_.weights, 0, sizeof(T) * kBlockRows * kTileKeys);
        std::memset(w_.grads, 0, sizeof(T) * kBlockRows * kTileKeys);
      }
      for_each_strip<V>(tile, queries_.count, [&](auto vecs, const Strip<V>& strip) {
        add_strip<decltype(vecs)::value>(tile, strip, query_sums);
      });
      if (sums.value != nullptr) add_to_values(tile, sums);
      if (sums.key != nullptr) add_to_keys(tile, sums);
    });
  }

  // Adds weights or ds, before the softcap, to `sums`.
  void add_scores(const ScoreSums<T>& sums) {
    for_each_tile([&](Tile<X>& tile) {
      for_each_strip<V>(tile, queries_.count, [&](auto vecs, const Strip<V>& strip) {
        constexpr int NV = decltype(vecs)::value;
        score_strip<NV>(tile, strip);
        const std::int64_t at = panel_offset<V>(strip.lane, kTileKeys);
        const T* from = (sums.weights ? w_.weights : w_.grads) + at;
        T* to = sums.sums + panel_offset<V>(strip.lane, sums.keys);
        for (int k = 0; k < strip.keys; ++k) {
          const std::int64_t key = sums.keys == 1 ? 0 : tile.first + tile.index[k] - sums.first;
          for (int i = 0; i < NV * V::kLanes; i += V::kLanes) {
            T* place = to + key * kPanel<V> + i;
            // Lanes without a query are those of a zero query, whose scores may be NaN.
            const V x = V::select(V::from_bits(queries_.valid >> (strip.lane + i)),
                                  V::load(from + k * kPanel<V> + i), V::broadcast(T(0)));
            (V::load(place) + x).store(place);
          }
        }
      });
    });
  }

 private:
  template <class Body>
  void for_each_tile(Body&& body) {
    const AttentionBlock& block = queries_.block;
    Tile<X> tile;
    for (std::int64_t first = block.key_begin; first < block.key_end; first += kTileKeys) {
      const std::int64_t left = block.key_end - first;
      const int width = left < kTileKeys ? static_cast<int>(left) : kTileKeys;
      load_tile<V>(p_, queries_, group_, first, width, w_.bias, tile);
      if (tile.count == 0) continue;
      for (int k = 0; k < tile.count; ++k) {
        key_[k] = unit_row<V>(tile.key[k], p_.key.stride[3], depth_, w_.keys + k * depth_);
        if (!grads_) continue;
        const X* row = row_of(p_, p_.value, block.batch, group_, first + tile.index[k]);
        value_[k] = unit_row<V>(row, p_.value.stride[3], columns_, w_.values + k * columns_);
      }
      if (p_.dropout.on) load_dropout(queries_, tile, kept_);
      for (int lane = 0; p_.slopes != nullptr && lane < queries_.count; ++lane) {
        w_.relative[lane] = static_cast<T>(queries_.position[lane] - first);
      }
      body(tile);
    }
  }

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

  // Weights and ds of a strip, the latter before the softcap.
  template <int NV>
  void score_strip(const Tile<X>& tile, const Strip<V>& strip) {
    const int lane = strip.lane;
    const std::int64_t at = panel_offset<V>(lane, kTileKeys);
    T* scores = w_.weights + at;
    T* grads = grads_ ? w_.grads + at : nullptr;
    dot_tile<V, NV>(w_.query + panel_offset<V>(lane, depth_), key_, strip.keys, depth_, nothing_,
                    scores);
    if (p_.softcap != T(0)) {
      cap_scores<V, NV>(strip.keys, p_.softcap, scores);
      differentiate_cap<V, NV>(strip.keys, p_.softcap, scores, w_.slack + at);
    }
    if (p_.slopes != nullptr) {
      slope_scores<V, NV>(tile.index, strip.keys, w_.slope + lane, w_.relative + lane, scores);
    }
    if (tile.partial || tile.biased) {
      mask_scores<V, NV>(tile, lane, strip.keys, w_.bias + at, scores);
    }
    if (grads_) {
      dot_tile<V, NV>(w_.grad_out + panel_offset<V>(lane, columns_), value_, strip.keys, columns_,
                      nothing_, grads);
    }
    Kept<T> kept;
    if (p_.dropout.on) kept = {kept_, p_.dropout.factor};
    differentiate_softmax<V, NV>(tile, strip, kept, w_.lse + lane, w_.delta + lane, scores, grads);
  }

  template <int NV>
  void add_strip(const Tile<X>& tile, const Strip<V>& strip, T* query_sums) {
    score_strip<NV>(tile, strip);
    if (!grads_) return;
    const int lane = strip.lane;
    const std::int64_t at = panel_offset<V>(lane, kTileKeys);
    T* grads = w_.grads + at;
    if (p_.softcap != T(0)) apply_slack<V, NV>(tile, strip, w_.slack + at, grads);
    if (query_sums == nullptr) return;
    T* sums = query_sums + panel_offset<V>(lane, depth_);
    add_tile<V, NV>(grads, finite_key_, strip.keys, depth_, w_.ones + lane, nothing_, sums);
    add_odd_rows<V, NV>(tile, lane, strip.keys, depth_, grads, sums);
  }

  void add_to_values(const Tile<X>& tile, const KeySums<T>& sums) {
    T* rows = sums.value + (tile.first - sums.first) * sum_stride(columns_);
    add_tile_products<V>(tile, queries_.count, w_.weights, w_.grad_rows, columns_, rows);
    add_odd_queries(tile, odd_grads_, params_.grad_out, T(1), w_.weights, rows);
  }

  void add_to_keys(const Tile<X>& tile, const KeySums<T>& sums) {
    T* rows = sums.key + (tile.first - sums.first) * sum_stride(depth_);
    add_tile_products<V>(tile, queries_.count, w_.grads, w_.query_rows, depth_, rows);
    add_odd_queries(tile, odd_queries_, p_.query, p_.scale, w_.grads, rows);
  }

  // Rows of queries that are not finite, for the keys that they may see.
  void add_odd_queries(const Tile<X>& tile, std::uint64_t odd, const View<const X, 4>& view,
                       T scale, const T* weights, T* sums) {
    const std::int64_t columns = view.shape[3];
    for (int lane = 0; lane < queries_.count; ++lane) {
      if ((odd >> lane & 1) == 0) continue;
      copy_row<V>(queries_, view, lane, scale, w_.row);
      for (int k = 0; k < tile.count; ++k) {
        if ((tile.bits[k] >> lane & 1) == 0) continue;
        const V weight = V::broadcast(weights[panel_offset<V>(lane, kTileKeys) + k * kPanel<V>]);
        T* to = sums + tile.index[k] * sum_stride(columns);
        for (std::int64_t c = 0; c < columns; c += V::kLanes) {
          const V row = load_left<V>(w_.row + c, columns - c);
          V::fma(weight, row, V::load(to + c)).store(to + c);
        }
      }
    }
  }

  const BackwardParams<X>& params_;
  const AttentionParams<X>& p_;
  std::int64_t depth_;
  std::int64_t columns_;
  std::int64_t group_;
  bool grads_;
  GradientWorkspace<T> w_;
  Queries<X> queries_;
  NothingAhead nothing_;
  std::uint64_t odd_queries_ = 0;
  std::uint64_t odd_grads_ = 0;
  std::uint64_t kept_[kTileKeys];
  const T* key_[kTileKeys];
  const T* finite_key_[kTileKeys];
  const T* value_[kTileKeys];
};

template <class V, class X>
void add_gradients(const BackwardParams<X>& params, const AttentionBlock& block,
                   const KeySums<Compute<X>>& sums, Compute<X>* query_sums,
                   Compute<X>* scratch) noexcept {
  const bool grads = query_sums != nullptr || sums.key != nullptr;
  GradientBlock<V, X>(params, block, grads, scratch).add(sums, query_sums);
}

// dQ = scale * ds K
template <class V, class X>
void store_query_gradients(const BackwardParams<X>& params, const AttentionBlock& block,
                           const Compute<X>* query_sums, Compute<X>* scratch) noexcept {
  const Queries<X> queries(params.forward, block);
  for (int lane = 0; lane < kBlockRows; ++lane) scratch[lane] = params.forward.scale;
  const View<X, 4>& view = params.grad_query;
  store_rows<V>(query_sums, scratch, queries.count, view.shape[3], false,
                [&](int lane) { return queries.output(view.data, view.stride, lane); });
}

// A row of the gradients of K or V: the sum of its parts, in order.
template <class V, class X, class Part>
void store_key_row(std::int64_t key, std::int64_t columns, const KeySums<Compute<X>>* parts,
                   std::int64_t count, Part&& part, X* to) {
  const std::int64_t stride = sum_stride(columns);
  for (std::int64_t c = 0; c < columns; c += V::kLanes) {
    V sum = V::broadcast(Compute<X>(0));
    for (std::int64_t i = 0; i < count; ++i) {
      if (key < parts[i].first || key >= parts[i].end) continue;
      sum = sum + V::load(part(parts[i]) + (key - parts[i].first) * stride + c);
    }
    store_left(sum, to + c, columns - c);
  }
}

template <class V, class X>
void store_key_gradients(const BackwardParams<X>& params, std::int64_t batch, std::int64_t group,
                         std::int64_t first, std::int64_t end, const KeySums<Compute<X>>* parts,
                         std::int64_t count) noexcept {
  using T = Compute<X>;
  const std::int64_t* offsets = params.forward.key_offsets;
  const std::int64_t start = offsets == nullptr ? 0 : offsets[batch];
  const auto place = [&](const View<X, 4>& view, std::int64_t key) {
    return view.data + batch * view.stride[0] + group * view.stride[1] +
           (start + key) * view.stride[2];
  };
  const View<X, 4>& keys = params.grad_key;
  const View<X, 4>& values = params.grad_value;
  for (std::int64_t key = first; key < end; ++key) {
    if (keys.data != nullptr) {
      store_key_row<V>(
          key, keys.shape[3], parts, count, [](const KeySums<T>& sums) { return sums.key; },
          place(keys, key));
    }
    if (values.data != nullptr) {
      store_key_row<V>(
          key, values.shape[3], parts, count, [](const KeySums<T>& sums) { return sums.value; },
          place(values, key));
    }
  }
}

template <class V, class X>
void add_scores(const BackwardParams<X>& params, const AttentionBlock& block,
                const ScoreSums<Compute<X>>& sums, Compute<X>* scratch) noexcept {
  GradientBlock<V, X>(params, block, !sums.weights, scratch).add_scores(sums);
}

// One row of an output from ScoreSums: that of a lane, or the sum over all.
template <class V, class Y, class T>
void store_score_row(const ScoreSums<T>& sums, int lane, bool all, Y* to) {
  for (std::int64_t k = 0; k < sums.keys; k += V::kLanes) {
    const std::int64_t left = sums.keys - k;
    T row[V::kLanes] = {};
    for (int i = 0; i < V::kLanes && i < left; ++i) {
      if (!all) {
        row[i] = sums.sums[panel_offset<V>(lane, sums.keys) + (k + i) * kPanel<V>];
        continue;
      }
      V sum = V::broadcast(T(0));
      for (int at = 0; at < kBlockRows; at += V::kLanes) {
        sum = sum + V::load(sums.sums + panel_offset<V>(at, sums.keys) + (k + i) * kPanel<V>);
      }
      row[i] = sum_lanes(sum);
    }
    store_left(V::load(row), to + k, left);
  }
}

template <class V, class X>
void store_scores(const BackwardParams<X>& params, const ScoreSums<Compute<X>>& sums,
                  const ScoreTarget& target) noexcept {
  if (sums.weights) {
    const View<Compute<X>, 3>& view = params.column_mass;
    store_score_row<V>(
        sums, 0, true,
        view.data + target.batch * view.stride[0] + target.head * view.stride[1] + sums.first);
    return;
  }
  const View<X, 4>& view = params.grad_mask;
  for (int lane = 0; lane < target.rows; ++lane) {
    store_score_row<V>(sums, lane, target.one_row,
                       view.data + target.batch * view.stride[0] + target.head * view.stride[1] +
                           (target.first_row + lane) * view.stride[2] + sums.first);
  }
}

}  // namespace
}  // namespace pyattn

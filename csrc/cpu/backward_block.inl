// The backward pass of attention, one block of queries at a time: what the mechanisms share.
//
// Papers: Dao et al. 2022 (arXiv:2205.14135), section 3.1 and appendix B; Rabe and Staats 2021
//   (arXiv:2112.05682).
// From the log-sum-exp of the forward pass, with nothing of size T x S stored, per tile of 64 keys:
//   p = exp(s - lse)   dp = grad_out value^T   ds = p (kept dp - delta)   dV += (kept p)^T grad_out
//   delta_i = sum_e grad_out_ie out_ie - grad_lse_i
//   ds (1 - (s / cap)^2) is the gradient of a score; what follows from it is up to a Score.
// "Masked means never read" holds for gradients too: p and ds are 0 where a pair is masked,
//   whatever the rows hold, and rows of grad_out that are not finite stay out of the product and
//   are added pair by pair.
// Order: the caller goes over some hundred keys at a time with all blocks of a segment, so that K,
//   V, dK and dV stay in the second-level cache, at the price of packing the queries again.
//
// A Score is made once per block. begin(tile) may prepare the keys, strip<NV> writes their scores;
// begin_sums says that gradients will be added; add_strip<NV> and then add_tile add what follows
// from the ds of a tile, in w.grads. A Score for few queries (kFew) has narrow tiles, multiplies
// values and grad_out itself, and has store_tile and store_sums in place of begin_sums and add_...
#pragma once

#include "cpu/attention.inl"
#include "cpu/backward_tile.inl"

namespace pyattn {
namespace {

// Queries times keys of a tile of few queries: for each pair A numbers are kept, close by.
constexpr int kFewPairs = 16;

template <class V, class X, class Score>
class GradientBlock {
 public:
  using T = Compute<X>;

  // `grads`: ds will be asked for, not only the weights.
  GradientBlock(const BackwardParams<X>& params, const AttentionBlock& block, bool grads,
                T* scratch)
      : params_(params),
        p_(params.forward),
        columns_(p_.value.shape[3]),
        group_(block.first_head / (p_.query.shape[1] / p_.key.shape[1])),
        grads_(grads),
        w_(scratch, p_.query.shape[3], columns_),
        queries_(p_, block),
        score_(queries_, w_) {
    if constexpr (!Score::kFew) {
      if (grads_) load_panels<V>(queries_, params.grad_out, columns_, T(1), w_.grad_out);
    }
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

  // Adds the gradients of the block, those of them that are wanted.
  void add(const KeySums<T>& sums, T* query_sums) {
    score_.begin_sums(sums, query_sums);
    if (sums.value != nullptr) {
      odd_grads_ = load_row_panels<V>(queries_, params_.grad_out, T(1), w_.row, w_.grad_rows);
    }
    for_each_tile([&](Tile<X>& tile) {
      if (tile.partial) {
        std::memset(w_.weights, 0, sizeof(T) * kBlockRows * kTileKeys);
        std::memset(w_.grads, 0, sizeof(T) * kBlockRows * kTileKeys);
      }
      for_each_strip<V>(tile, queries_.count, [&](auto vecs, const Strip<V>& strip) {
        add_strip<decltype(vecs)::value>(tile, strip);
      });
      if (sums.value != nullptr) add_to_values(tile, sums);
      if (grads_) score_.add_tile(tile);
    });
  }

  // Stores the gradients of the block, which has its keys to itself.
  void store(T* v_sums) {
    score_.load_grads(params_);
    for_each_tile([&](Tile<X>& tile) {
      for_each_strip<V>(tile, queries_.count, [&](auto vecs, const Strip<V>& strip) {
        differentiate_strip<decltype(vecs)::value>(tile, strip);
      });
      score_.store_tile(params_, tile, grads_);
    });
    score_.store_sums(params_, v_sums);
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
    const int keys = Score::kFew ? kFewPairs / queries_.count : kTileKeys;
    for (std::int64_t first = block.key_begin; first < block.key_end; first += keys) {
      const std::int64_t left = block.key_end - first;
      const int width = left < keys ? static_cast<int>(left) : keys;
      load_tile<V>(p_, queries_, group_, first, width, w_.bias, tile);
      if constexpr (Score::kFew) score_.store_gaps(params_, tile);
      if (tile.count == 0) continue;
      score_.begin(tile);
      for (int k = 0; grads_ && k < tile.count; ++k) {
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

  // Weights and ds of a strip, the latter before the softcap.
  template <int NV>
  void score_strip(const Tile<X>& tile, const Strip<V>& strip) {
    const int lane = strip.lane;
    const std::int64_t at = panel_offset<V>(lane, kTileKeys);
    T* scores = w_.weights + at;
    T* grads = grads_ ? w_.grads + at : nullptr;
    score_.template strip<NV>(tile, strip, scores);
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
    if constexpr (Score::kFew) {
      if (grads_) score_.template dots<NV>(value_, strip.keys, grads);
    } else if (grads_) {
      dot_tile<V, NV>(w_.grad_out + panel_offset<V>(lane, columns_), value_, strip.keys, columns_,
                      nothing_, grads);
    }
    Kept<T> kept;
    if (p_.dropout.on) kept = {kept_, p_.dropout.factor};
    differentiate_softmax<V, NV>(tile, strip, kept, w_.lse + lane, w_.delta + lane, scores, grads);
  }

  // Weights and ds of a strip.
  template <int NV>
  void differentiate_strip(const Tile<X>& tile, const Strip<V>& strip) {
    score_strip<NV>(tile, strip);
    const std::int64_t at = panel_offset<V>(strip.lane, kTileKeys);
    if (grads_ && p_.softcap != T(0)) {
      apply_slack<V, NV>(tile, strip, w_.slack + at, w_.grads + at);
    }
  }

  template <int NV>
  void add_strip(const Tile<X>& tile, const Strip<V>& strip) {
    differentiate_strip<NV>(tile, strip);
    if (grads_) score_.template add_strip<NV>(tile, strip);
  }

  void add_to_values(const Tile<X>& tile, const KeySums<T>& sums) {
    T* rows = sums.value + (tile.first - sums.first) * sum_stride(columns_);
    add_tile_products<V>(tile, queries_.count, w_.weights, w_.grad_rows, columns_, rows);
    add_odd_queries<V>(queries_, tile, odd_grads_, params_.grad_out, T(1), w_.weights, w_.row,
                       rows);
  }

  const BackwardParams<X>& params_;
  const AttentionParams<X>& p_;
  std::int64_t columns_;
  std::int64_t group_;
  bool grads_;
  GradientWorkspace<T> w_;
  Queries<X> queries_;
  Score score_;
  NothingAhead nothing_;
  std::uint64_t odd_grads_ = 0;
  std::uint64_t kept_[kTileKeys];
  const T* value_[kTileKeys];
};

template <class V, class X, template <class, class> class Score>
void add_gradients(const BackwardParams<X>& params, const AttentionBlock& block,
                   const KeySums<Compute<X>>& sums, Compute<X>* query_sums,
                   Compute<X>* scratch) noexcept {
  const bool grads = query_sums != nullptr || sums.key != nullptr || sums.v != nullptr;
  GradientBlock<V, X, Score<V, X>>(params, block, grads, scratch).add(sums, query_sums);
}

template <class V, class X, template <class, class> class Score>
void add_scores(const BackwardParams<X>& params, const AttentionBlock& block,
                const ScoreSums<Compute<X>>& sums, Compute<X>* scratch) noexcept {
  GradientBlock<V, X, Score<V, X>>(params, block, !sums.weights, scratch).add_scores(sums);
}

// A row of the gradients of K or V: the sum of its parts, in order; additive: times 4 v.
template <class V, class X, class Part>
void store_key_row(std::int64_t key, std::int64_t columns, const KeySums<Compute<X>>* parts,
                   std::int64_t count, Part&& part, const Compute<X>* v, X* to) {
  const std::int64_t stride = sum_stride(columns);
  for (std::int64_t c = 0; c < columns; c += V::kLanes) {
    V sum = V::broadcast(Compute<X>(0));
    for (std::int64_t i = 0; i < count; ++i) {
      if (key < parts[i].first || key >= parts[i].end) continue;
      sum = sum + V::load(part(parts[i]) + (key - parts[i].first) * stride + c);
    }
    if (v != nullptr) sum = sum * (V::broadcast(Compute<X>(4)) * load_left<V>(v + c, columns - c));
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
  const T* v = params.forward.v == nullptr ? nullptr : params.forward.v + group * keys.shape[3];
  for (std::int64_t key = first; key < end; ++key) {
    if (keys.data != nullptr) {
      store_key_row<V>(
          key, keys.shape[3], parts, count, [](const KeySums<T>& sums) { return sums.key; }, v,
          place(keys, key));
    }
    if (values.data != nullptr) {
      store_key_row<V>(
          key, values.shape[3], parts, count, [](const KeySums<T>& sums) { return sums.value; },
          static_cast<const T*>(nullptr), place(values, key));
    }
  }
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

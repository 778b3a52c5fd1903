// What follows from the gradients ds of the scores of additive attention (arXiv:1409.0473), where
// s_ij = sum_a v_a tanh(q_ia + k_ja). With x = 1 + e^2q e^2k and r = 1 / x, as in additive.inl,
//   tanh = 1 - 2 r,   1 - tanh^2 = 4 (r - r^2) = 4 u:
//   dq_ia = 4 v_a sum_j ds_ij u_ija   dk_ja = 4 v_a sum_i ds_ij u_ija
//   dv_a = sum_ij ds_ij - 2 sum_ij ds_ij r_ija
// Terms are in the lanes, for both sums are over what is not: a register of four queries meets the
// keys of the tile two at a time, which share a reciprocal. Per term: 8 operations, beside the 4.5
// that compute the score again. Nothing of size T x S x A exists.
// Keys beyond the range of the factored form, and rows that are not finite, are taken pair by pair,
// with the direct tanh, and only where the pair is allowed.
#pragma once

#include "cpu/additive.inl"
#include "cpu/backward_block.inl"

namespace pyattn {
namespace {

template <class V, class X>
class AdditiveGradient {
 public:
  using T = Compute<X>;
  static constexpr bool kFew = false;

  AdditiveGradient(const Queries<X>& queries, const GradientWorkspace<T>& w)
      : queries_(queries),
        w_(w),
        length_(queries.p.query.shape[3]),
        depth_(length_ + length_ % 2),
        score_(queries, w) {}

  void begin_sums(const KeySums<T>& sums, T* query_sums) {
    sums_ = sums;
    query_sums_ = query_sums;
    if (query_sums == nullptr && sums.key == nullptr && sums.v == nullptr) return;
    const std::int64_t step = queries_.p.query.stride[3];
    for (int lane = 0; lane < queries_.count; ++lane) {
      T* row = w_.query_rows + lane * depth_;
      const X* given = queries_.query(lane);
      for (std::int64_t a = 0; a < length_; ++a) row[a] = widen<V>(given + a * step);
      odd_queries_ |= !finite<V>(row, length_);
      score_.exponentiate(row, w_.rows_exp + lane * depth_);
    }
  }

  void begin(Tile<X>& tile) { score_.begin(tile); }

  template <int NV>
  void strip(const Tile<X>& tile, const Strip<V>& strip, T* scores) {
    Ahead<X> nothing;
    score_.template strip<NV>(tile, strip, kPanel<V>, nothing, scores);
  }

  template <int NV>
  void add_strip(const Tile<X>&, const Strip<V>&) {}

  void add_tile(const Tile<X>& tile) {
    int fast[kTileKeys];
    int count = 0;
    for (int k = 0; k < tile.count; ++k) {
      if (!odd_queries_ && score_.factored(k) && finite<V>(score_.key(k), length_)) {
        fast[count++] = k;
      } else {
        add_pairs(tile, k);
      }
    }
    for (std::int64_t a = 0; a < length_; a += V::kLanes) {
      int lane = 0;
      for (; lane + kQueries <= queries_.count; lane += kQueries) {
        add_register<kQueries>(tile, fast, count, lane, a);
      }
      for (; lane < queries_.count; ++lane) add_register<1>(tile, fast, count, lane, a);
    }
    if (sums_.v != nullptr) sums_.v[length_] += total_grad(tile);
  }

 private:
  static constexpr int kQueries = 4;

  const T* grad(int k, int lane) const {
    return w_.grads + panel_offset<V>(lane, kTileKeys) + k * kPanel<V>;
  }
  T* key_row(const Tile<X>& tile, int k) const {
    return sums_.key + (tile.first + tile.index[k] - sums_.first) * sum_stride(length_);
  }

  static PYATTN_INLINE void add_to(T* place, std::int64_t left, V sum) {
    store_left(load_left<V>(place, left) + sum, place, left);
  }

  T total_grad(const Tile<X>& tile) const {
    V total = V::broadcast(T(0));
    for (int lane = 0; lane < queries_.count; lane += V::kLanes) {
      const auto used = V::from_bits(queries_.valid >> lane);
      for (int k = 0; k < tile.count; ++k) {
        total = total + V::select(used, V::load(grad(k, lane)), V::broadcast(T(0)));
      }
    }
    return sum_lanes(total);
  }

  // The terms from `a` on of N queries against the keys that the factored form takes.
  template <int N>
  void add_register(const Tile<X>& tile, const int* fast, int count, int lane, std::int64_t a) {
    const std::int64_t left = length_ - a;
    const V one = V::broadcast(T(1));
    const V zero = V::broadcast(T(0));
    V query[N];
    V to_query[N];
    V direction[2] = {zero, zero};
    PYATTN_UNROLL
    for (int i = 0; i < N; ++i) {
      query[i] = load_left<V>(w_.rows_exp + (lane + i) * depth_ + a, left);
      to_query[i] = zero;
    }
    for (int n = 0; n < count; n += 2) {
      // An odd key is paired with itself, at no weight.
      const bool both = n + 1 < count;
      const int k1 = fast[n];
      const int k2 = fast[both ? n + 1 : n];
      const V key1 = load_left<V>(w_.keys_exp + k1 * depth_ + a, left);
      const V key2 = load_left<V>(w_.keys_exp + k2 * depth_ + a, left);
      V to_key1 = zero;
      V to_key2 = zero;
      PYATTN_UNROLL
      for (int i = 0; i < N; ++i) {
        const V grad1 = V::broadcast(*grad(k1, lane + i));
        const V grad2 = both ? V::broadcast(*grad(k2, lane + i)) : zero;
        const V x1 = V::fma(query[i], key1, one);
        const V x2 = V::fma(query[i], key2, one);
        const V shared = V::reciprocal(x1 * x2);
        const V r1 = x2 * shared;
        const V r2 = x1 * shared;
        const V u1 = V::fnma(r1, r1, r1);
        const V u2 = V::fnma(r2, r2, r2);
        to_query[i] = V::fma(grad1, u1, V::fma(grad2, u2, to_query[i]));
        to_key1 = V::fma(grad1, u1, to_key1);
        to_key2 = V::fma(grad2, u2, to_key2);
        direction[0] = V::fma(grad1, r1, direction[0]);
        direction[1] = V::fma(grad2, r2, direction[1]);
      }
      if (sums_.key == nullptr) continue;
      add_to(key_row(tile, k1) + a, left, to_key1);
      if (both) add_to(key_row(tile, k2) + a, left, to_key2);
    }
    for (int i = 0; query_sums_ != nullptr && i < N; ++i) {
      add_to(query_sums_ + (lane + i) * length_ + a, left, to_query[i]);
    }
    if (sums_.v != nullptr) add_to(sums_.v + a, left, direction[0] + direction[1]);
  }

  // All queries that may see key k.
  void add_pairs(const Tile<X>& tile, int k) {
    const V half = V::broadcast(T(0.5));
    const V quarter = V::broadcast(T(0.25));
    const V one = V::broadcast(T(1));
    for (int lane = 0; lane < queries_.count; ++lane) {
      if ((tile.bits[k] >> lane & 1) == 0) continue;
      const V ds = V::broadcast(*grad(k, lane));
      for (std::int64_t a = 0; a < length_; a += V::kLanes) {
        const std::int64_t left = length_ - a;
        const V t = tanh(load_left<V>(w_.query_rows + lane * depth_ + a, left) +
                         load_left<V>(score_.key(k) + a, left));
        const V u = ds * (quarter * V::fnma(t, t, one));
        if (query_sums_ != nullptr) add_to(query_sums_ + lane * length_ + a, left, u);
        if (sums_.key != nullptr) add_to(key_row(tile, k) + a, left, u);
        if (sums_.v != nullptr) add_to(sums_.v + a, left, ds * (half * (one - t)));
      }
    }
  }

  const Queries<X>& queries_;
  const GradientWorkspace<T>& w_;
  std::int64_t length_;
  std::int64_t depth_;
  AdditiveScore<V, X, GradientWorkspace<T>> score_;
  KeySums<T> sums_;
  T* query_sums_ = nullptr;  // rows
  bool odd_queries_ = false;
};

// dq = 4 v sums
template <class V, class X>
void store_additive_query_gradients(const BackwardParams<X>& params, const AttentionBlock& block,
                                    const Compute<X>* query_sums, Compute<X>*) noexcept {
  using T = Compute<X>;
  const Queries<X> queries(params.forward, block);
  const View<X, 4>& view = params.grad_query;
  const std::int64_t length = view.shape[3];
  const V four = V::broadcast(T(4));
  for (int lane = 0; lane < queries.count; ++lane) {
    const T* v = params.forward.v + queries.head(lane) * length;
    const T* sums = query_sums + lane * length;
    X* to = queries.output(view.data, view.stride, lane);
    for (std::int64_t a = 0; a < length; a += V::kLanes) {
      const std::int64_t left = length - a;
      const V factor = four * load_left<V>(v + a, left);
      store_left(load_left<V>(sums + a, left) * factor, to + a, left);
    }
  }
}

}  // namespace
}  // namespace pyattn

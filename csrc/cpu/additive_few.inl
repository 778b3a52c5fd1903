// The gradients of additive attention where few queries have the keys to themselves: a step of
// decoding. A key then gives its gradients at once, and nothing is added up over blocks:
//   dk_ja = 4 v_a sum_i ds_ij u_ija   dvalue_j = sum_i p_ij grad_out_i   u = r - r^2, r = 1 / x
// with x as in additive.inl. Per tile of up to 16 keys: r and the scores, dp, then weights and ds
// as for any block, then the rows of the two gradients, each written once, where they belong, and
// what the tile adds to dq and dv. Kept are r, A numbers per query and key of a tile. Terms are in
// the lanes throughout. A pair that is masked is never multiplied, so that what its rows hold has
// no say.
// Against the way of any block, on one thread with AVX-512 and A = E = 512: 1.7 times as fast for
// one query, 1.2 for two, level for three, 0.8 for four, where that way shares the exponentials of
// a key. With two queries e^2q e^2k was slower than an exponential for each pair, for what it takes
// to find out whether it is in range.
#pragma once

#include "cpu/additive_backward.inl"

namespace pyattn {
namespace {

// Calls body(Count<count>), 1 .. N.
template <int N, class Body>
PYATTN_INLINE void with_count(int count, Body&& body) {
  if constexpr (N > 1) {
    if (count < N) {
      with_count<N - 1>(count, body);
      return;
    }
  }
  body(Count<N>{});
}

template <class V, class T>
T dot_rows(const T* left, const T* right, std::int64_t columns) {
  constexpr int L = V::kLanes;
  V sum[4];
  for (V& x : sum) x = V::broadcast(T(0));
  std::int64_t e = 0;
  for (; e + 4 * L <= columns; e += 4 * L) {
    PYATTN_UNROLL
    for (int i = 0; i < 4; ++i) {
      sum[i] = V::fma(V::load(left + e + i * L), V::load(right + e + i * L), sum[i]);
    }
  }
  for (; e < columns; e += L) {
    sum[0] =
        V::fma(load_left<V>(left + e, columns - e), load_left<V>(right + e, columns - e), sum[0]);
  }
  return sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <class V, class X>
class FewAdditiveGradient {
 public:
  using T = Compute<X>;
  static constexpr bool kFew = true;
  static_assert(kPanel<V> >= kFewQueries);  // one strip

  FewAdditiveGradient(const Queries<X>& queries, const GradientWorkspace<T>& w)
      : queries_(queries),
        w_(w),
        length_(queries.p.query.shape[3]),
        columns_(queries.p.value.shape[3]),
        stride_(sum_stride(length_)) {
    const T* v = queries.p.v + queries.head(0) * length_;
    for (std::int64_t a = 0; a < stride_; ++a) w.v[a] = a < length_ ? v[a] : T(0);
    total_ = sum_of(v, length_);
    const auto size = sizeof(T) * static_cast<std::size_t>(queries.count * stride_);
    std::memset(w.query, 0, size);
    std::memset(w.query_exp, 0, size);
    std::memset(to_v(), 0, sizeof(T) * static_cast<std::size_t>(stride_));
    for (int lane = 0; lane < queries.count; ++lane) {
      copy_row<V>(queries, queries.p.query, lane, T(2), twice_query(lane));
    }
  }

  void load_grads(const BackwardParams<X>& params) {
    const View<const X, 4>& view = params.grad_out;
    for (int lane = 0; lane < queries_.count; ++lane) {
      grad_out_[lane] = unit_row<V>(queries_.input(view.data, view.stride, lane), view.stride[3],
                                    columns_, w_.grad_out + lane * columns_);
    }
  }

  void begin(const Tile<X>& tile) {
    for (int k = 0; k < tile.count; ++k) {
      key_[k] = unit_row<V>(tile.key[k], queries_.p.key.stride[3], length_, w_.keys + k * length_);
    }
  }

  template <int NV>
  void strip(const Tile<X>&, const Strip<V>& strip, T* scores) const {
    with_count<kFewQueries>(queries_.count, [&](auto count) {
      for (int k = 0; k < strip.keys; ++k) {
        clear<NV>(scores + k * kPanel<V>);
        score<decltype(count)::value>(k, scores + k * kPanel<V>);
      }
    });
  }

  // dp
  template <int NV>
  void dots(const T* const* values, int keys, T* grads) const {
    for (int k = 0; k < keys; ++k) {
      T* place = grads + k * kPanel<V>;
      clear<NV>(place);
      for (int lane = 0; lane < queries_.count; ++lane) {
        place[lane] = dot_rows<V>(grad_out_[lane], values[k], columns_);
      }
    }
  }

  // Keys that no query sees.
  void store_gaps(const BackwardParams<X>& params, const Tile<X>& tile) const {
    for (int k = 0, at = 0; tile.count < tile.width && k < tile.width; ++k) {
      if (at < tile.count && tile.index[at] == k) {
        ++at;
        continue;
      }
      const std::int64_t key = tile.first + k;
      store_key_gradients<V>(params, queries_.block.batch, queries_.head(0), key, key + 1, nullptr,
                             0);
    }
  }

  // From weights and ds.
  void store_tile(const BackwardParams<X>& params, const Tile<X>& tile, bool grads) {
    for (int k = 0; k < tile.count; ++k) {
      int lanes[kFewQueries];
      int count = 0;
      for (int lane = 0; lane < queries_.count; ++lane) {
        if ((tile.bits[k] >> lane & 1) != 0) lanes[count++] = lane;
      }
      X* key = place(params.grad_key, tile, k);
      X* value = place(params.grad_value, tile, k);
      with_count<kFewQueries>(count, [&](auto seen) {
        constexpr int N = decltype(seen)::value;
        if (grads) store_key<N>(k, lanes, key != nullptr ? key : reinterpret_cast<X*>(w_.row));
        if (value != nullptr) store_value<N>(k, lanes, value);
      });
    }
  }

  void store_sums(const BackwardParams<X>& params, T* v_sums) const {
    const V four = V::broadcast(T(4));
    for (std::int64_t a = 0; a < length_; a += V::kLanes) {
      const std::int64_t left = length_ - a;
      if (v_sums != nullptr) store_left(V::load(to_v() + a), v_sums + a, left);
      if (params.grad_query.data == nullptr) continue;
      const V factor = four * V::load(w_.v + a);
      for (int lane = 0; lane < queries_.count; ++lane) {
        X* row = queries_.output(params.grad_query.data, params.grad_query.stride, lane);
        store_left(V::load(to_query(lane) + a) * factor, row + a, left);
      }
    }
    if (v_sums != nullptr) v_sums[length_] = total_grad_;
  }

 private:
  T* twice_query(int lane) const { return w_.query + lane * stride_; }
  // What is added up over the keys: the sums of ds u for dq, and those of ds r for dv.
  T* to_query(int lane) const { return w_.query_exp + lane * stride_; }
  T* to_v() const { return w_.finite_keys; }
  // r
  T* reciprocals(int k, int lane) const {
    return w_.query_rows + (k * queries_.count + lane) * stride_;
  }

  X* place(const View<X, 4>& view, const Tile<X>& tile, int k) const {
    if (view.data == nullptr) return nullptr;
    const std::int64_t* offsets = queries_.p.key_offsets;
    const std::int64_t start = offsets == nullptr ? 0 : offsets[queries_.block.batch];
    return view.data + queries_.block.batch * view.stride[0] + queries_.head(0) * view.stride[1] +
           (start + tile.first + tile.index[k]) * view.stride[2];
  }

  // The lanes without a query.
  template <int NV>
  static void clear(T* place) {
    for (int v = 0; v < NV; ++v) V::broadcast(T(0)).store(place + v * V::kLanes);
  }

  // x of a query and a key of any size, from 2 q: an exponential each, which for so few queries
  // costs less than to look for the range in which e^2q e^2k would do.
  static PYATTN_INLINE V term(V twice_query, V key) {
    const V bound = V::broadcast(T(2) * AdditiveScore<V, X>::kLimit);  // beyond it tanh is 1
    const V sum = V::fma(V::broadcast(T(2)), key, twice_query);
    return V::broadcast(T(1)) + exp_fast(V::min(bound, sum));
  }

  // The scores of key k with N queries, and the reciprocals.
  template <int N>
  void score(int k, T* scores) const {
    constexpr int L = V::kLanes;
    const T* key = key_[k];
    V sum[N][2];
    PYATTN_UNROLL
    for (int i = 0; i < N; ++i) sum[i][0] = sum[i][1] = V::broadcast(T(0));
    std::int64_t a = 0;
    for (; a + 2 * L <= length_; a += 2 * L) {
      PYATTN_UNROLL
      for (int i = 0; i < N; ++i) {
        const T* query = twice_query(i) + a;
        const V x1 = term(V::load(query), V::load(key + a));
        const V x2 = term(V::load(query + L), V::load(key + a + L));
        const V shared = V::reciprocal(x1 * x2);
        const V r1 = x2 * shared;
        const V r2 = x1 * shared;
        r1.store(reciprocals(k, i) + a);
        r2.store(reciprocals(k, i) + a + L);
        sum[i][0] = V::fma(V::load(w_.v + a), r1, sum[i][0]);
        sum[i][1] = V::fma(V::load(w_.v + a + L), r2, sum[i][1]);
      }
    }
    for (; a < length_; a += L) {
      for (int i = 0; i < N; ++i) {
        const V x = term(V::load(twice_query(i) + a), load_left<V>(key + a, length_ - a));
        const V r = V::reciprocal(x);
        r.store(reciprocals(k, i) + a);
        sum[i][0] = V::fma(V::load(w_.v + a), r, sum[i][0]);
      }
    }
    for (int i = 0; i < N; ++i) scores[i] = total_ - T(2) * sum_lanes(sum[i][0] + sum[i][1]);
  }

  // The row of dK, of the N lanes that see the key, and what it adds to dq and dv.
  template <int N>
  void store_key(int k, const int* lanes, X* to) {
    V ds[N];
    V four_ds[N];
    const T* r[N];
    T* sums[N];
    for (int i = 0; i < N; ++i) {
      const T* grad = w_.grads + panel_offset<V>(lanes[i], kTileKeys) + k * kPanel<V>;
      ds[i] = V::broadcast(*grad);
      four_ds[i] = V::broadcast(T(4) * *grad);
      total_grad_ += *grad;
      r[i] = reciprocals(k, lanes[i]);
      sums[i] = to_query(lanes[i]);
    }
    for (std::int64_t a = 0; a < length_; a += V::kLanes) {
      V direction = V::load(to_v() + a);
      V sum = V::broadcast(T(0));
      PYATTN_UNROLL
      for (int i = 0; i < N; ++i) {
        const V x = V::load(r[i] + a);
        const V u = V::fnma(x, x, x);
        sum = i == 0 ? four_ds[i] * u : V::fma(four_ds[i], u, sum);
        direction = V::fma(ds[i], x, direction);
        V::fma(ds[i], u, V::load(sums[i] + a)).store(sums[i] + a);
      }
      direction.store(to_v() + a);
      store_left(sum * V::load(w_.v + a), to + a, length_ - a);
    }
  }

  template <int N>
  void store_value(int k, const int* lanes, X* to) const {
    V weight[N];
    const T* rows[N];
    for (int i = 0; i < N; ++i) {
      weight[i] = V::broadcast(w_.weights[panel_offset<V>(lanes[i], kTileKeys) + k * kPanel<V>]);
      rows[i] = grad_out_[lanes[i]];
    }
    for (std::int64_t e = 0; e < columns_; e += V::kLanes) {
      const std::int64_t left = columns_ - e;
      V sum = weight[0] * load_left<V>(rows[0] + e, left);
      PYATTN_UNROLL
      for (int i = 1; i < N; ++i) sum = V::fma(weight[i], load_left<V>(rows[i] + e, left), sum);
      store_left(sum, to + e, left);
    }
  }

  const Queries<X>& queries_;
  const GradientWorkspace<T>& w_;
  std::int64_t length_;
  std::int64_t columns_;
  std::int64_t stride_;  // of rows of A numbers: whole registers
  T total_ = T(0);
  T total_grad_ = T(0);
  const T* key_[kFewPairs];
  const T* grad_out_[kFewQueries];
};

template <class V, class X>
void store_few_gradients(const BackwardParams<X>& params, const AttentionBlock& block,
                         Compute<X>* v_sums, Compute<X>* scratch) noexcept {
  const bool grads = params.grad_query.data != nullptr || params.grad_key.data != nullptr ||
                     params.grad_v != nullptr;
  GradientBlock<V, X, FewAdditiveGradient<V, X>>(params, block, grads, scratch).store(v_sums);
}

}  // namespace
}  // namespace pyattn

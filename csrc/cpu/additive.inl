// Additive attention (Bahdanau et al. 2014, arXiv:1409.0473):
//   s_ij = sum_a v_a tanh(q_ia + k_ja), then the block loop of attention.inl; W s and U h are
//   applied by the caller. Nothing of size T x S x A exists.
// With x = 1 + e^2q e^2k, tanh(q + k) = 1 - 2 / x, so
//   s = sum_a v_a - 2 sum_a v_a / x_a,   v1 / x1 + v2 / x2 = (v1 x2 + v2 x1) / (x1 x2).
// The exponentials are taken once per query and once per key of a tile, and a pair of terms shares
// one reciprocal: per term 1 FMA for x and about 3.5 operations, no exponential and no division.
// A pair needs (1 + e^2(|q|+|k|))^2 below the largest number: |q| + |k| <= kLimit. That is decided
// per key, from the largest |k_ja| of that key and the largest |q_ia| of the block; other keys get
// the direct tanh. A masked key has no say in it. A NaN is not counted: it spreads on either path.
// Error of a score: below 6e-7 * sum_a |v_a| on either path, for |q|, |k| of any size (largest
// found on any instruction set, |q|, |k| to 4e4, A to 1024; 4e-7 with AVX-512; direct
// evaluation 1.5e-7). Queries are in the lanes, as for the dot product, but those at the end that
// fill no more than half a register: of them the terms are (2 to 3 times as fast for one query, and
// 1.16 to 1.22 times for the 2 or 4 that 50 or 20 leave over). One query alone takes the
// exponential of the sum, at any size, and stores nothing: 1.25 times as fast as the exponentials
// of keys that are used once. Stored otherwise: beside attention.inl, e^2q of the block and e^2k of
// the tile, 64 A numbers each. Tried and slower (AVX-512, Zen 5): one reciprocal per term, by 3 %
// with full registers and by 30 % for one query; for one query, asking for the rows of V during the
// scores, by 9 %. One reciprocal for four terms would halve kLimit.
#pragma once

#include "cpu/attention.inl"

namespace pyattn {
namespace {

// Terms of a score summed apart, so that a long sum errs like a short one. Even.
constexpr std::int64_t kRun = 32;

// sum_a v_a / x_a of two terms with one reciprocal, added to sum.
template <class V>
PYATTN_INLINE V add_pair(V v1, V x1, V v2, V x2, V sum) {
  return V::fma(V::fma(v1, x2, v2 * x1), V::reciprocal(x1 * x2), sum);
}

// sums[lane] of one key for NV registers of queries; `depth` is even.
template <class V, int NV>
void factored_scores(const typename V::Scalar* query, const typename V::Scalar* key,
                     const typename V::Scalar* v, typename V::Scalar total, std::int64_t depth,
                     typename V::Scalar* sums) {
  using T = typename V::Scalar;
  const V one = V::broadcast(T(1));
  V sum[NV];
  PYATTN_UNROLL
  for (int i = 0; i < NV; ++i) sum[i] = V::broadcast(T(0));
  for (std::int64_t start = 0; start < depth; start += kRun) {
    const std::int64_t end = depth - start < kRun ? depth : start + kRun;
    V run[NV];
    PYATTN_UNROLL
    for (int i = 0; i < NV; ++i) run[i] = V::broadcast(T(0));
    for (std::int64_t a = start; a < end; a += 2) {
      const V key1 = V::broadcast(key[a]);
      const V key2 = V::broadcast(key[a + 1]);
      const V v1 = V::broadcast(v[a]);
      const V v2 = V::broadcast(v[a + 1]);
      const T* pair = query + a * kPanel<V>;
      PYATTN_UNROLL
      for (int i = 0; i < NV; ++i) {
        const V x1 = V::fma(V::load(pair + i * V::kLanes), key1, one);
        const V x2 = V::fma(V::load(pair + kPanel<V> + i * V::kLanes), key2, one);
        run[i] = add_pair(v1, x1, v2, x2, run[i]);
      }
    }
    PYATTN_UNROLL
    for (int i = 0; i < NV; ++i) sum[i] = sum[i] + run[i];
  }
  PYATTN_UNROLL
  for (int i = 0; i < NV; ++i) {
    V::fnma(one + one, sum[i], V::broadcast(total)).store(sums + i * V::kLanes);
  }
}

// The same without the factorisation, for any q and k.
template <class V, int NV>
void direct_scores(const typename V::Scalar* query, const typename V::Scalar* key,
                   const typename V::Scalar* v, std::int64_t length, typename V::Scalar* sums) {
  using T = typename V::Scalar;
  V sum[NV];
  PYATTN_UNROLL
  for (int i = 0; i < NV; ++i) sum[i] = V::broadcast(T(0));
  for (std::int64_t start = 0; start < length; start += kRun) {
    const std::int64_t end = length - start < kRun ? length : start + kRun;
    V run[NV];
    PYATTN_UNROLL
    for (int i = 0; i < NV; ++i) run[i] = V::broadcast(T(0));
    for (std::int64_t a = start; a < end; ++a) {
      const V k = V::broadcast(key[a]);
      const V weight = V::broadcast(v[a]);
      PYATTN_UNROLL
      for (int i = 0; i < NV; ++i) {
        const V x = V::load(query + a * kPanel<V> + i * V::kLanes) + k;
        run[i] = V::fma(weight, tanh(x), run[i]);
      }
    }
    PYATTN_UNROLL
    for (int i = 0; i < NV; ++i) sum[i] = sum[i] + run[i];
  }
  PYATTN_UNROLL
  for (int i = 0; i < NV; ++i) sum[i].store(sums + i * V::kLanes);
}

// One score with the terms in the lanes: query and key are e^2q and e^2k of one row each.
template <class V>
typename V::Scalar factored_score(const typename V::Scalar* query, const typename V::Scalar* key,
                                  const typename V::Scalar* v, typename V::Scalar total,
                                  std::int64_t length) {
  using T = typename V::Scalar;
  constexpr int L = V::kLanes;
  const V one = V::broadcast(T(1));
  V sum = V::broadcast(T(0));
  std::int64_t a = 0;
  for (; a + 2 * L <= length; a += 2 * L) {
    const V x1 = V::fma(V::load(query + a), V::load(key + a), one);
    const V x2 = V::fma(V::load(query + a + L), V::load(key + a + L), one);
    sum = add_pair(V::load(v + a), x1, V::load(v + a + L), x2, sum);
  }
  for (; a < length; a += L) {
    const std::int64_t left = length - a;
    const V x = V::fma(load_left<V>(query + a, left), load_left<V>(key + a, left), one);
    sum = V::fma(load_left<V>(v + a, left), V::reciprocal(x), sum);
  }
  return total - T(2) * sum_lanes(sum);
}

// The same of any q and k, which costs an exponential per term: for a query that is alone, so that
// e^2k would be used once. Beyond the bound, where tanh is 1 already, a pair would overflow.
template <class V>
typename V::Scalar lone_score(const typename V::Scalar* query, const typename V::Scalar* key,
                              const typename V::Scalar* v, typename V::Scalar total,
                              std::int64_t length, typename V::Scalar limit) {
  using T = typename V::Scalar;
  constexpr int L = V::kLanes;
  const V one = V::broadcast(T(1));
  const V bound = V::broadcast(T(2) * limit);
  const auto term = [&](V q, V k) {
    const V sum = q + k;
    return one + exp_fast(V::min(bound, sum + sum));
  };
  V sum = V::broadcast(T(0));
  std::int64_t a = 0;
  for (; a + 2 * L <= length; a += 2 * L) {
    const V x1 = term(V::load(query + a), V::load(key + a));
    const V x2 = term(V::load(query + a + L), V::load(key + a + L));
    sum = add_pair(V::load(v + a), x1, V::load(v + a + L), x2, sum);
  }
  for (; a < length; a += L) {
    const std::int64_t left = length - a;
    const V x = term(load_left<V>(query + a, left), load_left<V>(key + a, left));
    sum = V::fma(load_left<V>(v + a, left), V::reciprocal(x), sum);
  }
  return total - T(2) * sum_lanes(sum);
}

template <class V>
typename V::Scalar direct_score(const typename V::Scalar* query, const typename V::Scalar* key,
                                const typename V::Scalar* v, std::int64_t length) {
  using T = typename V::Scalar;
  V sum = V::broadcast(T(0));
  for (std::int64_t a = 0; a < length; a += V::kLanes) {
    const std::int64_t left = length - a;
    const V x = load_left<V>(query + a, left) + load_left<V>(key + a, left);
    sum = V::fma(load_left<V>(v + a, left), tanh(x), sum);
  }
  return sum_lanes(sum);
}

// sum_a v_a, rounded once. Eight chains of additions: beside one query a single one would show.
template <class T>
T sum_of(const T* v, std::int64_t length) {
  double part[8] = {};
  std::int64_t a = 0;
  for (; a + 8 <= length; a += 8) {
    for (int i = 0; i < 8; ++i) part[i] += static_cast<double>(v[a + i]);
  }
  for (; a < length; ++a) part[a % 8] += static_cast<double>(v[a]);
  double total = 0;
  for (const double x : part) total += x;
  return static_cast<T>(total);
}

// Memory has the members of Workspace that are named here.
template <class V, class X, class Memory = Workspace<Compute<X>>>
class AdditiveScore {
 public:
  using T = typename V::Scalar;
  static constexpr T kLimit = V::kLibm ? T(170) : T(21);
  // For the gradient.
  static constexpr bool kKeepsExponentials = !std::is_same_v<Memory, Workspace<T>>;

  AdditiveScore(const Queries<X>& queries, const Memory& w)
      : w_(w),
        length_(queries.p.query.shape[3]),
        step_(queries.p.key.stride[3]),
        depth_(length_ + length_ % 2),
        in_panels_(queries.count - trailing_rows(queries.count)),
        alone_(queries.count == 1 && !kKeepsExponentials) {
    // The heads have keys of their own, so a block has one head.
    const T* v = queries.p.v + queries.head(0) * length_;
    for (std::int64_t a = 0; a < length_; ++a) w.v[a] = v[a];
    total_ = sum_of(v, length_);
    if (depth_ > length_) w.v[length_] = T(0);  // the second term of the last pair
    for (int lane = in_panels_; lane < queries.count; ++lane) begin_row(queries, lane);
    if (in_panels_ == 0) return;
    load_queries<V>(queries, depth_, T(1), w.query);
    for (int lane = 0; lane < in_panels_; lane += kPanel<V>) {
      with_vecs<V>(in_panels_ - lane, [&](auto vecs) { begin_panel<decltype(vecs)::value>(lane); });
    }
  }

  void begin(const Tile<X>& tile) {
    for (int k = 0; k < tile.count; ++k) {
      key_[k] = unit_row<V>(tile.key[k], step_, length_, w_.keys + k * depth_);
      if (alone_) continue;
      factored_[k] = largest(key_[k]) + query_largest_ <= kLimit;
      if (!factored_[k]) continue;
      T* exponentials = w_.keys_exp + k * depth_;
      exponentiate(key_[k], exponentials);
      if (depth_ > length_) exponentials[length_] = T(0);
    }
  }

  static constexpr bool kLeavesNoGaps = false;

  // Key k of the tile, and whether it is within the range of the factored form.
  const T* key(int k) const { return key_[k]; }
  bool factored(int k) const { return factored_[k]; }

  void exponentiate(const T* row, T* exponentials) const {
    for (std::int64_t a = 0; a < length_; a += V::kLanes) {
      const std::int64_t left = length_ - a;
      store_left(exp_bounded(load_left<V>(row + a, left)), exponentials + a, left);
    }
  }

  template <int NV>
  void strip(const Tile<X>&, const Strip<V>& strip, int, Ahead<X>& ahead, T* sums) const {
    const std::int64_t share = ahead.lines(1);
    const bool has_rows = strip.lane + strip.lanes > in_panels_;
    for (int k = 0; k < strip.keys; ++k) {
      ahead.touch(share);
      T* place = sums + k * kPanel<V>;
      if (!has_rows) {
        score_panel<NV>(strip.lane, k, place);
        continue;
      }
      // They share the last register.
      if constexpr (NV > 1) score_panel<NV - 1>(strip.lane, k, place);
      score_rows(strip, k, (NV - 1) * V::kLanes, place);
    }
  }

 private:
  static constexpr int trailing_rows(int count) {
    const int last = count % V::kLanes;
    return last * 2 <= V::kLanes ? last : 0;
  }

  void begin_row(const Queries<X>& queries, int lane) {
    const std::int64_t step = queries.p.query.stride[3];
    const X* row = queries.query(lane);
    T* copy = w_.query_rows + lane * depth_;
    for (std::int64_t a = 0; a < length_; ++a) copy[a] = widen<V>(row + a * step);
    see(largest(copy));
    if (!alone_) exponentiate(copy, w_.rows_exp + lane * depth_);
  }

  template <int NV>
  void score_panel(int lane, int k, T* sums) const {
    const std::int64_t at = panel_offset<V>(lane, depth_);
    if (factored_[k]) {
      factored_scores<V, NV>(w_.query_exp + at, w_.keys_exp + k * depth_, w_.v, total_, depth_,
                             sums);
    } else {
      direct_scores<V, NV>(w_.query + at, key_[k], w_.v, length_, sums);
    }
  }

  // The lanes of a strip from `first` on.
  void score_rows(const Strip<V>& strip, int k, int first, T* sums) const {
    V::broadcast(T(0)).store(sums + first);  // the lanes without a query
    for (int i = first; i < strip.lanes; ++i) {
      const std::int64_t at = (strip.lane + i) * depth_;
      if (alone_) {
        sums[i] = lone_score<V>(w_.query_rows, key_[k], w_.v, total_, length_, kLimit);
      } else if (factored_[k]) {
        sums[i] =
            factored_score<V>(w_.rows_exp + at, w_.keys_exp + k * depth_, w_.v, total_, length_);
      } else {
        sums[i] = direct_score<V>(w_.query_rows + at, key_[k], w_.v, length_);
      }
    }
  }

  // e^2q of a panel, and the largest |q|.
  template <int NV>
  void begin_panel(int lane) {
    const V zero = V::broadcast(T(0));
    V top = zero;
    for (std::int64_t a = 0; a < depth_; ++a) {
      for (int v = 0; v < NV; ++v) {
        const std::int64_t at = lane * depth_ + a * kPanel<V> + v * V::kLanes;
        const V x = a < length_ ? V::load(w_.query + at) : zero;
        top = V::max(abs(x), top);
        exp_bounded(x).store(w_.query_exp + at);
      }
    }
    see(max_lanes(top));
  }

  // e^2x; what is above the limit will not be used. This order keeps a NaN.
  static V exp_bounded(V x) { return exp_accurate(V::min(V::broadcast(T(2) * kLimit), x + x)); }

  T largest(const T* row) const {
    V top = V::broadcast(T(0));
    for (std::int64_t a = 0; a < length_; a += V::kLanes) {
      top = V::max(abs(load_left<V>(row + a, length_ - a)), top);
    }
    return max_lanes(top);
  }

  void see(T largest_query) {
    query_largest_ = largest_query > query_largest_ ? largest_query : query_largest_;
  }

  const Memory& w_;
  std::int64_t length_;
  std::int64_t step_;   // along a row of K
  std::int64_t depth_;  // A rounded up to even
  int in_panels_;       // of the queries; the others are rows
  bool alone_;
  T total_ = T(0);
  T query_largest_ = T(0);
  const T* key_[kTileKeys];
  bool factored_[kTileKeys] = {};
};

template <class V, class X>
void additive(const AttentionParams<X>& p, const AttentionBlock& block,
              Compute<X>* scratch) noexcept {
  Block<V, X, AdditiveScore<V, X>>(p, block, scratch).run();
}

}  // namespace
}  // namespace pyattn

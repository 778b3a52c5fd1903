// The block loop shared by every attention mechanism: softmax(score) V for up to 64 queries.
//
// Papers: Milakov and Gimelshein 2018 (arXiv:1805.02867), Rabe and Staats 2021 (arXiv:2112.05682),
//   Dao et al. 2022 (arXiv:2205.14135).
// Recurrence over tiles of 64 keys, per query, with m = -inf, l = 0, o = 0 at the start:
//   m' = max(m, max_j s_j)   a = exp(m - m')   p_j = exp(s_j - m')
//   l' = l a + sum_j p_j     o' = o a + sum_j p_j v_j
//   out = o / l,  lse = m + log l,  weights_j = exp(s_j - m) / l in a second pass over the keys.
// Stored: 64 queries, one 64 x 64 tile of scores, o; in all 64 (D + E + 64) numbers, which fit a
//   first-level cache at D = E = 64. Nothing of size T x S.
// A row with no allowed key keeps m = -inf and l = 0; m' is replaced by 0 in the exponents, so that
//   nothing is NaN, and out and weights are 0.
// Blocks of a few queries (decoding) keep them as rows instead: few_rows.inl.
// Tried on Zen 5, AVX-512, one thread: 2 x 12 accumulators instead of 4 x 6, 3 to 5 % slower;
//   without touching rows ahead, decoding over 4096 keys 1.7 times slower, long queries the same.
#pragma once

#include "cpu/few_rows.inl"
#include "cpu/softmax_tile.inl"

namespace pyattn {
namespace {

template <int N>
struct Count {
  static constexpr int value = N;
};

// Where the part of a [panel][row][lane] buffer with `rows` rows that belongs to `lane` starts.
template <class V>
constexpr std::int64_t panel_offset(int lane, std::int64_t rows) {
  return lane / kPanel<V> * kPanel<V> * rows + lane % kPanel<V>;
}

// Calls body(Count<n>) for the number of registers, 1..kVecs, that hold `lanes` queries.
template <class V, int N = V::kVecs, class Body>
PYATTN_INLINE void with_vecs(int lanes, Body&& body) {
  if constexpr (N > 1) {
    if (lanes <= (N - 1) * V::kLanes) {
      with_vecs<V, N - 1>(lanes, body);
      return;
    }
  }
  body(Count<N>{});
}

template <class T>
struct Workspace {
  T* query;      // [panel][depth][lane]
  T* query_exp;  // the same, additive only
  T* scores;     // [panel][key][lane]
  T* bias;       // the same
  T* out;        // [panel][column][lane], or [row][column] for a few rows
  T* keys;       // copies of rows of K with a stride, or what the mechanism makes of them
  T* keys_exp;
  T* values;  // copies of rows of V with a stride
  T* zeros;
  T* v;
  T* max;  // m, l and a of every lane
  T* sum;
  T* scale;

  Workspace(T* scratch, std::int64_t depth, std::int64_t columns) {
    const auto take = [&scratch](std::int64_t count) {
      T* piece = scratch;
      scratch += (count + 15) / 16 * 16;
      return piece;
    };
    depth += depth % 2;
    query = take(kBlockRows * depth);
    query_exp = take(kBlockRows * depth);
    scores = take(kBlockRows * kTileKeys);
    bias = take(kBlockRows * kTileKeys);
    out = take(kBlockRows * columns);
    keys = take(kTileKeys * depth);
    keys_exp = take(kTileKeys * depth);
    values = take(kTileKeys * columns);
    zeros = take(columns);
    v = take(depth);
    max = take(kBlockRows);
    sum = take(kBlockRows);
    scale = take(kBlockRows);
  }
};

// query[panel][d][lane] = scale * q. `depth` is the number of rows per panel, D or D + 1.
template <class V>
void load_queries(const AttentionParams<typename V::Scalar>& p,
                  const Queries<typename V::Scalar>& queries, std::int64_t depth,
                  typename V::Scalar scale, typename V::Scalar* panels) {
  using T = typename V::Scalar;
  const std::int64_t columns = p.query.shape[3];
  const V factor = V::broadcast(scale);
  for (int lane = 0; lane < queries.count; lane += kPanel<V>) {
    const int lanes = queries.count - lane < kPanel<V> ? queries.count - lane : kPanel<V>;
    const T* row[kPanel<V>];
    for (int i = 0; i < lanes; ++i) {
      row[i] = queries.start(p.query.data, p.query.stride, lane + i);
    }
    T* panel = panels + lane * depth;
    if (p.query.stride[3] == 1) {
      transpose_in<V>(row, lanes, columns, panel, kPanel<V>);
    } else {
      for (std::int64_t d = 0; d < columns; ++d) {
        for (int i = 0; i < kPanel<V>; ++i) {
          panel[d * kPanel<V> + i] = i < lanes ? row[i][d * p.query.stride[3]] : T(0);
        }
      }
    }
    const int used = (lanes + V::kLanes - 1) / V::kLanes * V::kLanes;
    for (std::int64_t d = 0; d < columns; ++d) {
      for (int i = 0; i < used; i += V::kLanes) {
        T* place = panel + d * kPanel<V> + i;
        (V::load(place) * factor).store(place);
      }
    }
  }
}

// The value rows kept out of the product: out += p * value for the lanes that may attend to them.
template <class V, int NV>
void add_odd_rows(const Tile<typename V::Scalar>& tile, int lane, int keys, std::int64_t columns,
                  const typename V::Scalar* p, typename V::Scalar* out) {
  using T = typename V::Scalar;
  for (int i = 0; i < tile.odd_count && tile.odd[i] < keys; ++i) {
    const int k = tile.odd[i];
    for (std::int64_t e = 0; e < columns; ++e) {
      const V value = V::broadcast(tile.odd_value[i][e]);
      for (int v = 0; v < NV; ++v) {
        const int at = v * V::kLanes;
        T* place = out + e * kPanel<V> + at;
        const V before = V::load(place);
        const V after = V::fma(V::load(p + k * kPanel<V> + at), value, before);
        V::select(V::from_bits(tile.bits[k] >> (lane + at)), after, before).store(place);
      }
    }
  }
}

// The same for rows: `p` has the stride of a panel.
template <class V>
void add_odd_across(const Tile<typename V::Scalar>& tile, int lane, std::int64_t columns,
                    const typename V::Scalar* p, typename V::Scalar* out) {
  for (int i = 0; i < tile.odd_count; ++i) {
    const int k = tile.odd[i];
    if ((tile.bits[k] >> lane & 1) == 0) continue;
    for (std::int64_t e = 0; e < columns; ++e) out[e] += p[k * kPanel<V>] * tile.odd_value[i][e];
  }
}

// out = o / l and lse = m + log l; leaves 1 / l in w.scale.
template <class V>
void store_output(const AttentionParams<typename V::Scalar>& p,
                  const Queries<typename V::Scalar>& queries,
                  const Workspace<typename V::Scalar>& w) {
  using T = typename V::Scalar;
  for (int lane = 0; lane < kBlockRows; ++lane) {
    w.scale[lane] = w.sum[lane] == T(0) ? T(0) : T(1) / w.sum[lane];
  }
  const std::int64_t columns = p.value.shape[3];
  const bool few = is_few<V>(queries.count);
  for (int lane = 0; few && lane < queries.count; ++lane) {
    T* row = queries.start(p.out.data, p.out.stride, lane);
    for (std::int64_t e = 0; e < columns; ++e) row[e] = w.out[lane * columns + e] * w.scale[lane];
  }
  for (int lane = 0; !few && lane < queries.count; lane += kPanel<V>) {
    const int lanes = queries.count - lane < kPanel<V> ? queries.count - lane : kPanel<V>;
    T* row[kPanel<V>];
    for (int i = 0; i < lanes; ++i) row[i] = queries.start(p.out.data, p.out.stride, lane + i);
    transpose_out<V>(w.out + lane * columns, kPanel<V>, columns, w.scale + lane, row, lanes);
  }
  if (p.lse.data == nullptr) return;
  for (int lane = 0; lane < queries.count; ++lane) {
    *queries.start(p.lse.data, p.lse.stride, lane) =
        w.max[lane] + static_cast<T>(::log(static_cast<double>(w.sum[lane])));
  }
}

// Queries that go through a tile together. Where pairs are masked, narrower strips of a panel
// follow the diagonal of the causal mask more closely: a strip ends at the last key it may attend
// to.
template <class V>
struct Strip {
  int lane;
  int lanes;
  int keys;
};

template <class V, class Body>
void for_each_strip(const Tile<typename V::Scalar>& tile, int count, Body&& body) {
  constexpr int kNarrow = 32 < kPanel<V> ? 32 : kPanel<V>;
  const int width = tile.partial ? kNarrow : kPanel<V>;
  for (int lane = 0; lane < count; lane += width) {
    Strip<V> strip{lane, count - lane < width ? count - lane : width, tile.count};
    if (tile.partial) {
      const std::uint64_t mine = low_bits(strip.lanes) << lane;
      while (strip.keys > 0 && (tile.bits[strip.keys - 1] & mine) == 0) --strip.keys;
    }
    if (strip.keys > 0) with_vecs<V>(strip.lanes, [&](auto vecs) { body(vecs, strip); });
  }
}

// weights = exp(s - m) / l of one tile, from scores that are masked already.
template <class V, int NV>
void store_weights(const AttentionParams<typename V::Scalar>& p,
                   const Queries<typename V::Scalar>& queries, const Strip<V>& strip,
                   const Tile<typename V::Scalar>& tile, std::int64_t first,
                   const Workspace<typename V::Scalar>& w, typename V::Scalar* scores) {
  using T = typename V::Scalar;
  for (int v = 0; v < NV; ++v) {
    const V top = finite_max(V::load(w.max + strip.lane + v * V::kLanes));
    for (int k = 0; k < strip.keys; ++k) {
      T* place = scores + k * kPanel<V> + v * V::kLanes;
      exp_fast(V::load(place) - top).store(place);
    }
  }
  T* row[kPanel<V>];
  for (int i = 0; i < strip.lanes; ++i) {
    row[i] = queries.start(p.weights.data, p.weights.stride, strip.lane + i) + first;
  }
  if (strip.keys == tile.count && tile.count == tile.width) {
    transpose_out<V>(scores, kPanel<V>, tile.count, w.scale + strip.lane, row, strip.lanes);
    return;
  }
  for (int k = 0; k < strip.keys; ++k) {
    for (int i = 0; i < strip.lanes; ++i) {
      row[i][tile.index[k]] = scores[k * kPanel<V> + i] * w.scale[strip.lane + i];
    }
  }
}

// `count` rows of K or V from `first` on, if a prefetch of them makes sense.
template <class T>
Ahead<T> rows_ahead(const View<const T, 4>& view, std::int64_t batch, std::int64_t group,
                    std::int64_t first, std::int64_t end) {
  if (view.stride[3] != 1 || first >= end) return {};
  const std::int64_t rows = end - first < kTileKeys ? end - first : kTileKeys;
  return {
      .data = view.data + batch * view.stride[0] + group * view.stride[1] + first * view.stride[2],
      .stride = view.stride[2],
      .rows = rows,
      .columns = view.shape[3]};
}

// A Score is made once per block and packs the queries; begin(tile) may prepare the keys, and
// strip<NV>(tile, strip, ahead, sums) writes sums[key][lane] for the keys of the strip.
template <class V, class Score>
class Block {
 public:
  using T = typename V::Scalar;

  Block(const AttentionParams<T>& p, const AttentionBlock& block, T* scratch)
      : p_(p),
        block_(block),
        columns_(p.value.shape[3]),
        group_(block.first_head / (p.query.shape[1] / p.key.shape[1])),
        w_(scratch, p.query.shape[3], columns_),
        queries_(block),
        score_(start(), queries_, w_) {
    for (int lane = 0; lane < kBlockRows; ++lane) {
      w_.max[lane] = -static_cast<T>(HUGE_VAL);
      w_.sum[lane] = T(0);
    }
    std::memset(w_.out, 0, sizeof(T) * static_cast<std::size_t>(kBlockRows * columns_));
    std::memset(w_.zeros, 0, sizeof(T) * static_cast<std::size_t>(columns_));
  }

  void run() {
    for_each_tile([&](Tile<T>& tile, std::int64_t first) {
      load_values<V>(p_, queries_, group_, first, w_.values, w_.zeros, tile);
      Ahead<T> values = ahead(p_.value, first);
      Ahead<T> keys = ahead(p_.key, first + kTileKeys);
      for_each_strip<V>(tile, queries_.count, [&](auto vecs, const Strip<V>& strip) {
        add_strip<decltype(vecs)::value>(tile, strip, values, keys);
        values = {};  // once per tile is enough
        keys = {};
      });
    });
    store_output<V>(p_, queries_, w_);
    if (p_.weights.data != nullptr) write_weights();
  }

 private:
  const AttentionParams<T>& start() const {
    ahead(p_.key, block_.key_begin).touch(0, kTileKeys);
    return p_;
  }

  Ahead<T> ahead(const View<const T, 4>& view, std::int64_t first) const {
    return rows_ahead(view, block_.batch, group_, first, block_.key_end);
  }

  // Calls body(tile, first) for every tile of the block that has a key to attend to.
  template <class Body>
  void for_each_tile(Body&& body) {
    Tile<T> tile;
    for (std::int64_t first = block_.key_begin; first < block_.key_end; first += kTileKeys) {
      const std::int64_t left = block_.key_end - first;
      const int width = left < kTileKeys ? static_cast<int>(left) : kTileKeys;
      load_tile<V>(p_, queries_, group_, first, width, w_.bias, w_.keys, tile);
      if (tile.count == 0) continue;
      score_.begin(tile);
      body(tile, first);
    }
  }

  // The masked scores of a strip, in its part of w.scores.
  template <int NV>
  T* masked_scores(const Tile<T>& tile, const Strip<V>& strip, const Ahead<T>& ahead) {
    const std::int64_t at = panel_offset<V>(strip.lane, kTileKeys);
    T* scores = w_.scores + at;
    score_.template strip<NV>(tile, strip, ahead, scores);
    if (tile.partial || tile.biased) {
      mask_scores<V, NV>(tile, strip.lane, strip.keys, w_.bias + at, scores);
    }
    return scores;
  }

  template <int NV>
  void add_strip(const Tile<T>& tile, const Strip<V>& strip, const Ahead<T>& values,
                 const Ahead<T>& keys) {
    const int lane = strip.lane;
    T* scores = masked_scores<NV>(tile, strip, values);
    softmax_step<V, NV>(strip.keys, scores, w_.max + lane, w_.sum + lane, w_.scale + lane);
    if (is_few<V>(queries_.count)) {
      add_few(tile, strip, keys, scores);
      return;
    }
    T* out = w_.out + panel_offset<V>(lane, columns_);
    add_tile<V, NV>(scores, tile.value, strip.keys, columns_, w_.scale + lane, keys, out);
    add_odd_rows<V, NV>(tile, lane, strip.keys, columns_, scores, out);
  }

  void add_few(const Tile<T>& tile, const Strip<V>& strip, const Ahead<T>& keys, const T* p) {
    keys.touch(0, kTileKeys);
    for (int lane = 0; lane < strip.lanes; ++lane) {
      T* out = w_.out + lane * columns_;
      add_across<V>(p + lane, tile.value, strip.keys, columns_, w_.scale[lane], out);
      add_odd_across<V>(tile, lane, columns_, p + lane, out);
    }
  }

  // The second pass: everything is 0 but what the tiles write.
  void write_weights() {
    for (int lane = 0; lane < queries_.count; ++lane) {
      std::memset(queries_.start(p_.weights.data, p_.weights.stride, lane), 0,
                  sizeof(T) * static_cast<std::size_t>(p_.weights.shape[3]));
    }
    for_each_tile([&](Tile<T>& tile, std::int64_t first) {
      for_each_strip<V>(tile, queries_.count, [&](auto vecs, const Strip<V>& strip) {
        constexpr int NV = decltype(vecs)::value;
        T* scores = masked_scores<NV>(tile, strip, {});
        store_weights<V, NV>(p_, queries_, strip, tile, first, w_, scores);
      });
    });
  }

  const AttentionParams<T>& p_;
  const AttentionBlock& block_;
  std::int64_t columns_;
  std::int64_t group_;
  Workspace<T> w_;
  Queries<T> queries_;
  Score score_;
};

}  // namespace
}  // namespace pyattn

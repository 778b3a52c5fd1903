// Scaled dot-product attention of bfloat16 arrays by an instruction that multiplies pairs of
// bfloat16 numbers and adds them to a float. The loop is that of attention.inl, the micro-kernels
// those of matrix.inl and few_rows.inl, whose operands are pairs here:
//   Q K^T: pairs of depth, (q[2i], q[2i + 1]) and (k[2i], k[2i + 1]), the latter where they lie; an
//     odd depth is filled up with a zero in a copy. The scale, which may have more bits than a
//     bfloat16 number, goes to the scores.
//   P V: pairs of keys, (p[2i], p[2i + 1]) and (v[2i][e], v[2i + 1][e]), counted from the first key
//     of all and not from the kept ones, with zeros for a key that is not kept: then a row's bits
//     do not depend on which keys other rows may attend to. Numerators are rounded to bfloat16;
//     their sum is that of the unrounded ones, as the log-sum-exp has to be.
// Stored: as in attention.inl; the pairs of V and of the numerators of a tile, 128 (E + 64) bytes.
// Measured on Zen 5, one thread, 64 queries: 0.73 of the peak of vdpbf16ps at D = 64, 0.81 at
//   D = 128, 1.7 to 1.8 times the speed of widened numbers. The two products alone run at 0.97 and
//   more; the rest is the softmax. Tried and slower: the scale in a pass of its own, by 4 %;
//   zipping rows of V by masked loads and vpermw, by 3 %; zipping before the scores, when the rows
//   that were asked for have not come yet, decoding from memory by a third to a half.
#pragma once

#include "cpu/sdpa.inl"

namespace pyattn {
namespace {

// Rows of bfloat16 numbers as rows of pairs: where they lie, or in `copies` if there is a step
// between the numbers or their number is odd.
inline void pair_rows(const BFloat16* const* rows, int count, std::int64_t step,
                      std::int64_t columns, BFloat16* copies, const BFloat16Pair** to) {
  if (step == 1 && columns % 2 == 0) {
    for (int r = 0; r < count; ++r) to[r] = reinterpret_cast<const BFloat16Pair*>(rows[r]);
    return;
  }
  for (int r = 0; r < count; ++r, copies += columns + columns % 2) {
    for (std::int64_t d = 0; d < columns; ++d) copies[d] = rows[r][d * step];
    if (columns % 2 != 0) copies[columns] = {};
    to[r] = reinterpret_cast<const BFloat16Pair*>(copies);
  }
}

template <class V>
class PairScore {
 public:
  using X = BFloat16;

  PairScore(const Queries<X>& queries, const Workspace<float>& w)
      : w_(w),
        scale_(queries.p.scale),
        depth_(queries.p.query.shape[3]),
        pairs_((depth_ + 1) / 2),
        step_(queries.p.key.stride[3]),
        count_(queries.count),
        few_(is_few<V>(queries.count)),
        query_(reinterpret_cast<BFloat16Pair*>(w.query)) {
    const View<const X, 4>& view = queries.p.query;
    const X* input[kBlockRows];
    const BFloat16Pair* row[kBlockRows];
    for (int lane = 0; lane < count_; ++lane) {
      input[lane] = queries.query(lane);
    }
    pair_rows(input, count_, view.stride[3], depth_, copies(), row);
    for (int lane = 0; few_ && lane < count_; ++lane) {
      std::memcpy(query_ + lane * pairs_, row[lane],
                  sizeof(BFloat16Pair) * static_cast<std::size_t>(pairs_));
    }
    for (int lane = 0; !few_ && lane < count_; lane += kPanel<V>) {
      const int lanes = count_ - lane < kPanel<V> ? count_ - lane : kPanel<V>;
      transpose_in<V>(row + lane, lanes, pairs_, query_ + lane * pairs_, kPanel<V>);
    }
  }

  void begin(const Tile<X>& tile) {
    pair_rows(tile.key, tile.count, step_, depth_, copies(), key_);
  }

  static constexpr bool kLeavesNoGaps = true;

  template <int NV>
  void strip(const Tile<X>&, const Strip<V>& strip, int stride, Ahead<X>& ahead,
             float* sums) const {
    const Scaled<V> scale{V::broadcast(scale_)};
    if (!few_) {
      dot_tile<V, NV>(query_ + panel_offset<V>(strip.lane, pairs_), key_, strip.keys, pairs_, ahead,
                      sums, scale);
      return;
    }
    dot_few<V>(query_, count_, pairs_, key_, strip.keys, stride, ahead, sums);
    const int step = stride < V::kLanes ? V::kLanes : stride;
    for (int i = 0; i < strip.keys * stride; i += step) scale(V::load(sums + i)).store(sums + i);
  }

 private:
  X* copies() const { return reinterpret_cast<X*>(w_.keys); }

  const Workspace<float>& w_;
  float scale_;
  std::int64_t depth_;
  std::int64_t pairs_;
  std::int64_t step_;
  int count_;
  bool few_;
  BFloat16Pair* query_;  // [panel][pair][lane], or [row][pair] for few queries
  const BFloat16Pair* key_[kTileKeys];
};

// Calls body(slot, even, odd) for each pair of neighbours of which a key is kept, with their places
// among the kept ones or -1; returns the number of pairs.
template <class X, class Body>
PYATTN_INLINE int for_each_pair(const Tile<X>& tile, int keys, Body&& body) {
  int slot = 0;
  int k = 0;
  if (tile.count == tile.width) {  // every key is kept, so index[k] is k
    for (; k + 1 < keys; k += 2, ++slot) body(slot, k, k + 1);
  }
  for (; k < keys; ++slot) {
    const bool odd = tile.index[k] % 2 != 0;
    const bool both = !odd && k + 1 < keys && tile.index[k + 1] == tile.index[k] + 1;
    body(slot, odd ? -1 : k, odd ? k : both ? k + 1 : -1);
    k += both ? 2 : 1;
  }
  return slot;
}

// Two rows of V as a row of pairs.
template <class V>
struct ZippedRows {
  using Pairs = Products<V, BFloat16Pair>;

  static constexpr int kBytes = V::kLanes * static_cast<int>(sizeof(BFloat16Pair));
  const BFloat16* const* even;
  const BFloat16* const* odd;

  PYATTN_INLINE V load(int slot, std::int64_t e) const {
    return Pairs::zip(even[slot] + e, odd[slot] + e);
  }
  PYATTN_INLINE V load(int slot, std::int64_t e, std::int64_t left) const {
    return left >= V::kLanes ? load(slot, e)
                             : Pairs::zip(even[slot] + e, odd[slot] + e, static_cast<int>(left));
  }
};

// A number of an odd row, in its place in a pair.
inline BFloat16Pair alone(const Tile<BFloat16>& tile, const OddRow<BFloat16>& odd, std::int64_t e) {
  const BFloat16 x = odd.row[e * odd.step];
  return tile.index[odd.key] % 2 != 0 ? BFloat16Pair{{}, x} : BFloat16Pair{x, {}};
}

// out[e][lane] += numerator[lane] * number of a pair
template <class V, int NV>
void add_odd_pairs(const Tile<BFloat16>& tile, const Strip<V>& strip, const int* slot,
                   std::int64_t columns, const BFloat16Pair* numerators, float* out) {
  for_each_odd<V>(
      tile, strip.keys, columns, [&](const OddRow<BFloat16>& odd, std::int64_t e, float) {
        const BFloat16Pair value = alone(tile, odd, e);
        const V factor = Products<V, BFloat16Pair>::broadcast(&value);
        for (int v = 0; v < NV; ++v) {
          const int at = v * V::kLanes;
          float* place = out + e * kPanel<V> + at;
          const V before = V::load(place);
          const V p = V::load(numerators + slot[odd.key] * kPanel<V> + at);
          const V after = Products<V, BFloat16Pair>::multiply_add(p, factor, before);
          V::select(V::from_bits(tile.bits[odd.key] >> (strip.lane + at)), after, before)
              .store(place);
        }
      });
}

template <class V>
class PairValues {
 public:
  using X = BFloat16;

  void load(const AttentionParams<X>& p, const Queries<X>& queries, std::int64_t group,
            const Workspace<float>& w, bool by_rows, Tile<X>& tile) {
    columns_ = p.value.shape[3];
    numerators_ = reinterpret_cast<BFloat16Pair*>(w.spare);
    auto* pairs = reinterpret_cast<BFloat16Pair*>(w.values);
    const X* row[kTileKeys];
    load_values<V>(p, queries, group, reinterpret_cast<X*>(pairs + kTileKeys / 2 * columns_), tile,
                   row);
    const X* none = reinterpret_cast<const X*>(w.zeros);
    const int slots = for_each_pair(tile, tile.count, [&](int slot, int even, int odd) {
      even_[slot] = even < 0 ? none : row[even];
      odd_[slot] = odd < 0 ? none : row[odd];
      if (even >= 0) slot_[even] = slot;
      if (odd >= 0) slot_[odd] = slot;
    });
    if (by_rows) return;  // they are zipped where they are used
    const ZippedRows<V> rows{even_, odd_};
    for (int slot = 0; slot < slots; ++slot, pairs += columns_) {
      for (std::int64_t e = 0; e < columns_; e += V::kLanes) {
        const V both = rows.load(slot, e, columns_ - e);
        store_left(both, pairs + e, columns_ - e);
      }
      value_[slot] = pairs;
    }
  }

  template <int NV>
  void add_panel(const Tile<X>& tile, const Strip<V>& strip, const float* scores,
                 const float* scale, Ahead<X>& ahead, float* out) {
    const int slots = pack<NV>(tile, strip, kPanel<V>, scores);
    add_tile<V, NV>(numerators_, value_, slots, columns_, scale, ahead, out);
    add_odd_pairs<V, NV>(tile, strip, slot_, columns_, numerators_, out);
  }

  template <int NV>
  void add_rows(const Tile<X>& tile, const Strip<V>& strip, const float* scores, int stride,
                const float* scale, Ahead<X>& ahead, float* out) {
    const int slots = pack<NV>(tile, strip, stride, scores);
    const ZippedRows<V> rows{even_, odd_};
    add_few<V>(numerators_, stride, rows, slots, strip.lanes, columns_, scale, ahead, out);
    for_each_odd<V>(tile, strip.keys, columns_, [&](const OddRow<X>& odd, std::int64_t e, float) {
      const BFloat16Pair value = alone(tile, odd, e);
      const V factor = Pairs::broadcast(&value);
      for (int i = 0; i < strip.lanes; ++i) {
        if ((tile.bits[odd.key] >> i & 1) == 0) continue;
        float* place = out + i * columns_ + e;
        const V p = Pairs::broadcast(numerators_ + slot_[odd.key] * stride + i);
        Pairs::multiply_add(p, factor, V::broadcast(*place)).store(place, 1);
      }
    });
  }

 private:
  using Pairs = Products<V, BFloat16Pair>;

  // Numerators to [pair][lane], where a pair takes `stride` places.
  template <int NV>
  int pack(const Tile<X>& tile, const Strip<V>& strip, int stride, const float* scores) {
    const V zero = V::broadcast(0.0F);
    return for_each_pair(tile, strip.keys, [&](int slot, int even, int odd) {
      PYATTN_UNROLL
      for (int v = 0; v < NV; ++v) {
        const int at = v * V::kLanes;
        const V first = even < 0 ? zero : V::load(scores + even * stride + at);
        const V second = odd < 0 ? zero : V::load(scores + odd * stride + at);
        Pairs::narrow(first, second).store(numerators_ + slot * stride + at);
      }
    });
  }

  std::int64_t columns_ = 0;
  BFloat16Pair* numerators_ = nullptr;
  int slot_[kTileKeys];       // of a kept key
  const X* even_[kTileKeys];  // of a slot
  const X* odd_[kTileKeys];
  const BFloat16Pair* value_[kTileKeys];  // of a slot
};

template <class V>
void sdpa_pairs(const AttentionParams<BFloat16>& p, const AttentionBlock& block,
                float* scratch) noexcept {
  Block<V, BFloat16, PairScore<V>, PairValues<V>>(p, block, scratch).run();
}

}  // namespace
}  // namespace pyattn

// Scaled dot-product attention of bfloat16 arrays by products of whole tile registers, 16 x 32
// numbers by 32 x 16 (AMX). The loop is that of attention.inl; packed queries and numerators are
// pairs as in pairs.inl. A tile register is called a square here, a tile is 64 keys as elsewhere.
//   Q K^T: sums[key][lane] = A B with A = rows of K where they lie, 16 keys by 16 pairs of depth,
//     B = the packed queries, [pair][lane]. Keys that are not equally far apart (left-out ones
//     among them, a seam between pages), fewer than 16 of them and depths that are no multiple of
//     32 are copied, the depth filled up with zeros. The scale goes to the scores.
//   P V: sums[column][lane] = A B with A = the columns of V as rows, 16 pairs of keys, transposed
//     once per tile of keys, B = the numerators rounded to bfloat16, [pair][lane].
// Four squares of sums, two of A and two of B: a load per product, and each product of a group of
//   four has a sum of its own.
// Order: an instruction adds up the even members of 16 pairs and the odd ones apart, and both to
//   the sum. So the place of a pair within an instruction counts: depths from 0, keys from the
//   first of the tile and not the first kept one, with zeros for a key that is not kept. A row's
//   bits then depend on nothing but the row; few queries are a panel like any others.
// Shape of the squares: always 16 rows of 64 bytes. Rows of A and columns of B that nobody wants
//   may hold anything, since a sum depends on its own row and column only; depths and keys that
//   are not there are zeros. Another shape for what is left over would mean to configure the
//   registers again, which clears them.
// Cost, by Intel's figures and not by ours: a product takes 16 cycles (512 multiply-adds each), a
//   load of a square 8 (two rows each), ldtilecfg some 200. A block configures and releases once,
//   about the time of 13 products; a tile of 64 keys takes 128 of them for 64 queries at D = E =
//   128.
// Stored: as in attention.inl; the transposed pairs of V, 128 E bytes, and the numerators, 8 KiB.
// Never timed: we have no such processor. It is checked against the definition with a plain version
//   of the instructions and with this machine code, of which every instruction on tile registers is
//   trapped and carried out by that version (tests/cpp/test_amx.cpp).
#pragma once

#include "cpu/pairs.inl"

namespace pyattn {
namespace {

constexpr int kSquare = 16;                // rows of a square, and pairs or floats in a row
constexpr int kSquareDepth = 2 * kSquare;  // bfloat16 numbers in a row
constexpr int kTilePairs = kTileKeys / 2;
constexpr auto kPairBytes = static_cast<std::int64_t>(sizeof(BFloat16Pair));

// 16 rows, `stride` bytes apart.
struct SquareRows {
  const void* data;
  std::int64_t stride;
};

PYATTN_INLINE const void* bytes_from(const void* data, std::int64_t bytes) {
  return static_cast<const char*>(data) + bytes;
}

// Square 2 a + b = the sum over `steps` of square a of A by square b of B. Steps are 64 bytes apart
// in A and 16 rows in B, whose rows are `row_bytes` long; the second square of B is 64 bytes on.
template <class Tiles, int NA, int NB>
PYATTN_INLINE void multiply_squares(const SquareRows* a, const BFloat16Pair* b,
                                    std::int64_t row_bytes, std::int64_t steps) {
  Tiles::template zero<0>();
  if constexpr (NB > 1) Tiles::template zero<1>();
  if constexpr (NA > 1) Tiles::template zero<2>();
  if constexpr (NA > 1 && NB > 1) Tiles::template zero<3>();
  for (std::int64_t s = 0; s < steps; ++s) {
    const void* rows = bytes_from(b, s * kSquare * row_bytes);
    const std::int64_t at = s * kSquare * kPairBytes;
    Tiles::template load<4>(bytes_from(a[0].data, at), a[0].stride);
    Tiles::template load<6>(rows, row_bytes);
    Tiles::template multiply_add<0, 4, 6>();
    if constexpr (NB > 1) {
      Tiles::template load<7>(bytes_from(rows, kSquare * kPairBytes), row_bytes);
      Tiles::template multiply_add<1, 4, 7>();
    }
    if constexpr (NA > 1) {
      Tiles::template load<5>(bytes_from(a[1].data, at), a[1].stride);
      Tiles::template multiply_add<2, 5, 6>();
    }
    if constexpr (NA > 1 && NB > 1) Tiles::template multiply_add<3, 5, 7>();
  }
}

// The sums to rows of `row_floats` numbers.
template <class Tiles, int NA, int NB>
PYATTN_INLINE void store_squares(float* to, std::int64_t row_floats) {
  const auto stride = row_floats * static_cast<std::int64_t>(sizeof(float));
  Tiles::template store<0>(to, stride);
  if constexpr (NB > 1) Tiles::template store<1>(to + kSquare, stride);
  if constexpr (NA > 1) Tiles::template store<2>(to + kSquare * row_floats, stride);
  if constexpr (NA > 1 && NB > 1) {
    Tiles::template store<3>(to + kSquare * row_floats + kSquare, stride);
  }
}

// Calls body(first row square, their number, first lane, number of lane squares) for blocks of up
// to 2 x 2 squares, the numbers as Count.
template <int NV, class Body>
PYATTN_INLINE void for_each_block(int rows, Body&& body) {
  const auto across = [&](int row, auto count) {
    for (int v = 0; v + 2 <= NV; v += 2) body(row, count, v * kSquare, Count<2>{});
    if constexpr (NV % 2 != 0) body(row, count, (NV - 1) * kSquare, Count<1>{});
  };
  int row = 0;
  for (; row + 2 <= rows; row += 2) across(row, Count<2>{});
  if (row < rows) across(row, Count<1>{});
}

constexpr std::int64_t squares(std::int64_t rows) { return (rows + kSquare - 1) / kSquare; }

// How many cache lines of the next tile to ask for before each of so many blocks.
inline std::int64_t lines_each(const Ahead<BFloat16>& ahead, std::int64_t rows, int vecs) {
  const std::int64_t blocks = (squares(rows) + 1) / 2 * ((vecs + 1) / 2);
  return blocks == 0 ? 0 : (ahead.lines(kTileKeys) + blocks - 1) / blocks;
}

template <class V, class Tiles>
class TileScore {
 public:
  using X = BFloat16;
  static constexpr bool kPanelsOnly = true;
  static constexpr bool kLeavesNoGaps = false;
  static_assert(V::kLanes == kSquare);

  TileScore(const Queries<X>& queries, const Workspace<float>& w)
      : scale_(queries.p.scale),
        depth_(queries.p.query.shape[3]),
        steps_((depth_ + kSquareDepth - 1) / kSquareDepth),
        step_(queries.p.key.stride[3]),
        query_(is_shallow() ? shallow_query_ : reinterpret_cast<BFloat16Pair*>(w.query)),
        copies_(is_shallow() ? shallow_keys_ : reinterpret_cast<X*>(w.keys)) {
    const View<const X, 4>& view = queries.p.query;
    const X* input[kBlockRows];
    const BFloat16Pair* row[kBlockRows];
    for (int lane = 0; lane < queries.count; ++lane) {
      input[lane] = queries.query(lane);
    }
    pair_rows(input, queries.count, view.stride[3], depth_, copies_, row);
    const std::int64_t pairs = (depth_ + 1) / 2;
    const std::int64_t missing = steps_ * kSquare - pairs;
    for (int lane = 0; lane < queries.count; lane += kPanel<V>) {
      const int lanes = queries.count - lane < kPanel<V> ? queries.count - lane : kPanel<V>;
      BFloat16Pair* panel = query_ + lane * steps_ * kSquare;
      transpose_in<V>(row + lane, lanes, pairs, panel, kPanel<V>);
      std::memset(static_cast<void*>(panel + pairs * kPanel<V>), 0,
                  static_cast<std::size_t>(missing * kPanel<V> * kPairBytes));
    }
  }

  void begin(const Tile<X>& tile) {
    for (int k = 0; k < tile.count; k += kSquare) {
      const int count = tile.count - k < kSquare ? tile.count - k : kSquare;
      keys_[k / kSquare] = square_of(tile.key + k, count, copies_ + k * steps_ * kSquareDepth);
    }
  }

  template <int NV>
  void strip(const Tile<X>&, const Strip<V>& strip, int, Ahead<X>& ahead, float* sums) const {
    const BFloat16Pair* panel = query_ + panel_offset<V>(strip.lane, steps_ * kSquare);
    const std::int64_t share = lines_each(ahead, strip.keys, NV);
    for_each_block<NV>(static_cast<int>(squares(strip.keys)),
                       [&](int row, auto rows, int lane, auto vecs) {
                         ahead.touch(share);
                         dot_block<decltype(rows)::value, decltype(vecs)::value>(
                             keys_ + row, panel + lane, sums + row * kSquare * kPanel<V> + lane);
                       });
    const V scale = V::broadcast(scale_);
    for (int k = 0; k < strip.keys; ++k) {
      PYATTN_UNROLL
      for (int v = 0; v < NV; ++v) {
        float* place = sums + k * kPanel<V> + v * V::kLanes;
        (V::load(place) * scale).store(place);
      }
    }
  }

 private:
  // The workspace has 256 (D + D % 2) bytes for packed queries and as many for keys; filled up to
  // squares they take 128 (32 steps), which is more for depths below 15 only.
  bool is_shallow() const { return depth_ < 15; }

  template <int NA, int NB>
  void dot_block(const SquareRows* keys, const BFloat16Pair* panel, float* sums) const {
    multiply_squares<Tiles, NA, NB>(keys, panel, kPanel<V> * kPairBytes, steps_);
    store_squares<Tiles, NA, NB>(sums, kPanel<V>);
  }

  // Rows that can be read as a square: where they lie, or copied. A copy of fewer than 16 ends in
  // rows of whatever was there, whose scores nobody reads.
  SquareRows square_of(const X* const* row, int count, X* copy) const {
    const std::int64_t length = steps_ * kSquareDepth;
    if (step_ == 1 && depth_ == length && count == kSquare) {
      const std::int64_t apart = row[1] - row[0];
      int k = 2;
      while (k < kSquare && row[k] - row[k - 1] == apart) ++k;
      if (k == kSquare) return {row[0], apart * static_cast<std::int64_t>(sizeof(X))};
    }
    for (int k = 0; k < count; ++k) {
      X* to = copy + k * length;
      for (std::int64_t d = 0; d < depth_; ++d) to[d] = row[k][d * step_];
      std::memset(to + depth_, 0, sizeof(X) * static_cast<std::size_t>(length - depth_));
    }
    return {copy, length * static_cast<std::int64_t>(sizeof(X))};
  }

  float scale_;
  std::int64_t depth_;
  std::int64_t steps_;  // of 32 numbers
  std::int64_t step_;
  BFloat16Pair* query_;  // [panel][pair][lane]
  X* copies_;
  SquareRows keys_[kTileKeys / kSquare];
  alignas(64) BFloat16Pair shallow_query_[kSquare * kBlockRows];
  alignas(64) X shallow_keys_[kTileKeys * kSquareDepth];
};

template <class V, class Tiles>
class TileValues {
 public:
  using X = BFloat16;

  void load(const AttentionParams<X>& p, const Queries<X>& queries, std::int64_t group,
            const Workspace<float>& w, bool, Tile<X>& tile) {
    columns_ = p.value.shape[3];
    numerators_ = reinterpret_cast<BFloat16Pair*>(w.spare);
    values_ = reinterpret_cast<BFloat16Pair*>(w.values);
    const X* row[kTileKeys];
    load_values<V>(p, queries, group, reinterpret_cast<X*>(values_ + kTilePairs * columns_), tile,
                   row);
    const X* member[kTileKeys];
    for (const X*& place : member) place = reinterpret_cast<const X*>(w.zeros);
    for (int k = 0; k < tile.count; ++k) {
      member[tile.index[k]] = row[k];
      slot_[k] = tile.index[k] / 2;
    }
    const int last = tile.index[tile.count - 1];
    for (int k = 0; k <= last; k += kSquareDepth) transpose_pairs(member + k, values_ + k / 2);
  }

  template <int NV>
  void add_panel(const Tile<X>& tile, const Strip<V>& strip, const float* scores,
                 const float* scale, Ahead<X>& ahead, float* out) {
    const int steps = pack<NV>(tile, strip, scores);
    const std::int64_t share = lines_each(ahead, columns_, NV);
    for_each_block<NV>(static_cast<int>(squares(columns_)),
                       [&](int row, auto rows, int lane, auto vecs) {
                         ahead.touch(share);
                         add_block<decltype(rows)::value, decltype(vecs)::value>(
                             row * kSquare, lane, steps, scale + lane, out + lane);
                       });
    add_odd_pairs<V, NV>(tile, strip, slot_, columns_, numerators_, out);
  }

 private:
  using Pairs = Products<V, BFloat16Pair>;

  // Rows of 32 keys to to[column][pair], of which a row has all pairs of a tile.
  void transpose_pairs(const X* const* row, BFloat16Pair* to) const {
    const X* even[kSquare];
    const X* odd[kSquare];
    for (int i = 0; i < kSquare; ++i) {
      even[i] = row[2 * i];
      odd[i] = row[2 * i + 1];
    }
    const ZippedRows<V> rows{even, odd};
    for (std::int64_t e = 0; e < columns_; e += kSquare) {
      const std::int64_t left = columns_ - e;
      V square[kSquare];
      for (int i = 0; i < kSquare; ++i) square[i] = rows.load(i, e, left);
      V::transpose(square);
      for (int i = 0; i < kSquare && i < left; ++i) square[i].store(to + (e + i) * kTilePairs);
    }
  }

  // Numerators to [pair][lane], zeros where no key is kept; returns the number of steps.
  template <int NV>
  int pack(const Tile<X>& tile, const Strip<V>& strip, const float* scores) {
    const V zero = V::broadcast(0.0F);
    const auto put = [&](int slot, int v, V pairs) {
      pairs.store(numerators_ + slot * kPanel<V> + v * V::kLanes);
    };
    int next = 0;
    const auto skip_to = [&](int slot) {
      for (; next < slot; ++next) {
        for (int v = 0; v < NV; ++v) put(next, v, zero);
      }
    };
    for_each_pair(tile, strip.keys, [&](int, int even, int odd) {
      skip_to(slot_[even < 0 ? odd : even]);
      PYATTN_UNROLL
      for (int v = 0; v < NV; ++v) {
        const int at = v * V::kLanes;
        const V first = even < 0 ? zero : V::load(scores + even * kPanel<V> + at);
        const V second = odd < 0 ? zero : V::load(scores + odd * kPanel<V> + at);
        put(next, v, Pairs::narrow(first, second));
      }
      ++next;
    });
    const auto steps = static_cast<int>(squares(next));
    skip_to(steps * kSquare);
    return steps;
  }

  // out[e][lane] = out[e][lane] * scale[lane] + sum_pair value[e][pair] p[pair][lane], the sum made
  // apart. Behind the last column the squares hold what follows the values in the workspace.
  template <int NA, int NB>
  void add_block(std::int64_t column, int lane, int steps, const float* scale, float* out) const {
    const BFloat16Pair* value = values_ + column * kTilePairs;
    const std::int64_t stride = kTilePairs * kPairBytes;
    const SquareRows a[2] = {{value, stride}, {value + kSquare * kTilePairs, stride}};
    alignas(64) float sums[NA * kSquare][NB * kSquare];
    multiply_squares<Tiles, NA, NB>(a, numerators_ + lane, kPanel<V> * kPairBytes, steps);
    store_squares<Tiles, NA, NB>(sums[0], NB * kSquare);
    const std::int64_t left = columns_ - column;
    const int rows = left < NA * kSquare ? static_cast<int>(left) : NA * kSquare;
    PYATTN_UNROLL
    for (int b = 0; b < NB; ++b) {
      const V factor = V::load(scale + b * kSquare);
      for (int i = 0; i < rows; ++i) {
        float* place = out + (column + i) * kPanel<V> + b * kSquare;
        V::fma(V::load(place), factor, V::load(sums[i] + b * kSquare)).store(place);
      }
    }
  }

  std::int64_t columns_ = 0;
  BFloat16Pair* numerators_ = nullptr;
  BFloat16Pair* values_ = nullptr;  // [column][pair]
  int slot_[kTileKeys];             // of a kept key
};

template <class V, class Tiles>
void sdpa_tiles(const AttentionParams<BFloat16>& p, const AttentionBlock& block,
                float* scratch) noexcept {
  Tiles::configure();
  Block<V, BFloat16, TileScore<V, Tiles>, TileValues<V, Tiles>>(p, block, scratch).run();
  Tiles::release();
}

}  // namespace
}  // namespace pyattn

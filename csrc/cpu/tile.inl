// What a block of queries sees of a tile of keys: which rows of K and V, and who may attend to
// whom.
//
// "Masked" means "never read": a key that no query of the block may attend to is left out of the
// tile, so neither it nor its value is touched. For the others the score of a masked pair is
// replaced by -inf, whatever it was, and of a value row that is masked for some of the queries the
// numbers that are not finite stay out of the product P V, where 0 * NaN would spread (values.inl).
// Leaving a key out changes no bit of any row: it would have added 0.
#pragma once

#include "core/params.h"
#include "cpu/matrix.inl"
#include "cpu/rows.inl"

namespace pyattn {
namespace {

constexpr std::uint64_t low_bits(std::int64_t count) {
  if (count <= 0) return 0;
  return count >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
}

// The queries of a block: lane i is row first_row + i % rows of head first_head + i / rows.
template <class X>
struct Queries {
  const AttentionParams<X>& p;
  const AttentionBlock& block;
  int count;
  std::uint64_t valid;
  std::int32_t head_in_block[kBlockRows];  // of a lane, as is its row: a division each otherwise
  std::int32_t row_in_block[kBlockRows];
  std::int64_t position[kBlockRows];  // among the keys
  std::int64_t lowest;
  std::int64_t highest;
  const X* turned = nullptr;  // rows of Q, D apart, in place of those of the view

  Queries(const AttentionParams<X>& params, const AttentionBlock& b)
      : p(params), block(b), count(static_cast<int>(b.heads * b.rows)), valid(low_bits(count)) {
    for (int h = 0, lane = 0; h < block.heads; ++h) {
      for (int i = 0; i < block.rows; ++i, ++lane) {
        head_in_block[lane] = h;
        row_in_block[lane] = i;
      }
    }
    const std::int64_t start = p.query_starts == nullptr ? 0 : p.query_starts[block.batch];
    lowest = highest = start + source(0);
    for (int lane = 0; lane < count; ++lane) {
      position[lane] = start + source(lane);
      lowest = position[lane] < lowest ? position[lane] : lowest;
      highest = position[lane] > highest ? position[lane] : highest;
    }
  }

  std::int64_t head(int lane) const { return block.first_head + head_in_block[lane]; }
  std::int64_t row(int lane) const { return block.first_row + row_in_block[lane]; }
  // The row of the query and of the mask, which is also the one that dropout counts.
  std::int64_t source(int lane) const { return p.rows == nullptr ? row(lane) : p.rows[row(lane)]; }

  template <class U>
  U* at(U* data, const std::int64_t* stride, int lane, std::int64_t row_index) const {
    const std::int64_t first = p.query_offsets == nullptr ? 0 : p.query_offsets[block.batch];
    return data + block.batch * stride[0] + head(lane) * stride[1] +
           (first + row_index) * stride[2];
  }
  // Where the row of an input and of an output starts.
  template <class U>
  U* input(U* data, const std::int64_t* stride, int lane) const {
    return at(data, stride, lane, source(lane));
  }
  const X* query(int lane) const {
    if (turned != nullptr) return turned + lane * p.query.shape[3];
    return input(p.query.data, p.query.stride, lane);
  }
  template <class U>
  U* output(U* data, const std::int64_t* stride, int lane) const {
    return at(data, stride, lane, row(lane));
  }
};

// A row that is not finite, of a kept key that is masked for some of the queries.
template <class X>
struct OddRow {
  int key;
  const X* row;
  std::int64_t step;  // between its numbers
};

// X: the type of K and V in memory. Rows are given by pointers and may have a stride until a
// mechanism and load_values ask for rows that a micro-kernel can read.
template <class X>
struct Tile {
  std::int64_t first = 0;  // the key at index 0
  int count = 0;           // keys kept
  int width = 0;           // keys looked at
  bool partial = false;    // some pair of a kept key and a query is masked
  bool biased = false;
  int index[kTileKeys];           // position of a kept key in the tile
  std::uint64_t bits[kTileKeys];  // of a kept key: the lanes that may attend to it
  const X* key[kTileKeys];
  int odd_count = 0;
  OddRow<X> odd[kTileKeys];
};

// In place: bit j of word i becomes bit i of word j (Warren, Hacker's Delight, section 7-3).
inline void transpose_bits(std::uint64_t (&word)[64]) {
  std::uint64_t mask = 0x00000000ffffffffULL;
  for (int step = 32; step != 0; step >>= 1, mask ^= mask << step) {
    for (int i = 0; i < 64; i = (i + step + 1) & ~step) {
      const std::uint64_t swapped = (word[i] >> step ^ word[i + step]) & mask;
      word[i] ^= swapped << step;
      word[i + step] ^= swapped;
    }
  }
}

// Bit j = "byte j is not zero", for `count` <= 64 bytes.
template <class V>
std::uint64_t nonzero_bits(const std::uint8_t* byte, std::int64_t stride, int count) {
  if (stride == 0) return *byte != 0 ? low_bits(count) : 0;
  if constexpr (requires { V::nonzero_64(byte); }) {
    if (stride == 1 && count == 64) return V::nonzero_64(byte);
  }
  std::uint64_t bits = 0;
  int j = 0;
  if (stride == 1) {
    for (; j + 8 <= count; j += 8) {
      std::uint64_t eight;
      std::memcpy(&eight, byte + j, 8);
      constexpr std::uint64_t kSeven = 0x7f7f7f7f7f7f7f7fULL;
      const std::uint64_t high = (((eight & kSeven) + kSeven) | eight) & ~kSeven;
      // Gathers bit 7 of every byte into the top byte, in order.
      bits |= ((high >> 7) * 0x0102040810204080ULL >> 56) << j;
    }
  }
  for (; j < count; ++j) bits |= static_cast<std::uint64_t>(byte[j * stride] != 0) << j;
  return bits;
}

// A row of a mask is read 64 bytes at a time, far from the other rows: no processor foresees that.
constexpr std::int64_t kMaskAhead = 128;

// allowed[j] = lanes that may attend to key first + j by position and by a boolean mask.
// False when every pair is allowed; `allowed` is then untouched.
template <class V, class X>
bool restrict_tile(const AttentionParams<X>& p, const Queries<X>& queries, std::int64_t first,
                   int width, std::uint64_t (&allowed)[kTileKeys]) {
  const bool ends = p.right < kUnbounded && first + width - 1 > queries.lowest + p.right;
  const bool begins = p.left < kUnbounded && first < queries.highest - p.left;
  const bool masked = p.mask.kind == MaskKind::boolean;
  if (!ends && !begins && !masked) return false;
  const auto* mask = static_cast<const std::uint8_t*>(p.mask.data) + first * p.mask.stride[3];
  const bool same_row =
      p.mask.stride[2] == 0 && (p.mask.stride[1] == 0 || queries.block.heads == 1);
  const std::uint64_t all = low_bits(width);
  std::uint64_t intersection = all;
  std::uint64_t any = 0;
  std::uint64_t shared = all;
  if (masked && same_row) {
    shared = nonzero_bits<V>(queries.input(mask, p.mask.stride, 0), p.mask.stride[3], width);
  }
  for (int lane = 0; lane < queries.count; ++lane) {
    std::uint64_t row = shared;
    if (masked && !same_row) {
      const std::uint8_t* bytes = queries.input(mask, p.mask.stride, lane);
      row = nonzero_bits<V>(bytes, p.mask.stride[3], width);
      PYATTN_PREFETCH(bytes + kMaskAhead);
    }
    if (ends) row &= low_bits(queries.position[lane] + p.right - first + 1);
    if (begins) row &= ~low_bits(queries.position[lane] - p.left - first);
    allowed[lane] = row;
    intersection &= row;
    any |= row;
  }
  if (intersection == all) return false;
  if (any == 0) {
    for (int k = 0; k < width; ++k) allowed[k] = 0;
    return true;
  }
  for (int lane = queries.count; lane < kTileKeys; ++lane) allowed[lane] = 0;
  transpose_bits(allowed);
  return true;
}

// Transposes the additive mask of the tile to bias[panel][key][lane] and clears the pairs at -inf.
template <class V, class X>
void load_bias(const AttentionParams<X>& p, const Queries<X>& queries, std::int64_t first,
               int width, Compute<X>* bias, std::uint64_t (&allowed)[kTileKeys]) {
  using T = Compute<X>;
  const auto* mask = static_cast<const X*>(p.mask.data) + first * p.mask.stride[3];
  const V masked = V::broadcast(-static_cast<T>(HUGE_VAL));
  for (int lane = 0; lane < queries.count; lane += kPanel<V>) {
    const int lanes = queries.count - lane < kPanel<V> ? queries.count - lane : kPanel<V>;
    const X* row[kPanel<V>];
    for (int i = 0; i < lanes; ++i) row[i] = queries.input(mask, p.mask.stride, lane + i);
    T* panel = bias + static_cast<std::int64_t>(lane) * kTileKeys;
    if (p.mask.stride[3] == 1) {
      transpose_in<V>(row, lanes, width, panel, kPanel<V>);
    } else {
      for (int k = 0; k < width; ++k) {
        for (int i = 0; i < kPanel<V>; ++i) {
          panel[k * kPanel<V> + i] = i < lanes ? widen<V>(row[i] + k * p.mask.stride[3]) : T(0);
        }
      }
    }
    for (int k = 0; k < width; ++k) {
      for (int i = 0; i < lanes; i += V::kLanes) {
        const V x = V::load(panel + k * kPanel<V> + i);
        allowed[k] &= ~(V::to_bits(V::equal(x, masked)) << (lane + i));
      }
    }
  }
}

// Fills `tile` for keys first .. first + width - 1, less those that nobody may attend to.
template <class V, class X>
void load_tile(const AttentionParams<X>& p, const Queries<X>& queries, std::int64_t group,
               std::int64_t first, int width, Compute<X>* bias, Tile<X>& tile) {
  std::uint64_t allowed[kTileKeys];
  tile.first = first;
  tile.biased = p.mask.kind == MaskKind::additive;
  const bool restricted = restrict_tile<V>(p, queries, first, width, allowed);
  const TileRows<X> rows(p, p.key, queries.block.batch, group, first);
  if (!restricted && !tile.biased) {
    for (int k = 0; k < width; ++k) tile.bits[k] = queries.valid;
    for (int k = 0; k < width; ++k) tile.index[k] = k;
    rows.list(width, tile.key);
    tile.count = tile.width = width;
    tile.partial = false;
    return;
  }
  if (!restricted) {
    for (int k = 0; k < width; ++k) allowed[k] = queries.valid;
  }
  if (tile.biased) load_bias<V>(p, queries, first, width, bias, allowed);
  tile.count = 0;
  tile.width = width;
  tile.partial = false;
  for (int k = 0; k < width; ++k) {
    if (allowed[k] == 0) continue;
    tile.partial |= allowed[k] != queries.valid;
    tile.bits[tile.count] = allowed[k];
    tile.index[tile.count] = k;
    tile.key[tile.count] = rows[k];
    ++tile.count;
  }
}

}  // namespace
}  // namespace pyattn

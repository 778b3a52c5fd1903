// What a kernel is told: plain aggregates, no behaviour. ISA objects include this file, and an
// inline function here would become a weak symbol compiled with their instruction set.
#pragma once

#include <cstdint>

namespace pyattn {

// Strides are counted in elements, may be zero or negative, and need not be ordered.
template <class T, int Rank>
struct View {
  T* data = nullptr;
  std::int64_t shape[Rank] = {};
  std::int64_t stride[Rank] = {};
};

enum class MaskKind : std::uint8_t { none, boolean, additive };

// A mask over (B, H, T, S). A broadcast dimension has stride 0 and is never expanded.
// boolean: one byte, non-zero = attend. additive: the element type of the scores, -inf = masked.
struct Mask {
  MaskKind kind = MaskKind::none;
  const void* data = nullptr;
  std::int64_t stride[4] = {};
};

// Rows of one task and keys of one tile. Both are 64 so that who may attend to whom in a tile is a
// 64 x 64 bit matrix: one word per row, or after a transposition one word per key.
inline constexpr int kBlockRows = 64;
inline constexpr int kTileKeys = 64;

// Layout (B, H, T, D); additive attention sets H = G = 1 and D = A.
template <class T>
struct AttentionParams {
  View<const T, 4> query;                    // (B, H, T, D)
  View<const T, 4> key;                      // (B, G, S, D)
  View<const T, 4> value;                    // (B, G, S, E)
  Mask mask;                                 // to (B, H, T, S)
  const std::int64_t* kv_lengths = nullptr;  // (B,), 0..S, or null
  bool is_causal = false;                    // key j is allowed for query i when j <= i
  T scale = T(1);                            // sdpa only
  const T* v = nullptr;                      // additive only: (A,), contiguous
  View<T, 4> out;                            // (B, H, T, E), unit last stride
  View<T, 4> weights;                        // (B, H, T, S), unit last stride, or null data
  View<T, 3> lse;                            // (B, H, T), or null data
};

// One task: `rows` queries of `heads` query heads that share one key/value head, with
// heads * rows <= kBlockRows, against the keys [key_begin, key_end).
struct AttentionBlock {
  std::int64_t batch = 0;
  std::int64_t first_head = 0;
  std::int64_t heads = 0;
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
  std::int64_t key_begin = 0;
  std::int64_t key_end = 0;
};

// Rows of a matrix for the row-wise kernels: both sides are dense.
template <class T>
struct Rows {
  const T* input = nullptr;
  T* output = nullptr;
  std::int64_t count = 0;
  std::int64_t length = 0;
};

template <class T>
struct LayerNormParams {
  const T* weight = nullptr;  // (length,) or null
  const T* bias = nullptr;    // (length,) or null
  T eps = T(0);
};

}  // namespace pyattn

// What a kernel is told: plain aggregates, no behaviour. ISA objects include this file, and an
// inline function here would become a weak symbol compiled with their instruction set.
#pragma once

#include <cstdint>

namespace pyattn {

// Storage types without arithmetic: kernels widen them to float. bits as in IEEE 754 binary16, and
// the upper half of a binary32.
struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

// The type in which the kernels for arrays of X calculate.
template <class X>
struct ComputeOf {
  using type = X;
};
template <>
struct ComputeOf<Half> {
  using type = float;
};
template <>
struct ComputeOf<BFloat16> {
  using type = float;
};
template <class X>
using Compute = typename ComputeOf<X>::type;

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

// The keys are cut at multiples of this; each part has a softmax of its own and the parts are
// merged in order. The cuts do not depend on anything, so a row's bits are the same whether the
// parts are computed one after the other or by several threads, in a batch or alone, in a long
// prefill or as one step of decoding.
inline constexpr std::int64_t kPartKeys = 512;

inline constexpr std::int64_t kUnbounded = std::int64_t{1} << 60;

// Weight (b, h, i, j) is kept where word j % 4 of Philox4x32-10 with the seed for a key and the
// counter (j / 4, i, h, b) reaches the threshold; what is kept is multiplied by `factor`.
template <class T>
struct Dropout {
  bool on = false;
  std::uint32_t threshold = 0;
  std::uint64_t seed = 0;
  T factor = T(1);
};

// Keys and values in pages: key j of entry b is row j % size of page table[b * stride + j / size].
// The batch axis of the key and value views then counts pages.
struct Pages {
  const std::int32_t* table = nullptr;
  std::int64_t stride = 0;
  std::int64_t size = 0;
};

// Angles by which rows of Q and K are turned as they are loaded, a row of each table for each
// position: the pairs (k, pairs + k) by (cos_k), (sin_k), or interleaved pairs (2k, 2k + 1) by
// (cos_k, cos_k), (-sin_k, sin_k).
template <class T>
struct Turn {
  const T* cosine = nullptr;  // null: no rotation
  const T* sine = nullptr;
  std::int64_t stride = 0;
  std::int64_t pairs = 0;  // 2 * pairs <= D; the numbers behind them stay
  bool interleaved = false;
  bool keys = false;  // those too; else they were turned before
};

// Layout (B, H, T, D) in storage type X; additive attention sets G = H and D = A. In packed
// sequences B counts sequences, the views have stride 0 there, and rows of sequence b start at
// query_offsets[b] and key_offsets[b].
template <class X>
struct AttentionParams {
  using T = Compute<X>;

  View<const X, 4> query;  // (B, H, T, D)
  View<const X, 4> key;    // (B, G, S, D)
  View<const X, 4> value;  // (B, G, S, E)
  std::int64_t batch = 0;
  std::int64_t keys = 0;                        // S, less what a short mask leaves out
  Mask mask;                                    // to (B, H, T, S)
  const std::int64_t* kv_lengths = nullptr;     // (B,), 0..S, or null
  const std::int64_t* query_offsets = nullptr;  // (B + 1,) or null
  const std::int64_t* key_offsets = nullptr;    // (B + 1,) or null
  Pages pages;
  const std::int64_t* rows = nullptr;  // (T,): the row of `query` and `mask` that row i stands for

  // Query i of entry b stands at position p = query_starts[b] + i, and sees keys p - left to
  // p + right.
  const std::int64_t* query_starts = nullptr;  // (B,), or null for 0
  std::int64_t left = kUnbounded;
  std::int64_t right = kUnbounded;

  Turn<T> turn;               // sdpa only, for Q and K with unit last stride
  T scale = T(1);             // sdpa only
  T softcap = T(0);           // s = softcap tanh(s / softcap) where it is not 0
  const T* slopes = nullptr;  // (H,): s - slope |p - j|
  const T* sinks = nullptr;   // (H,): one more score, whose weight is dropped
  const T* v = nullptr;       // additive only: (H, A), contiguous
  Dropout<T> dropout;
  View<const T, 3> given_lse;  // (B, H, T): skips the softmax; weights are exp(s - lse)

  // Outputs, each with unit last stride; null data where it is not wanted.
  View<X, 4> out;                     // (B, H, T, E)
  View<T, 3> lse;                     // (B, H, T)
  View<T, 3> max;                     // (B, H, T), without the sink
  View<T, 3> entropy;                 // (B, H, T)
  View<X, 4> weights;                 // (B, H, T, S)
  View<X, 4> scores;                  // (B, H, T, S): what the softmax sees, -inf where masked
  View<T, 4> top_weights;             // (B, H, T, top_k)
  View<std::int64_t, 4> top_indices;  // (B, H, T, top_k)
};

// One task: `rows` queries of `heads` query heads that share one key/value head, with
// heads * rows <= kBlockRows, against the keys [key_begin, key_end). key_begin is a multiple of
// kTileKeys.
struct AttentionBlock {
  std::int64_t batch = 0;
  std::int64_t first_head = 0;
  std::int64_t heads = 0;
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
  std::int64_t key_begin = 0;
  std::int64_t key_end = 0;
  void* part =
      nullptr;  // where the state of one part goes instead of the output; see part_elements
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

template <class T>
struct RmsNormParams {
  const T* scale = nullptr;  // (length,)
  T epsilon = T(0);
};

// Rows of the gradient of RMS normalisation; all are dense, and input may be input_gradient.
template <class T>
struct RmsNormGradientRows {
  const T* input = nullptr;
  const T* gradient = nullptr;
  T* input_gradient = nullptr;
  T* scale_gradient = nullptr;  // (length,), added to, or null
  std::int64_t count = 0;
  std::int64_t length = 0;
};

// Pair k of row (b, h, t) is turned by the angle whose cosine and sine are entry
// (b, position, k) of the caches; position is t where there are no positions.
template <class X>
struct RotaryParams {
  View<const X, 4> input;                   // (B, H, T, D)
  View<X, 4> output;                        // (B, H, T, D), unit last stride
  View<const X, 3> cosine;                  // (B, positions, pairs); 2 * pairs <= D
  View<const X, 3> sine;                    // the same
  const std::int64_t* positions = nullptr;  // (B, T), contiguous, or null
  bool interleaved = false;                 // pairs are (2k, 2k + 1), else (k, pairs + k)
  bool inverse = false;                     // by the negative angle
};

// One task: the rows [first_row, first_row + rows) of every head of a batch entry.
struct RotaryBlock {
  std::int64_t batch = 0;
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
};

}  // namespace pyattn

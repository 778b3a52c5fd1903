// From a whole attention problem to independent blocks, and over the threads.
#pragma once

#include <cstdint>
#include <vector>

#include "core/kernels.h"

namespace pyattn {

// Sets the strides with which a mask of `shape` broadcasts to `target`, (B, H, T, S) or (B, T, S),
// by NumPy's rule. A last axis that is shorter than S, and not 1, is all there is of the keys:
// `keys` becomes its length. Returns whether the shapes fit.
bool broadcast_mask(const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& stride,
                    const std::vector<std::int64_t>& target, Mask& mask, std::int64_t& keys);

// Sets the keys that some query of the block may see by position.
template <class X>
void limit_keys(const AttentionParams<X>& params, AttentionBlock& block);

// How (B, H, T) is cut into blocks. Any cut gives the same bits.
template <class X>
class AttentionTasks {
 public:
  explicit AttentionTasks(const AttentionParams<X>& params);

  std::int64_t count() const { return count_; }
  std::int64_t blocks_per_entry() const { return entries_.empty() ? 0 : entries_[0].blocks; }

  // Blocks that see more keys come first, so that the threads finish together.
  AttentionBlock block(std::int64_t task) const;

 private:
  struct Entry {
    std::int64_t first_task = 0;
    std::int64_t length = 0;
    std::int64_t rows_per_block = 1;
    std::int64_t row_blocks = 0;
    std::int64_t heads_per_block = 1;  // query heads of one key/value head that share a block
    std::int64_t head_blocks = 0;      // per key/value head
    std::int64_t blocks = 0;           // in all
  };

  Entry entry_of(std::int64_t length) const;

  const AttentionParams<X>& params_;
  std::int64_t groups_;
  std::int64_t sharing_;        // query heads per key/value head
  std::vector<Entry> entries_;  // one for each packed sequence; else one for all
  std::int64_t count_ = 0;
};

// Scratch of one task in elements of Compute<X>, the same for every instruction set. Workspace in
// workspace.inl carves it up; the depth is padded to an even number for the additive kernel.
constexpr std::int64_t attention_scratch_elements(std::int64_t depth, std::int64_t columns) {
  const std::int64_t even_depth = depth + depth % 2;
  return kBlockRows * (2 * even_depth + 2 * columns)  // queries (twice for additive), outputs
         + 3 * kBlockRows * kTileKeys                 // scores, additive mask, spare
         + kTileKeys * (2 * even_depth + columns)     // keys (twice), values
         + (kBlockRows + kTileKeys + 1) * even_depth  // queries and keys turned, a row of them
         + even_depth + columns + 9 * kBlockRows      // v, zeros, row statistics
         + 512;                                       // rounding of the pieces to cache lines
}

// The state of one part of a block: maximum and sum of every row, and the rows of its output.
constexpr std::int64_t part_elements(std::int64_t rows, std::int64_t columns) {
  return (2 * kBlockRows + rows * columns + 15) / 16 * 16;
}

// `work_per_score` is the cost of one score beside its share of P V, in multiply-adds.
template <class X>
void run_attention(const AttentionParams<X>& params, typename AttentionKernels<X>::Run kernel,
                   typename AttentionKernels<X>::Merge merge, double work_per_score);

// Scaled dot-product attention, or the additive kind where there is a v, by the best kernels here.
template <class X>
void run_mechanism(const AttentionParams<X>& params);

// Scores without masks, those with the softcap, and those that the softmax sees.
enum class ScoreStage : std::uint8_t { plain, capped, biased };

// The parameters of a run that stores nothing but `scores`, (B, H, T, S).
template <class X>
AttentionParams<X> scores_of(AttentionParams<X> params, ScoreStage stage, const View<X, 4>& scores);

}  // namespace pyattn

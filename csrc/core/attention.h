// From a whole attention problem to independent blocks, and over the threads.
#pragma once

#include <cstdint>

#include "core/kernels.h"

namespace pyattn {

// How (B, H, T) is cut. It depends on the shape of one batch entry only, so the result does not
// depend on the batch or on the number of threads.
struct AttentionPlan {
  std::int64_t heads_per_block = 1;  // query heads of one key/value head that share a block
  std::int64_t rows_per_block = 1;
  std::int64_t head_blocks = 0;  // per key/value head
  std::int64_t row_blocks = 0;
  std::int64_t tasks = 0;
};

template <class T>
AttentionPlan plan_attention(const AttentionParams<T>& params);

// Causal blocks come heaviest first, so that the threads finish together.
template <class T>
AttentionBlock block_of(const AttentionPlan& plan, const AttentionParams<T>& params,
                        std::int64_t task);

// Scratch of one task in elements of T, the same for every instruction set. attention.inl carves it
// up; the depth is padded to an even number for the additive kernel.
constexpr std::int64_t attention_scratch_elements(std::int64_t depth, std::int64_t value_depth) {
  const std::int64_t even_depth = depth + depth % 2;
  return kBlockRows * (2 * even_depth + value_depth)   // queries (twice for additive), output
         + 2 * kBlockRows * kTileKeys                  // scores, additive mask
         + kTileKeys * (2 * even_depth + value_depth)  // keys (twice), values
         + even_depth + value_depth + 3 * kBlockRows   // v, zeros, row statistics
         + 256;                                        // rounding of the pieces to cache lines
}

// `work_per_score` is the cost of one score beside its share of P V, in multiply-adds.
template <class T>
void run_attention(const AttentionParams<T>& params, typename Kernels<T>::Attention kernel,
                   double work_per_score);

}  // namespace pyattn

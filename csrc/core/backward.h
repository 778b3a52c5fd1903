// The backward pass of scaled dot-product attention, cut into tasks.
//
// A unit of work is one key/value head of one entry of the batch against a segment of the query
// rows. It adds dK and dV up over its rows; the sums of several segments are added in order. Where
// the segments end depends on the entry alone, so the gradients have the same bits for any number
// of threads and in any batch.
#pragma once

#include "core/kernels.h"

namespace pyattn {

// Scratch of one task in elements of Compute<X>, the same for every instruction set; carved up by
// GradientWorkspace in backward_tile.inl.
constexpr std::int64_t backward_scratch_elements(std::int64_t depth, std::int64_t columns) {
  depth += depth % 2;
  const std::int64_t wide_depth = (depth + kBlockRows - 1) / kBlockRows * kBlockRows;
  const std::int64_t wide_columns = (columns + kBlockRows - 1) / kBlockRows * kBlockRows;
  return kBlockRows * (depth + wide_depth + columns + wide_columns)  // queries, their gradients
         + 4 * kBlockRows * kTileKeys                                // weights, ds, softcap, mask
         + kTileKeys * (2 * depth + columns)                         // copies of keys and values
         + (2 * kBlockRows + kTileKeys + 1) * depth                  // additive: exponentials, v
         + depth + columns + 5 * kBlockRows                          // a row of each, statistics
         + 512;                                                      // rounding to cache lines
}

// Everything that has a place in `params`, column_mass excepted.
template <class X>
void run_backward(const BackwardParams<X>& params, const BackwardKernels<X>& kernels);

// grad_mask alone.
template <class X>
void run_mask_gradient(const BackwardParams<X>& params, const BackwardKernels<X>& kernels);

// column_mass from queries, keys and given_lse.
template <class X>
void run_column_mass(const BackwardParams<X>& params, const BackwardKernels<X>& kernels);

}  // namespace pyattn

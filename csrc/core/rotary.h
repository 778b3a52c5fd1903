// Rotary position embedding over the heads and rows of a batch.
#pragma once

#include "core/params.h"

namespace pyattn {

// Half precision is widened as it is read and rounded once. Every position is within the caches;
// the views agree in their shapes.
template <class X>
void run_rotary(const RotaryParams<X>& params);

// (B, T, H * D) as (B, H, T, D): a view of it.
template <class X>
View<X, 4> split_heads(const View<X, 3>& x, std::int64_t heads) {
  const std::int64_t size = x.shape[2] / heads;
  return {.data = x.data,
          .shape = {x.shape[0], heads, x.shape[1], size},
          .stride = {x.stride[0], size * x.stride[2], x.stride[1], x.stride[2]}};
}

}  // namespace pyattn

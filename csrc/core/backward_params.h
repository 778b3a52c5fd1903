// What the kernels of the backward pass are told: plain aggregates, as in params.h.
#pragma once

#include "core/params.h"

namespace pyattn {

// Everything is laid out as in AttentionParams. With p = exp(s - lse) and
//   delta_i = sum_e grad_out_ie out_ie - grad_lse_i
// the gradient of the scores is ds = p (kept dp - delta), dp = grad_out value^T.
template <class X>
struct BackwardParams {
  using T = Compute<X>;

  AttentionParams<X> forward;  // its given_lse is the log-sum-exp, sinks included
  View<const X, 4> out;        // (B, H, T, E)
  View<const X, 4> grad_out;   // (B, H, T, E)
  View<const T, 3> grad_lse;   // (B, H, T), or null for 0

  // Each with unit last stride; null data where it is not wanted.
  View<X, 4> grad_query;   // (B, H, T, D)
  View<X, 4> grad_key;     // (B, G, S, D)
  View<X, 4> grad_value;   // (B, G, S, E)
  T* grad_v = nullptr;     // additive only: (H, A)
  View<X, 4> grad_mask;    // as the mask: an axis along which it was broadcast has length 1
  View<T, 3> column_mass;  // (B, H, S): the sum over the queries of p
};

// Blocks of so few queries, all that there are for their keys, need no sums of keys: the gradients
// of a key are made at once, and written where they belong.
inline constexpr std::int64_t kFewQueries = 2;

// Where a range of keys gathers its gradients: one row per key from `first` on.
template <class T>
struct KeySums {
  T* key = nullptr;  // null where it is not wanted, as is `value`
  T* value = nullptr;
  std::int64_t first = 0;
  std::int64_t end = 0;
  // Additive only: the sum of ds (1 - tanh) / 2 of each term, behind them that of ds; null where
  // it is not wanted.
  T* v = nullptr;
};

// Rows of KeySums are padded to whole registers of every instruction set.
inline constexpr std::int64_t kSumAlign = 16;

// Where scores or weights of several blocks are added up: [panel][key][lane] for `keys` keys from
// `first` on, or for one that stands for all of them.
template <class T>
struct ScoreSums {
  T* sums = nullptr;
  std::int64_t first = 0;
  std::int64_t end = 0;
  std::int64_t keys = 0;
  bool weights = false;  // p, else ds
};

// The part of an output to which ScoreSums go: rows [first_row, first_row + rows) of entry (b, h),
// or one row for the sum over all lanes.
struct ScoreTarget {
  std::int64_t batch = 0;
  std::int64_t head = 0;
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
  bool one_row = false;
};

}  // namespace pyattn

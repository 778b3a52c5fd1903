// What the kernels of attention within a window around a real centre are told: plain aggregates, as
// in params.h.
#pragma once

#include "core/params.h"

namespace pyattn {

// The keys of one row: begin .. end - 1, of them those that are valid. Those within the half width
// of the centre would be `first` and the next 2 * half_width at most.
struct LocalWindow {
  std::int64_t first = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  bool finite = true;  // whether the centre is; else the window is empty
};

// Rows of a task whose scores, weights and outputs are made in turns.
inline constexpr int kLocalAbreast = 4;
// Keys that the rows of a task copy, at most.
inline constexpr std::int64_t kLocalCopies = 64;

template <class X>
struct LocalParams {
  using T = Compute<X>;

  View<const X, 3> query;                    // (B, T, D)
  View<const X, 3> key;                      // (B, S, D)
  View<const X, 3> value;                    // (B, S, E)
  View<const T, 2> centre;                   // (B, T)
  std::int64_t keys = 0;                     // S, less what a short mask leaves out
  Mask mask;                                 // to (B, T, S): without a stride for heads
  const std::int64_t* kv_lengths = nullptr;  // (B,), 0..keys, or null
  const LocalWindow* windows = nullptr;      // (B, T), contiguous
  std::int64_t half_width = 1;
  bool renormalize = false;
  const T* v = nullptr;  // (A,): additive scores v . tanh(query + key), else query . key

  // Outputs, each with unit last stride; null data where it is not wanted.
  View<X, 3> out;             // (B, T, E)
  View<T, 2> lse;             // (B, T)
  View<X, 3> weights;         // (B, T, S)
  View<X, 3> window_weights;  // (B, T, 2 half_width + 1)
};

template <class X>
struct LocalGradientParams {
  using T = Compute<X>;

  LocalParams<X> forward;                // without outputs
  View<const X, 3> grad_out;             // (B, T, E)
  View<const T, 2> grad_lse;             // (B, T), or null for 0, as the others
  View<const X, 3> grad_weights;         // (B, T, S)
  View<const X, 3> grad_window_weights;  // (B, T, 2 half_width + 1)

  // Each with unit last stride; null data where it is not wanted.
  View<X, 3> grad_query;   // (B, T, D)
  View<X, 3> grad_key;     // (B, S, D)
  View<X, 3> grad_value;   // (B, S, E)
  View<T, 2> grad_centre;  // (B, T)
  T* grad_v = nullptr;     // (A,)
};

// Where some rows gather what they give to the keys from `first` to `end` - 1, a row of D and one
// of E numbers each, and to v.
template <class T>
struct LocalSums {
  T* key = nullptr;  // null where it is not wanted, as are the others
  T* value = nullptr;
  T* v = nullptr;
  std::int64_t first = 0;
  std::int64_t end = 0;
};

}  // namespace pyattn

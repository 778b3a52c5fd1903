// What the kernel of predicted positions is told: plain aggregates, as in params.h.
#pragma once

#include "core/params.h"

namespace pyattn {

// p_t = S sigmoid(v . tanh(W h_t)).
template <class T>
struct PositionParams {
  View<const T, 3> state;                    // (B, T, H), unit stride along a row
  View<const T, 2> weight;                   // (P, H), one stride is 1
  const T* v = nullptr;                      // (P,)
  std::int64_t keys = 0;                     // S
  const std::int64_t* kv_lengths = nullptr;  // (B,), instead of S, or null
  View<T, 2> centre;                         // (B, T), unit last stride
  T* packed = nullptr;                       // as in ProductParams
};

// One task: rows of an entry.
struct PositionPart {
  std::int64_t batch = 0;
  std::int64_t first_row = 0;
  std::int64_t end_row = 0;
};

// Rows of a task at most, whose hidden numbers stay in the cache.
inline constexpr std::int64_t kPositionRows = 48;

}  // namespace pyattn

// What the kernels of recurrent layers are told: plain aggregates, as in params.h.
#pragma once

#include <cstdint>

namespace pyattn {

// Units of a layer that share a block of the packed weights, at most.
inline constexpr std::int64_t kUnitGroup = 64;

// One direction of one layer; G is 3 for GRU (r, z, n) and 4 for LSTM (i, f, g, o). Every array is
// dense. Step t of entry b is taken if t < lengths[b]; of the others nothing is read or written.
template <class T>
struct RecurrentParams {
  std::int64_t batch = 0;                 // B
  std::int64_t length = 0;                // T
  std::int64_t size = 0;                  // H
  const std::int64_t* lengths = nullptr;  // (B,), 0..T, or null: all T
  bool reverse = false;                   // from the last step of each entry to its first
  bool reset_after = true;                // GRU: r (U h + bias), else U (r h)
  bool keep = false;                      // forward: leave what the gradient needs
  T* packed = nullptr;                    // G * H * (H rounded up to kUnitGroup); null: a single
                                          // step forward, with reset_after

  const T* weight = nullptr;  // (G * H, H)
  const T* bias = nullptr;    // (H,): that inside r (U h + bias), or null
  const T* h0 = nullptr;      // (B, H)
  const T* c0 = nullptr;      // (B, H), LSTM
  T* output = nullptr;        // (B, T, H)
  T* gates = nullptr;         // (B, T, G * H): W x + bias; the gates, if they are kept
  T* inner = nullptr;         // GRU: U h + bias or r h, (B, T, H), or (B, H) if it is not kept
  T* cell = nullptr;          // LSTM (B, H): c0 at the beginning, then the last c
  T* cells = nullptr;         // LSTM (B, T, H): c after each step, if it is kept

  // The gradient. It reads what the forward pass kept.
  const T* grad_output = nullptr;  // (B, T, H)
  T* grad_state = nullptr;         // (B, H): of the last h at the beginning, then of h0
  T* grad_cell = nullptr;          // (B, H): the same for c
  // (B, T, 4 H), of the sums inside the gates: i, f, g, o; or r, z, U h (with reset_after), n.
  T* grad_gates = nullptr;
};

// One task: a share of the units, number `chunk` of `chunks`. Stage 0 packs the weights.
struct RecurrentStage {
  std::int64_t index = 0;
  std::int64_t chunk = 0;
  std::int64_t chunks = 1;
};

}  // namespace pyattn

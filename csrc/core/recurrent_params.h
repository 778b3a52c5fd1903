// What the kernels of recurrent layers are told: plain aggregates, as in params.h.
#pragma once

#include <cstdint>

namespace pyattn {

// Units of a layer that share a block of the packed weights, at most.
inline constexpr std::int64_t kUnitGroup = 64;

// Units whose gates lie together.
inline constexpr std::int64_t kGateUnits = 16;

// One direction of one layer; G is 3 for GRU (r, z, n) and 4 for LSTM (i, f, g, o). Every array is
// dense. Step t of entry b is taken if t < lengths[b]; of the others nothing is read or written.
template <class T>
struct RecurrentParams {
  std::int64_t batch = 0;                 // B
  std::int64_t length = 0;                // T
  std::int64_t inputs = 0;                // I
  std::int64_t size = 0;                  // H
  const std::int64_t* lengths = nullptr;  // (B,), 0..T, or null: all T
  bool reverse = false;                   // from the last step of each entry to its first
  bool reset_after = true;                // GRU: r (U h + b), else U (r h)
  bool keep = false;                      // forward: leave what the gradient needs
  std::int64_t block = 1;                 // steps whose products with the input are made together
  T* packed = nullptr;                    // G * H * (H rounded up to kUnitGroup); null: a single
                                          // step forward, with reset_after
  T* packed_input = nullptr;              // the same with I for the first H, also null then

  const T* x = nullptr;             // (B, T, I)
  const T* weight_input = nullptr;  // (G * H, I): W
  const T* weight = nullptr;        // (G * H, H): U
  const T* bias_input = nullptr;    // (G * H,) or null
  const T* bias_hidden =
      nullptr;            // the same; GRU with reset_after: that of n is inside r (U h + b)
  const T* h0 = nullptr;  // (B, H)
  const T* c0 = nullptr;  // (B, H), LSTM
  T* output = nullptr;    // (B, T, H)
  // W x + b, then the gates if they are kept: (H / kGateUnits rounded up, T, B, G * kGateUnits),
  // or with `block` steps instead of T. Those of a step lie together, in the order in which they
  // are used: with (B, T, G * H) each of them was on a page of its own, and a step of 32 entries
  // and 512 units took an eighth longer.
  T* gates = nullptr;
  T* inner = nullptr;  // GRU: U h + b or r h, (B, T, H), or (B, H) if it is not kept
  T* cell = nullptr;   // LSTM (B, H): c0 at the beginning, then the last c
  T* cells = nullptr;  // LSTM (B, T, H): c after each step, if it is kept

  // The gradient. It reads what the forward pass kept.
  const T* grad_output = nullptr;  // (B, T, H)
  T* grad_state = nullptr;         // (B, H): of the last h at the beginning, then of h0
  T* grad_cell = nullptr;          // (B, H): the same for c
  // (B, T, 4 H), of the sums inside the gates: i, f, g, o; or r, z, U h (with reset_after), n.
  T* grad_gates = nullptr;
};

// One task: a share of the units, number `chunk` of `chunks`.
struct RecurrentStage {
  std::int64_t index = 0;
  std::int64_t chunk = 0;
  std::int64_t chunks = 1;
};

}  // namespace pyattn

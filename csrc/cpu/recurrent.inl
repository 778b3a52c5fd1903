// What the steps of GRU and LSTM have in common: for each step the product of the states with U,
// and the gates on its sums while they are in the cache. The products of the input with W are made
// for a block of steps at once, so that W is read once for all of them and the sums stay near.
//
// Units are in the lanes: a panel is kLanes units with all their gates, stored depth-major
// (panel[d][gate][lane]), so that a step reads the weights once, in order, and one broadcast of a
// state serves all gates of a unit. The gradient needs U transposed, and there a panel is four
// registers of adjacent units. Threads share the units of a step: of U, which is what a small batch
// waits for (3 MB for a GRU of 512 units), each reads its own part, from its own cache if that is
// large enough. Every number is one chain of multiply-adds, whoever computes it, and an entry has
// the same bits alone and in a batch.
// A step goes through the panels in the opposite order of the one before, so that it begins with
// those that are still in the cache.
// Stored: W and U once more, packed, and the sums of a block; for the gradient what is asked for.
#pragma once

#include "core/recurrent_params.h"
#include "cpu/panels.inl"

namespace pyattn {
namespace {

template <class T>
PYATTN_INLINE std::int64_t steps_of(const RecurrentParams<T>& p, std::int64_t b) {
  return p.lengths == nullptr ? p.length : p.lengths[b];
}

// Calls body(b) for the entries that take step t.
template <class T, class Body>
PYATTN_INLINE void for_each_entry(const RecurrentParams<T>& p, std::int64_t t, Body&& body) {
  for (std::int64_t b = 0; b < p.batch; ++b) {
    if (t < steps_of(p, b)) body(b);
  }
}

// The time of the i-th step forward, and of the i-th step back.
template <class T>
std::int64_t time_of(const RecurrentParams<T>& p, std::int64_t i) {
  return p.reverse ? p.length - 1 - i : i;
}
template <class T>
std::int64_t time_back(const RecurrentParams<T>& p, std::int64_t i) {
  return p.reverse ? i : p.length - 1 - i;
}

// The row before step t of entry b of `states` (B, T, H), which begin with `first` (B, H).
template <class T>
PYATTN_INLINE const T* row_before(const RecurrentParams<T>& p, const T* states, const T* first,
                                  std::int64_t b, std::int64_t t) {
  const bool begins = p.reverse ? t + 1 == steps_of(p, b) : t == 0;
  if (begins) return first + b * p.size;
  return states + (b * p.length + (p.reverse ? t + 1 : t - 1)) * p.size;
}

// Calls finish(i, sums) with the sums of a panel for each i that each(body) calls body with; row(i)
// is what the panel is multiplied with.
template <class V, int N, class Each, class Row, class Finish>
void multiply_each(const Each& each, const typename V::Scalar* panel, std::int64_t depth,
                   const Row& row, const Finish& finish) {
  using T = typename V::Scalar;
  constexpr int kMost = kPanelRows<V, N>;
  alignas(64) T sums[kMost * N * V::kLanes];
  const T* rows[kMost];
  std::int64_t items[kMost];
  std::int64_t left = 0;
  each([&](std::int64_t) { ++left; });
  int count = 0;
  each([&](std::int64_t item) {
    items[count] = item;
    rows[count++] = row(item);
    // Shares of about the same size: one that is nearly empty waits for its multiply-adds.
    const std::int64_t shares = (left + kMost - 1) / kMost;
    if (count < (left + shares - 1) / shares) return;
    dot_some<V, N>(panel, rows, count, depth, 1, sums);
    for (int i = 0; i < count; ++i) finish(items[i], sums + i * N * V::kLanes);
    left -= count;
    count = 0;
  });
}

// The same for the entries that take step t.
template <class V, int N, class Row, class Finish>
void multiply(const RecurrentParams<typename V::Scalar>& p, std::int64_t t,
              const typename V::Scalar* panel, std::int64_t depth, const Row& row,
              const Finish& finish) {
  const auto each = [&](auto&& body) { for_each_entry(p, t, body); };
  multiply_each<V, N>(each, panel, depth, row, finish);
}

// Panels first .. end - 1 are those of a chunk.
struct Panels {
  std::int64_t first;
  std::int64_t end;
};

template <class V>
Panels panels_of(const RecurrentStage& stage, std::int64_t size, int registers) {
  static_assert(kUnitGroup % (4 * V::kLanes) == 0);
  const std::int64_t units = registers * V::kLanes;
  const std::int64_t count = (size + units - 1) / units;
  return {count * stage.chunk / stage.chunks, count * (stage.chunk + 1) / stage.chunks};
}

// Calls body(panel) for the panels of a chunk, at every other step from the last one on.
template <class Body>
PYATTN_INLINE void for_each_panel(Panels panels, std::int64_t step, Body&& body) {
  for (std::int64_t i = panels.first; i < panels.end; ++i) {
    body(step % 2 == 0 ? i : panels.first + panels.end - 1 - i);
  }
}

// Packs columns of `depth` rows of U for the panels of a chunk.
template <class V>
void pack_transposed(const typename V::Scalar* weight, std::int64_t depth, std::int64_t size,
                     Panels panels, typename V::Scalar* packed) {
  constexpr int kUnits = 4 * V::kLanes;
  for (std::int64_t i = panels.first; i < panels.end; ++i) {
    pack_columns<V>(weight + i * kUnits, size, depth, size - i * kUnits,
                    packed + i * depth * kUnits);
  }
}

// Weights of all gates, one behind the other, and their panels: a register of units of each gate.
template <class T>
struct GateWeights {
  const T* rows;
  std::int64_t depth;
  T* packed;  // or null
};

template <class T>
GateWeights<T> input_weights(const RecurrentParams<T>& p) {
  return {p.weight_input, p.inputs, p.packed_input};
}
template <class T>
GateWeights<T> state_weights(const RecurrentParams<T>& p) {
  return {p.weight, p.size, p.packed};
}

// The rows of the first N gates that a panel holds.
template <class V, int N>
Unpacked<typename V::Scalar, N> gate_rows(const GateWeights<typename V::Scalar>& weights,
                                          std::int64_t size, std::int64_t panel) {
  const std::int64_t unit = panel * V::kLanes;
  Unpacked<typename V::Scalar, N> rows{.first = {}, .count = {}, .step = weights.depth};
  for (int n = 0; n < N; ++n) {
    rows.first[n] = weights.rows + (n * size + unit) * weights.depth;
    rows.count[n] = size - unit;
  }
  return rows;
}

template <class V, int N>
void pack_gates(const GateWeights<typename V::Scalar>& weights, std::int64_t size,
                std::int64_t panel) {
  if (weights.packed == nullptr) return;
  const auto rows = gate_rows<V, N>(weights, size, panel);
  for (int n = 0; n < N; ++n) {
    pack_rows<V, N>(rows.first[n], rows.step, weights.depth, rows.count[n],
                    weights.packed + (panel * weights.depth * N + n) * V::kLanes);
  }
}

// multiply_each() with a panel of N gates, which is not packed for a single step.
template <class V, int N, class Each, class Row, class Finish>
void multiply_gates(const GateWeights<typename V::Scalar>& weights, std::int64_t size,
                    std::int64_t panel, const Each& each, const Row& row, const Finish& finish) {
  const std::int64_t depth = weights.depth;
  if (weights.packed != nullptr) {
    multiply_each<V, N>(each, weights.packed + panel * depth * N * V::kLanes, depth, row, finish);
    return;
  }
  const auto rows = gate_rows<V, N>(weights, size, panel);
  alignas(64) typename V::Scalar sums[N * V::kLanes];
  each([&](std::int64_t item) {
    dot_unpacked<V, N>(rows, row(item), depth, sums);
    finish(item, sums);
  });
}

// Where the first of G gates of entry b at step t is, for the units from `unit` on. The next one is
// kGateUnits behind.
template <int G, class T>
PYATTN_INLINE T* gates_of(const RecurrentParams<T>& p, std::int64_t b, std::int64_t t,
                          std::int64_t unit) {
  const std::int64_t steps = p.keep ? p.length : p.block;
  const std::int64_t row = (unit / kGateUnits * steps + t % steps) * p.batch + b;
  return p.gates + row * G * kGateUnits + unit % kGateUnits;
}

// The bias of a register of units that is added to W x.
template <class V, int G>
V bias_of(const RecurrentParams<typename V::Scalar>& p, int gate, std::int64_t unit) {
  V bias = V::broadcast(typename V::Scalar(0));
  const std::int64_t at = gate * p.size + unit;
  if (p.bias_input != nullptr) bias = load_left<V>(p.bias_input + at, p.size - unit);
  const bool inside = G == 3 && gate == 2 && p.reset_after;
  if (p.bias_hidden == nullptr || inside) return bias;
  return bias + load_left<V>(p.bias_hidden + at, p.size - unit);
}

// W x + b for a panel of G gates, of the block of steps that begins with the i-th, if one does.
template <class V, int G>
void project(const RecurrentParams<typename V::Scalar>& p, std::int64_t i, std::int64_t panel) {
  using T = typename V::Scalar;
  static_assert(kGateUnits % V::kLanes == 0);
  if (i % p.block != 0) return;
  if (i == 0) pack_gates<V, G>(input_weights(p), p.size, panel);
  const std::int64_t unit = panel * V::kLanes;
  V bias[G];
  for (int n = 0; n < G; ++n) bias[n] = bias_of<V, G>(p, n, unit);
  const std::int64_t end = i + p.block < p.length ? i + p.block : p.length;
  const auto each = [&](auto&& body) {
    for (std::int64_t k = i; k < end; ++k) {
      const std::int64_t t = time_of(p, k);
      for_each_entry(p, t, [&](std::int64_t b) { body(b * p.length + t); });
    }
  };
  multiply_gates<V, G>(
      input_weights(p), p.size, panel, each, [&](std::int64_t row) { return p.x + row * p.inputs; },
      [&](std::int64_t row, const T* sums) {
        T* gates = gates_of<G>(p, row / p.length, row % p.length, unit);
        for (int n = 0; n < G; ++n) {
          (V::load(sums + n * V::kLanes) + bias[n]).store(gates + n * kGateUnits);
        }
      });
}

// Calls body(unit, left, n) for the registers of panel i of four that hold units.
template <class V, class Body>
PYATTN_INLINE void for_each_unit(std::int64_t i, std::int64_t size, Body&& body) {
  for (int n = 0; n < 4; ++n) {
    const std::int64_t unit = (i * 4 + n) * V::kLanes;
    if (unit < size) body(unit, size - unit, n);
  }
}

// grad_state += U^T of the first `depth` gradients inside the gates at step t.
template <class V>
void add_state_gradient(const RecurrentParams<typename V::Scalar>& p, std::int64_t t,
                        std::int64_t panel, const typename V::Scalar* packed, std::int64_t depth) {
  using T = typename V::Scalar;
  multiply<V, 4>(
      p, t, packed + panel * depth * 4 * V::kLanes, depth,
      [&](std::int64_t b) { return p.grad_gates + (b * p.length + t) * 4 * p.size; },
      [&](std::int64_t b, const T* sums) {
        for_each_unit<V>(panel, p.size, [&](std::int64_t unit, std::int64_t left, int n) {
          T* place = p.grad_state + b * p.size + unit;
          store_left(load_left<V>(place, left) + V::load(sums + n * V::kLanes), place, left);
        });
      });
}

// 1 / (1 + e^-x), absolute error below 1e-7; NaN stays NaN.
template <class V>
PYATTN_INLINE V sigmoid(V x) {
  using T = typename V::Scalar;
  const T limit = sizeof(T) == 8 ? T(700) : T(87);
  const V one = V::broadcast(T(1));
  const V bounded = V::max(V::broadcast(-limit), x);
  return V::reciprocal(one + exp_fast(V::broadcast(T(0)) - bounded));
}

}  // namespace
}  // namespace pyattn

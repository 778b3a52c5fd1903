// What the steps of GRU and LSTM have in common. The product with the weights of the input, of all
// steps at once, is done before by the caller; here is the recurrence: for each step the product of
// the states with U, and the gates on its sums while they are in the cache.
//
// Units are in the lanes: a panel is kLanes units with all their gates, stored depth-major
// (panel[d][gate][lane]), so that a step reads the weights once, in order, and one broadcast of a
// state serves all gates of a unit. The gradient needs U transposed, and there a panel is four
// registers of adjacent units. Threads share the units of a step: of U, which is what a small batch
// waits for (3 MB for a GRU of 512 units), each reads its own part, from its own cache if that is
// large enough. Every number is one chain of multiply-adds, whoever computes it, and an entry has
// the same bits alone and in a batch.
// Stored: U once more, packed; for the gradient what is asked for.
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

// Calls finish(b, sums) with the sums of a panel for each entry that takes step t; row(b) is what
// the panel is multiplied with.
template <class V, int N, class Row, class Finish>
void multiply(const RecurrentParams<typename V::Scalar>& p, std::int64_t t,
              const typename V::Scalar* panel, std::int64_t depth, Row&& row, Finish&& finish) {
  using T = typename V::Scalar;
  constexpr int kMost = kPanelRows<V, N>;
  alignas(64) T sums[kMost * N * V::kLanes];
  const T* rows[kMost];
  std::int64_t entries[kMost];
  std::int64_t left = 0;
  for_each_entry(p, t, [&](std::int64_t) { ++left; });
  int count = 0;
  for_each_entry(p, t, [&](std::int64_t b) {
    entries[count] = b;
    rows[count++] = row(b);
    // Shares of about the same size: one that is nearly empty waits for its multiply-adds.
    const std::int64_t shares = (left + kMost - 1) / kMost;
    if (count < (left + shares - 1) / shares) return;
    dot_some<V, N>(panel, rows, count, depth, 1, sums);
    for (int i = 0; i < count; ++i) finish(entries[i], sums + i * N * V::kLanes);
    left -= count;
    count = 0;
  });
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

// Packs the rows of N gates of U for the panels of a chunk, a register of units of each.
template <class V, int N>
void pack_gates(const RecurrentParams<typename V::Scalar>& p, Panels panels) {
  const std::int64_t size = p.size;
  if (p.packed == nullptr) return;
  for (std::int64_t i = panels.first; i < panels.end; ++i) {
    const std::int64_t unit = i * V::kLanes;
    for (int n = 0; n < N; ++n) {
      pack_rows<V, N>(p.weight + (n * size + unit) * size, size, size, size - unit,
                      p.packed + (i * size * N + n) * V::kLanes);
    }
  }
}

// multiply() with a panel of N gates, which is not packed for a single step.
template <class V, int N, class Row, class Finish>
void multiply_gates(const RecurrentParams<typename V::Scalar>& p, std::int64_t t,
                    std::int64_t panel, Row&& row, Finish&& finish) {
  using T = typename V::Scalar;
  const std::int64_t size = p.size;
  if (p.packed != nullptr) {
    multiply<V, N>(p, t, p.packed + panel * size * N * V::kLanes, size, row, finish);
    return;
  }
  const std::int64_t unit = panel * V::kLanes;
  Unpacked<T, N> matrix{.step = size};
  for (int n = 0; n < N; ++n) {
    matrix.first[n] = p.weight + (n * size + unit) * size;
    matrix.count[n] = size - unit;
  }
  alignas(64) T sums[N * V::kLanes];
  for_each_entry(p, t, [&](std::int64_t b) {
    dot_unpacked<V, N>(matrix, row(b), size, sums);
    finish(b, sums);
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

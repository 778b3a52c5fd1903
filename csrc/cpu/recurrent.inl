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
#include "cpu/matrix.inl"

namespace pyattn {
namespace {

// Entries of the batch that go through a panel of N registers together.
template <class V, int N>
constexpr int kPanelRows = V::kVecs * V::kRows / N < 8 ? V::kVecs * V::kRows / N : 8;

// sums[row][register][lane] = sum_d panel[d][register][lane] * rows[row][d]
template <class V, int N, int R>
void dot_panel(const typename V::Scalar* panel, const typename V::Scalar* const* rows,
               std::int64_t depth, typename V::Scalar* sums) {
  using T = typename V::Scalar;
  V sum[R][N];
  const T* row[R];
  PYATTN_UNROLL
  for (int i = 0; i < R; ++i) {
    row[i] = rows[i];
    PYATTN_UNROLL
    for (int n = 0; n < N; ++n) sum[i][n] = V::broadcast(T(0));
  }
  for (std::int64_t d = 0; d < depth; ++d) {
    V weight[N];
    PYATTN_UNROLL
    for (int n = 0; n < N; ++n) weight[n] = V::load(panel + (d * N + n) * V::kLanes);
    PYATTN_UNROLL
    for (int i = 0; i < R; ++i) {
      const V x = V::broadcast(row[i][d]);
      PYATTN_UNROLL
      for (int n = 0; n < N; ++n) sum[i][n] = V::fma(weight[n], x, sum[i][n]);
    }
  }
  PYATTN_UNROLL
  for (int i = 0; i < R; ++i) {
    PYATTN_UNROLL
    for (int n = 0; n < N; ++n) sum[i][n].store(sums + (i * N + n) * V::kLanes);
  }
}

template <class V, int N, int R = kPanelRows<V, N>>
void dot_some(const typename V::Scalar* panel, const typename V::Scalar* const* rows, int count,
              std::int64_t depth, typename V::Scalar* sums) {
  if constexpr (R > 0) {
    if (count == R) {
      dot_panel<V, N, R>(panel, rows, depth, sums);
    } else {
      dot_some<V, N, R - 1>(panel, rows, count, depth, sums);
    }
  }
}

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
    dot_some<V, N>(panel, rows, count, depth, sums);
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

// Packs rows of U: register n of panel i holds the units from first_row(i, n) on, a row of
// `weight` each; `end_row(i, n)` is the end of the rows there are.
template <class V, int N, class First, class End>
void pack_rows(const typename V::Scalar* weight, std::int64_t depth, Panels panels,
               First&& first_row, End&& end_row, typename V::Scalar* packed) {
  using T = typename V::Scalar;
  for (std::int64_t i = panels.first; i < panels.end; ++i) {
    T* panel = packed + i * depth * N * V::kLanes;
    for (int n = 0; n < N; ++n) {
      const std::int64_t first = first_row(i, n);
      const std::int64_t left = end_row(i, n) - first;
      const T* rows[V::kLanes];
      for (int lane = 0; lane < V::kLanes; ++lane) {
        rows[lane] = weight + (lane < left ? first + lane : 0) * depth;
      }
      transpose_in<V>(rows, V::kLanes, depth, panel + n * V::kLanes, N * V::kLanes);
    }
  }
}

// Packs columns of rows 0 .. depth - 1 of `weight` (., size), four registers to a panel.
template <class V>
void pack_columns(const typename V::Scalar* weight, std::int64_t depth, std::int64_t size,
                  Panels panels, typename V::Scalar* packed) {
  constexpr int kUnits = 4 * V::kLanes;
  for (std::int64_t i = panels.first; i < panels.end; ++i) {
    for (std::int64_t d = 0; d < depth; ++d) {
      for (int n = 0; n < 4; ++n) {
        const std::int64_t unit = i * kUnits + n * V::kLanes;
        V columns = V::broadcast(typename V::Scalar(0));
        if (unit < size) columns = load_left<V>(weight + d * size + unit, size - unit);
        columns.store(packed + (i * depth + d) * kUnits + n * V::kLanes);
      }
    }
  }
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

// 1 / (1 + e^-x); NaN stays NaN.
template <class V>
PYATTN_INLINE V sigmoid(V x) {
  using T = typename V::Scalar;
  const T limit = sizeof(T) == 8 ? T(700) : T(87);
  const V one = V::broadcast(T(1));
  const V bounded = V::max(V::broadcast(-limit), x);
  return V::reciprocal(one + exp_accurate(V::broadcast(T(0)) - bounded));
}

}  // namespace
}  // namespace pyattn

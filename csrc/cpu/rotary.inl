// Rotary position embedding (Su et al. 2021, arXiv:2104.09864): pair (u, v) of a row becomes
//   (u cos - v sin, u sin + v cos).
// The cosines and sines of a few rows are laid out once, as the registers want them, and then serve
// every head. Interleaved pairs need no shuffle but one: with the table (-sin, sin, -sin, sin,
// ...),
//   y = x cos + swap_pairs(x) sin.
// A pair is loaded before it is stored, so a row may be rotated in place. X is the type of what
// lies in memory; the tables and the arithmetic are of Compute<X>, and each number is rounded once.
#pragma once

#include "core/params.h"
#include "cpu/half.inl"
#include "cpu/normalisation.inl"

namespace pyattn {
namespace {

constexpr std::int64_t kRotaryEntries = 2048;

// Aligned, so that a register that is loaded from it lies within one cache line.
template <class T>
struct RotaryTable {
  alignas(64) T cosine[kRotaryEntries];
  alignas(64) T sine[kRotaryEntries];
};

// Some pairs of some rows: what one table holds.
struct RotaryPart {
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
  std::int64_t first_pair = 0;
  std::int64_t pairs = 0;
};

// A row of the caches, and where its entries go.
template <class X>
struct RotaryRow {
  using T = Compute<X>;

  const X* cosine;
  const X* sine;
  std::int64_t pairs;
  T sign;
  T* to_cosine;
  T* to_sine;
};

template <class X>
PYATTN_INLINE Compute<X> number_of(X x) {
  if constexpr (std::is_same_v<X, Compute<X>>) {
    return x;
  } else {
    return widened(x);
  }
}

template <class X>
PYATTN_INLINE void fill_row(const RotaryRow<X>& row, bool interleaved, std::int64_t cosine_step,
                            std::int64_t sine_step) {
  using T = Compute<X>;
  if (!interleaved) {
    for (std::int64_t k = 0; k < row.pairs; ++k) {
      row.to_cosine[k] = number_of(row.cosine[k * cosine_step]);
    }
    for (std::int64_t k = 0; k < row.pairs; ++k) {
      row.to_sine[k] = row.sign * number_of(row.sine[k * sine_step]);
    }
    return;
  }
  for (std::int64_t k = 0; k < row.pairs; ++k) {
    const T cosine = number_of(row.cosine[k * cosine_step]);
    row.to_cosine[2 * k] = cosine;
    row.to_cosine[2 * k + 1] = cosine;
  }
  for (std::int64_t k = 0; k < row.pairs; ++k) {
    const T sine = row.sign * number_of(row.sine[k * sine_step]);
    row.to_sine[2 * k] = -sine;
    row.to_sine[2 * k + 1] = sine;
  }
}

template <class X>
void fill(const RotaryParams<X>& p, std::int64_t batch, const RotaryPart& part,
          RotaryTable<Compute<X>>& table) {
  using T = Compute<X>;
  const std::int64_t entries = part.pairs * (p.interleaved ? 2 : 1);
  const bool dense = p.cosine.stride[2] == 1 && p.sine.stride[2] == 1;
  for (std::int64_t r = 0; r < part.rows; ++r) {
    const std::int64_t t = part.first_row + r;
    const std::int64_t position =
        p.positions == nullptr ? t : p.positions[batch * p.input.shape[2] + t];
    const auto entry = [&](const View<const X, 3>& cache) {
      return cache.data + batch * cache.stride[0] + position * cache.stride[1] +
             part.first_pair * cache.stride[2];
    };
    const RotaryRow<X> row{.cosine = entry(p.cosine),
                           .sine = entry(p.sine),
                           .pairs = part.pairs,
                           .sign = p.inverse ? T(-1) : T(1),
                           .to_cosine = table.cosine + r * entries,
                           .to_sine = table.sine + r * entries};
    // With constant steps the compiler makes vector loops of it.
    if (dense) {
      fill_row(row, p.interleaved, 1, 1);
    } else {
      fill_row(row, p.interleaved, p.cosine.stride[2], p.sine.stride[2]);
    }
  }
}

template <class V, class X>
PYATTN_INLINE void turn_halves(const X* x, const Compute<X>* cosine, const Compute<X>* sine,
                               std::int64_t pairs, std::int64_t apart, X* y) {
  for_each_register<V>(pairs, [&](std::int64_t k, int count) {
    const V u = load_left<V>(x + k, count);
    const V v = load_left<V>(x + apart + k, count);
    const V c = load_left<V>(cosine + k, count);
    const V s = load_left<V>(sine + k, count);
    store_left(V::fnma(v, s, u * c), y + k, count);
    store_left(V::fma(u, s, v * c), y + apart + k, count);
  });
}

template <class V, class X>
PYATTN_INLINE void turn_interleaved(const X* x, const Compute<X>* cosine, const Compute<X>* sine,
                                    std::int64_t pairs, X* y) {
  for_each_register<V>(2 * pairs, [&](std::int64_t i, int count) {
    const V value = load_left<V>(x + i, count);
    const V turned = V::swap_pairs(value) * load_left<V>(sine + i, count);
    store_left(V::fma(value, load_left<V>(cosine + i, count), turned), y + i, count);
  });
}

template <class T>
void copy_strided(const T* from, std::int64_t step, std::int64_t count, T* to) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = from[i * step];
}

// One row of one head. What is not turned is copied along with the first part.
template <class V, class X>
PYATTN_INLINE void turn_row(const RotaryParams<X>& p, const RotaryPart& part,
                            std::int64_t all_pairs, const X* x, const Compute<X>* cosine,
                            const Compute<X>* sine, X* y) {
  const std::int64_t step = p.input.stride[3];
  if (part.first_pair == 0) {
    const std::int64_t kept = step == 1 ? 2 * all_pairs : 0;
    copy_strided(x + kept * step, step, p.input.shape[3] - kept, y + kept);
  }
  if (step != 1) x = y;
  if (p.interleaved) {
    turn_interleaved<V, X>(x + 2 * part.first_pair, cosine, sine, part.pairs,
                           y + 2 * part.first_pair);
  } else {
    turn_halves<V, X>(x + part.first_pair, cosine, sine, part.pairs, all_pairs,
                      y + part.first_pair);
  }
}

template <class V, class X>
void turn_part(const RotaryParams<X>& p, std::int64_t batch, const RotaryPart& part,
               RotaryTable<Compute<X>>& table) {
  fill(p, batch, part, table);
  const std::int64_t entries = part.pairs * (p.interleaved ? 2 : 1);
  const std::int64_t size = p.input.shape[3];
  const bool flat = p.interleaved && entries == size && p.input.stride[3] == 1 &&
                    p.input.stride[2] == size && p.output.stride[2] == size;
  for (std::int64_t head = 0; head < p.input.shape[1]; ++head) {
    const auto* x = p.input.data + batch * p.input.stride[0] + head * p.input.stride[1];
    auto* y = p.output.data + batch * p.output.stride[0] + head * p.output.stride[1];
    if (flat) {
      // The rows lie one behind the other, here and in the table: they are one long row.
      const std::int64_t first = part.first_row * size;
      turn_interleaved<V, X>(x + first, table.cosine, table.sine, part.rows * part.pairs,
                             y + first);
      continue;
    }
    for (std::int64_t row = 0; row < part.rows; ++row) {
      const std::int64_t t = part.first_row + row;
      turn_row<V, X>(p, part, p.cosine.shape[2], x + t * p.input.stride[2],
                     table.cosine + row * entries, table.sine + row * entries,
                     y + t * p.output.stride[2]);
    }
  }
}

template <class V, class X>
void rotary(const RotaryParams<X>& p, const RotaryBlock& block) noexcept {
  RotaryTable<Compute<X>> table;
  const std::int64_t pairs = p.cosine.shape[2];
  const std::int64_t most = p.interleaved ? kRotaryEntries / 2 : kRotaryEntries;
  const std::int64_t rows_at_once = pairs == 0 ? block.rows : most < pairs ? 1 : most / pairs;
  const std::int64_t end = block.first_row + block.rows;
  for (std::int64_t row = block.first_row; row < end; row += rows_at_once) {
    RotaryPart part{.first_row = row, .rows = end - row < rows_at_once ? end - row : rows_at_once};
    // A row without pairs is one part too: it is copied.
    do {
      part.pairs = pairs - part.first_pair < most ? pairs - part.first_pair : most;
      turn_part<V, X>(p, block.batch, part, table);
      part.first_pair += part.pairs;
    } while (part.first_pair < pairs);
  }
}

}  // namespace
}  // namespace pyattn

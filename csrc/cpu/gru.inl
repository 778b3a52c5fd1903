// Gated recurrent units (Cho et al. 2014, arXiv:1406.1078):
//   r = sigmoid(W_r x + U_r h), z = sigmoid(W_z x + U_z h), h' = (1 - z) n + z h,
//   n = tanh(W_n x + r (U_n h + b)), or with the reset before the product tanh(W_n x + U_n (r h)).
// With the reset before, a step is two stages: r of all units is needed for n of any.
//
// The gradient, from the last step to the first, g being that of h':
//   dn = g (1 - z) (1 - n^2), dz = g (h - n) z (1 - z), dr = dn (U_n h + b) r (1 - r),
//   g <- g z + U_r^T dr + U_z^T dz + U_n^T (dn r);
// with the reset before, q = U_n^T dn, dr = q h r (1 - r), g <- g z + q r + U_r^T dr + U_z^T dz.
// A stage begins with the product of the step before it, for which all of its dr, dz are needed.
#pragma once

#include "cpu/recurrent.inl"

namespace pyattn {
namespace {

template <class V>
class GruStep {
 public:
  using T = typename V::Scalar;
  static constexpr int L = V::kLanes;

  GruStep(const RecurrentParams<T>& p, std::int64_t t) : p_(p), t_(t), size_(p.size) {}

  // Reset after the product.
  void whole(std::int64_t panel) const {
    const std::int64_t unit = panel * L;
    const std::int64_t left = size_ - unit;
    const V bias = p_.bias == nullptr ? V::broadcast(T(0)) : load_left<V>(p_.bias + unit, left);
    multiply_gates<V, 3>(p_, t_, panel, rows_before(), [&](std::int64_t b, const T* sums) {
      T* gates = gates_of(b) + unit;
      const V r = sigmoid(load_left<V>(gates, left) + V::load(sums));
      const V z = sigmoid(load_left<V>(gates + size_, left) + V::load(sums + L));
      const V inner = V::load(sums + 2 * L) + bias;
      const V n = tanh_accurate(V::fma(r, inner, load_left<V>(gates + 2 * size_, left)));
      store_state(b, unit, left, z, n);
      if (!p_.keep) return;
      store_left(r, gates, left);
      store_left(z, gates + size_, left);
      store_left(n, gates + 2 * size_, left);
      store_left(inner, inner_of(b) + unit, left);
    });
  }

  // Reset before the product: r, z and r h.
  void reset(std::int64_t panel) const {
    const std::int64_t unit = panel * L;
    const std::int64_t left = size_ - unit;
    multiply<V, 2>(p_, t_, p_.packed + panel * size_ * 2 * L, size_, rows_before(),
                   [&](std::int64_t b, const T* sums) {
                     T* gates = gates_of(b) + unit;
                     const V r = sigmoid(load_left<V>(gates, left) + V::load(sums));
                     const V z = sigmoid(load_left<V>(gates + size_, left) + V::load(sums + L));
                     const V h = load_left<V>(before(b) + unit, left);
                     store_left(z, gates + size_, left);
                     store_left(r * h, inner_of(b) + unit, left);
                     if (p_.keep) store_left(r, gates, left);
                   });
  }

  // Then n and the new state.
  void renew(std::int64_t panel, const T* packed) const {
    multiply<V, 4>(
        p_, t_, packed + panel * size_ * 4 * L, size_, [&](std::int64_t b) { return inner_of(b); },
        [&](std::int64_t b, const T* sums) {
          for_each_unit<V>(panel, size_, [&](std::int64_t unit, std::int64_t left, int i) {
            T* gates = gates_of(b) + unit;
            const V n =
                tanh_accurate(load_left<V>(gates + 2 * size_, left) + V::load(sums + i * L));
            store_state(b, unit, left, load_left<V>(gates + size_, left), n);
            if (p_.keep) store_left(n, gates + 2 * size_, left);
          });
        });
  }

  // The gradients that need no product; grad_state is left with what goes around U.
  void back(std::int64_t panel) const {
    const V one = V::broadcast(T(1));
    for_each_entry(p_, t_, [&](std::int64_t b) {
      for_each_unit<V>(panel, size_, [&](std::int64_t unit, std::int64_t left, int) {
        const T* gates = gates_of(b) + unit;
        const V z = load_left<V>(gates + size_, left);
        const V n = load_left<V>(gates + 2 * size_, left);
        const V h = load_left<V>(before(b) + unit, left);
        T* state = p_.grad_state + b * size_ + unit;
        const V g = load_left<V>(state, left) +
                    load_left<V>(p_.grad_output + (b * p_.length + t_) * size_ + unit, left);
        const V of_new = g * (one - z) * V::fnma(n, n, one);
        T* sums = grad_gates_of(b) + unit;
        store_left(g * (h - n) * z * (one - z), sums + size_, left);
        store_left(of_new, sums + 3 * size_, left);
        store_left(g * z, state, left);
        if (!p_.reset_after) return;
        const V r = load_left<V>(gates, left);
        const V inner = load_left<V>(inner_of(b) + unit, left);
        store_left(of_new * inner * r * (one - r), sums, left);
        store_left(of_new * r, sums + 2 * size_, left);
      });
    });
  }

  // Reset before the product: through U_n and r.
  void back_through_reset(std::int64_t panel, const T* packed) const {
    const V one = V::broadcast(T(1));
    multiply<V, 4>(
        p_, t_, packed + panel * size_ * 4 * L, size_,
        [&](std::int64_t b) { return grad_gates_of(b) + 3 * size_; },
        [&](std::int64_t b, const T* sums) {
          for_each_unit<V>(panel, size_, [&](std::int64_t unit, std::int64_t left, int i) {
            const V product = V::load(sums + i * L);
            const V r = load_left<V>(gates_of(b) + unit, left);
            const V h = load_left<V>(before(b) + unit, left);
            T* state = p_.grad_state + b * size_ + unit;
            store_left(product * h * r * (one - r), grad_gates_of(b) + unit, left);
            store_left(V::fma(product, r, load_left<V>(state, left)), state, left);
          });
        });
  }

 private:
  const T* before(std::int64_t b) const { return row_before<T>(p_, p_.output, p_.h0, b, t_); }
  auto rows_before() const {
    return [this](std::int64_t b) { return before(b); };
  }
  T* gates_of(std::int64_t b) const { return p_.gates + (b * p_.length + t_) * 3 * size_; }
  T* grad_gates_of(std::int64_t b) const {
    return p_.grad_gates + (b * p_.length + t_) * 4 * size_;
  }
  T* inner_of(std::int64_t b) const {
    return p_.inner + (p_.keep ? b * p_.length + t_ : b) * size_;
  }

  void store_state(std::int64_t b, std::int64_t unit, std::int64_t left, V z, V n) const {
    const V h = load_left<V>(before(b) + unit, left);
    store_left(V::fma(z, h - n, n), p_.output + (b * p_.length + t_) * size_ + unit, left);
  }

  const RecurrentParams<T>& p_;
  std::int64_t t_;
  std::int64_t size_;
};

// Where the packed U_n lies behind U_r and U_z.
template <class T>
T* packed_new(const RecurrentParams<T>& p) {
  const std::int64_t units = (p.size + kUnitGroup - 1) / kUnitGroup * kUnitGroup;
  return p.packed + 2 * p.size * units;
}

template <class V>
void pack_gru(const RecurrentParams<typename V::Scalar>& p, const RecurrentStage& stage) {
  const std::int64_t size = p.size;
  if (p.reset_after) {
    pack_gates<V, 3>(p, panels_of<V>(stage, size, 1));
    return;
  }
  pack_gates<V, 2>(p, panels_of<V>(stage, size, 1));
  const Panels panels = panels_of<V>(stage, size, 4);
  for (std::int64_t unit = panels.first * 4; unit < panels.end * 4; ++unit) {
    const std::int64_t first = unit * V::kLanes;
    pack_rows<V, 4>(p.weight + (2 * size + first) * size, size, size, size - first,
                    packed_new(p) + (unit / 4 * size * 4 + unit % 4) * V::kLanes);
  }
}

template <class V>
void gru(const RecurrentParams<typename V::Scalar>& p, const RecurrentStage& stage) noexcept {
  if (stage.index == 0) {
    pack_gru<V>(p, stage);
    return;
  }
  const std::int64_t i = stage.index - 1;
  const GruStep<V> step(p, time_of(p, p.reset_after ? i : i / 2));
  if (!p.reset_after && i % 2 == 1) {
    const Panels panels = panels_of<V>(stage, p.size, 4);
    for (std::int64_t panel = panels.first; panel < panels.end; ++panel) {
      step.renew(panel, packed_new(p));
    }
    return;
  }
  const Panels panels = panels_of<V>(stage, p.size, 1);
  for (std::int64_t panel = panels.first; panel < panels.end; ++panel) {
    if (p.reset_after) {
      step.whole(panel);
    } else {
      step.reset(panel);
    }
  }
}

template <class V>
void gru_gradient(const RecurrentParams<typename V::Scalar>& p,
                  const RecurrentStage& stage) noexcept {
  const std::int64_t depth = (p.reset_after ? 3 : 2) * p.size;
  const Panels panels = panels_of<V>(stage, p.size, 4);
  if (stage.index == 0) {
    pack_transposed<V>(p.weight, depth, p.size, panels, p.packed);
    if (!p.reset_after) {
      pack_transposed<V>(p.weight + depth * p.size, p.size, p.size, panels, packed_new(p));
    }
  }
  const bool between = !p.reset_after && stage.index % 2 == 1;
  const std::int64_t i = p.reset_after ? stage.index : stage.index / 2;
  for (std::int64_t panel = panels.first; panel < panels.end; ++panel) {
    if (between) {
      GruStep<V>(p, time_back(p, i)).back_through_reset(panel, packed_new(p));
      continue;
    }
    if (i > 0) add_state_gradient<V>(p, time_back(p, i - 1), panel, p.packed, depth);
    if (i < p.length) GruStep<V>(p, time_back(p, i)).back(panel);
  }
}

}  // namespace
}  // namespace pyattn

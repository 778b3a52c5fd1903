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
  static constexpr std::int64_t kUpdate = kGateUnits;  // where z and n lie behind r
  static constexpr std::int64_t kNew = 2 * kGateUnits;

  GruStep(const RecurrentParams<T>& p, std::int64_t t) : p_(p), t_(t), size_(p.size) {}

  // Reset after the product.
  void whole(std::int64_t panel) const {
    const std::int64_t unit = panel * L;
    const std::int64_t left = size_ - unit;
    const V bias = p_.bias_hidden == nullptr
                       ? V::broadcast(T(0))
                       : load_left<V>(p_.bias_hidden + 2 * size_ + unit, left);
    const auto each = [&](auto&& body) { for_each_entry(p_, t_, body); };
    const auto finish = [&](std::int64_t b, const T* sums) {
      T* gates = gates_at(b, unit);
      const V r = sigmoid(V::load(gates) + V::load(sums));
      const V z = sigmoid(V::load(gates + kUpdate) + V::load(sums + L));
      const V inner = V::load(sums + 2 * L) + bias;
      const V n = tanh_accurate(V::fma(r, inner, V::load(gates + kNew)));
      store_state(b, unit, left, z, n);
      if (!p_.keep) return;
      r.store(gates);
      z.store(gates + kUpdate);
      n.store(gates + kNew);
      store_left(inner, inner_of(b) + unit, left);
    };
    multiply_gates<V, 3>(state_weights(p_), size_, panel, each, rows_before(), finish);
  }

  // Reset before the product: r, z and r h.
  void reset(std::int64_t panel) const {
    const std::int64_t unit = panel * L;
    const std::int64_t left = size_ - unit;
    multiply<V, 2>(p_, t_, p_.packed + panel * size_ * 2 * L, size_, rows_before(),
                   [&](std::int64_t b, const T* sums) {
                     T* gates = gates_at(b, unit);
                     const V r = sigmoid(V::load(gates) + V::load(sums));
                     const V z = sigmoid(V::load(gates + kUpdate) + V::load(sums + L));
                     const V h = load_left<V>(before(b) + unit, left);
                     z.store(gates + kUpdate);
                     store_left(r * h, inner_of(b) + unit, left);
                     if (p_.keep) r.store(gates);
                   });
  }

  // Then n and the new state.
  void renew(std::int64_t panel, const T* packed) const {
    multiply<V, 4>(
        p_, t_, packed + panel * size_ * 4 * L, size_, [&](std::int64_t b) { return inner_of(b); },
        [&](std::int64_t b, const T* sums) {
          for_each_unit<V>(panel, size_, [&](std::int64_t unit, std::int64_t left, int i) {
            T* gates = gates_at(b, unit);
            const V n = tanh_accurate(V::load(gates + kNew) + V::load(sums + i * L));
            store_state(b, unit, left, V::load(gates + kUpdate), n);
            if (p_.keep) n.store(gates + kNew);
          });
        });
  }

  // The gradients that need no product; grad_state is left with what goes around U.
  void back(std::int64_t panel) const {
    const V one = V::broadcast(T(1));
    for_each_entry(p_, t_, [&](std::int64_t b) {
      for_each_unit<V>(panel, size_, [&](std::int64_t unit, std::int64_t left, int) {
        const T* gates = gates_at(b, unit);
        const V z = V::load(gates + kUpdate);
        const V n = V::load(gates + kNew);
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
        const V r = V::load(gates);
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
            const V r = V::load(gates_at(b, unit));
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
  T* gates_at(std::int64_t b, std::int64_t unit) const { return gates_of<3>(p_, b, t_, unit); }
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

// A panel of four registers of units, as `renew` takes it.
template <class V>
void pack_new(const RecurrentParams<typename V::Scalar>& p, std::int64_t panel) {
  const std::int64_t size = p.size;
  for (int n = 0; n < 4; ++n) {
    const std::int64_t unit = (panel * 4 + n) * V::kLanes;
    pack_rows<V, 4>(p.weight + (2 * size + unit) * size, size, size, size - unit,
                    packed_new(p) + (panel * size * 4 + n) * V::kLanes);
  }
}

template <class V>
void gru(const RecurrentParams<typename V::Scalar>& p, const RecurrentStage& stage) noexcept {
  const std::int64_t i = p.reset_after ? stage.index : stage.index / 2;
  const GruStep<V> step(p, time_of(p, i));
  if (!p.reset_after && stage.index % 2 == 1) {
    for_each_panel(panels_of<V>(stage, p.size, 4), i, [&](std::int64_t panel) {
      if (i == 0) pack_new<V>(p, panel);
      step.renew(panel, packed_new(p));
    });
    return;
  }
  for_each_panel(panels_of<V>(stage, p.size, 1), i, [&](std::int64_t panel) {
    project<V, 3>(p, i, panel);
    if (p.reset_after) {
      if (i == 0) pack_gates<V, 3>(state_weights(p), p.size, panel);
      step.whole(panel);
    } else {
      if (i == 0) pack_gates<V, 2>(state_weights(p), p.size, panel);
      step.reset(panel);
    }
  });
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
  for_each_panel(panels, i, [&](std::int64_t panel) {
    if (between) {
      GruStep<V>(p, time_back(p, i)).back_through_reset(panel, packed_new(p));
      return;
    }
    if (i > 0) add_state_gradient<V>(p, time_back(p, i - 1), panel, p.packed, depth);
    if (i < p.length) GruStep<V>(p, time_back(p, i)).back(panel);
  });
}

}  // namespace
}  // namespace pyattn

// Long short-term memory (Hochreiter and Schmidhuber 1997; Gers et al. 2000), without peepholes:
//   i, f, o = sigmoid(W x + U h + b), g = tanh(W x + U h + b), c' = f c + i g, h' = o tanh(c').
// The gradient, from the last step to the first, dh and dc being those of h' and c':
//   e = dc + dh o (1 - tanh(c')^2), di = e g i (1 - i), df = e c f (1 - f), dg = e i (1 - g^2),
//   do = dh tanh(c') o (1 - o), dc <- e f, dh <- U^T (di, df, dg, do).
// A stage begins with the product of the step before it, for which all of its di .. do are needed.
#pragma once

#include "cpu/recurrent.inl"

namespace pyattn {
namespace {

template <class V>
void lstm_step(const RecurrentParams<typename V::Scalar>& p, std::int64_t t, std::int64_t panel) {
  using T = typename V::Scalar;
  constexpr int L = V::kLanes;
  const std::int64_t size = p.size;
  const std::int64_t unit = panel * L;
  const std::int64_t left = size - unit;
  multiply_gates<V, 4>(
      state_weights(p), size, panel, [&](auto&& body) { for_each_entry(p, t, body); },
      [&](std::int64_t b) { return row_before<T>(p, p.output, p.h0, b, t); },
      [&](std::int64_t b, const T* sums) {
        const std::int64_t row = b * p.length + t;
        T* gates = gates_of<4>(p, b, t, unit);
        const auto sum = [&](int gate) {
          return V::load(gates + gate * kGateUnits) + V::load(sums + gate * L);
        };
        const V in = sigmoid(sum(0));
        const V forget = sigmoid(sum(1));
        const V fresh = tanh_accurate(sum(2));
        const V out = sigmoid(sum(3));
        T* cell = p.cell + b * size + unit;
        const V c = V::fma(forget, load_left<V>(cell, left), in * fresh);
        store_left(c, cell, left);
        store_left(out * tanh_accurate(c), p.output + row * size + unit, left);
        if (!p.keep) return;
        in.store(gates);
        forget.store(gates + kGateUnits);
        fresh.store(gates + 2 * kGateUnits);
        out.store(gates + 3 * kGateUnits);
        store_left(c, p.cells + row * size + unit, left);
      });
}

template <class V>
void lstm(const RecurrentParams<typename V::Scalar>& p, const RecurrentStage& stage) noexcept {
  const std::int64_t i = stage.index;
  for_each_panel(panels_of<V>(stage, p.size, 1), i, [&](std::int64_t panel) {
    project<V, 4>(p, i, panel);
    if (i == 0) pack_gates<V, 4>(state_weights(p), p.size, panel);
    lstm_step<V>(p, time_of(p, i), panel);
  });
}

// The gradients of one step that need no product.
template <class V>
void lstm_back(const RecurrentParams<typename V::Scalar>& p, std::int64_t t, std::int64_t panel) {
  using T = typename V::Scalar;
  const std::int64_t size = p.size;
  const V one = V::broadcast(T(1));
  for_each_entry(p, t, [&](std::int64_t b) {
    for_each_unit<V>(panel, size, [&](std::int64_t unit, std::int64_t left, int) {
      const std::int64_t row = b * p.length + t;
      const T* gates = gates_of<4>(p, b, t, unit);
      const V in = V::load(gates);
      const V forget = V::load(gates + kGateUnits);
      const V fresh = V::load(gates + 2 * kGateUnits);
      const V out = V::load(gates + 3 * kGateUnits);
      const V before = load_left<V>(row_before<T>(p, p.cells, p.c0, b, t) + unit, left);
      const V squashed = tanh_accurate(load_left<V>(p.cells + row * size + unit, left));
      T* state = p.grad_state + b * size + unit;
      T* cell = p.grad_cell + b * size + unit;
      const V g = load_left<V>(state, left) + load_left<V>(p.grad_output + row * size + unit, left);
      const V e = V::fma(g * out, V::fnma(squashed, squashed, one), load_left<V>(cell, left));
      T* sums = p.grad_gates + row * 4 * size + unit;
      store_left(e * fresh * in * (one - in), sums, left);
      store_left(e * before * forget * (one - forget), sums + size, left);
      store_left(e * in * V::fnma(fresh, fresh, one), sums + 2 * size, left);
      store_left(g * squashed * out * (one - out), sums + 3 * size, left);
      store_left(e * forget, cell, left);
      store_left(V::broadcast(T(0)), state, left);
    });
  });
}

template <class V>
void lstm_gradient(const RecurrentParams<typename V::Scalar>& p,
                   const RecurrentStage& stage) noexcept {
  const std::int64_t depth = 4 * p.size;
  const std::int64_t i = stage.index;
  const Panels panels = panels_of<V>(stage, p.size, 4);
  if (i == 0) pack_transposed<V>(p.weight, depth, p.size, panels, p.packed);
  for_each_panel(panels, i, [&](std::int64_t panel) {
    if (i > 0) add_state_gradient<V>(p, time_back(p, i - 1), panel, p.packed, depth);
    if (i < p.length) lstm_back<V>(p, time_back(p, i), panel);
  });
}

}  // namespace
}  // namespace pyattn

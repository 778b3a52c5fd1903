// GRU and LSTM on every instruction set, against plain loops in double.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "core/recurrent.h"
#include "sample.h"

namespace pyattn {
namespace {

using testing::sample;

using Numbers = std::vector<double>;

template <class T>
std::vector<T> poisoned(std::int64_t count) {
  return std::vector<T>(static_cast<std::size_t>(count), std::numeric_limits<T>::quiet_NaN());
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// One layer. What the kernels write is poisoned before, and so are steps that are not taken.
template <class T>
struct Problem {
  std::int64_t batch;
  std::int64_t length;
  std::int64_t size;
  bool is_lstm;
  bool reverse = false;
  bool reset_after = true;
  std::vector<std::int64_t> lengths = {};
  std::int64_t inputs = 5;

  std::int64_t count() const { return is_lstm ? 4 : 3; }
  std::int64_t steps(std::int64_t b) const {
    return lengths.empty() ? length : lengths[static_cast<std::size_t>(b)];
  }

  std::vector<T> weight =
      sample<T>(count() * size * size, 1, 1 / std::sqrt(static_cast<double>(size)));
  std::vector<T> bias = sample<T>(count() * size, 2);
  std::vector<T> h0 = sample<T>(batch * size, 3);
  std::vector<T> c0 = sample<T>(batch * size, 4);
  std::vector<T> x = sample<T>(batch * length * inputs, 5);
  std::vector<T> weight_input =
      sample<T>(count() * size * inputs, 9, 1 / std::sqrt(static_cast<double>(inputs)));
  std::vector<T> bias_input = sample<T>(count() * size, 10);
  std::vector<T> gates =
      poisoned<T>((size + kGateUnits - 1) / kGateUnits * kGateUnits * length * batch * count());
  std::vector<T> output = poisoned<T>(batch * length * size);
  std::vector<T> inner = poisoned<T>(batch * length * size);
  std::vector<T> cell = c0;
  std::vector<T> cells = poisoned<T>(batch * length * size);
  std::vector<T> last = poisoned<T>(batch * size);
  std::vector<T> grad_output = sample<T>(batch * length * size, 6);
  std::vector<T> grad_state = sample<T>(batch * size, 7);
  std::vector<T> grad_cell = sample<T>(batch * size, 8);
  std::vector<T> grad_gates = poisoned<T>(batch * length * 4 * size);

  RecurrentParams<T> params() {
    return {.batch = batch,
            .length = length,
            .inputs = inputs,
            .size = size,
            .lengths = lengths.empty() ? nullptr : lengths.data(),
            .reverse = reverse,
            .reset_after = reset_after,
            .keep = true,
            .x = x.data(),
            .weight_input = weight_input.data(),
            .weight = weight.data(),
            .bias_input = bias_input.data(),
            .bias_hidden = bias.data(),
            .h0 = h0.data(),
            .c0 = c0.data(),
            .output = output.data(),
            .gates = gates.data(),
            .inner = inner.data(),
            .cell = cell.data(),
            .cells = cells.data(),
            .grad_output = grad_output.data(),
            .grad_state = grad_state.data(),
            .grad_cell = grad_cell.data(),
            .grad_gates = grad_gates.data()};
  }

  void poison_padding() {
    for (std::int64_t b = 0; b < batch; ++b) {
      for (std::int64_t i = steps(b) * inputs; i < length * inputs; ++i) {
        x[static_cast<std::size_t>(b * length * inputs + i)] = std::numeric_limits<T>::quiet_NaN();
      }
    }
  }

  void forward(bool keep = true) {
    poison_padding();
    const auto& kernel = kernels_of<T>(kernels());
    RecurrentParams<T> call = params();
    call.grad_gates = nullptr;
    call.keep = keep;
    if (!keep) call.gates = nullptr;
    run_recurrent<T>(call, is_lstm ? kernel.lstm : kernel.gru, count());
    finish_recurrent<T>(call, last.data());
  }

  void run() {
    forward();
    const auto& kernel = kernels_of<T>(kernels());
    run_recurrent<T>(params(), is_lstm ? kernel.lstm_gradient : kernel.gru_gradient, count());
  }

  // sum_k U[gate * H + j][k] state[k]
  double dot(std::int64_t gate, std::int64_t j, const Numbers& state) const {
    double sum = 0;
    for (std::int64_t k = 0; k < size; ++k) {
      sum += static_cast<double>(weight[static_cast<std::size_t>((gate * size + j) * size + k)]) *
             state[static_cast<std::size_t>(k)];
    }
    return sum;
  }

  double number(const std::vector<T>& from, std::int64_t at) const {
    return static_cast<double>(from[static_cast<std::size_t>(at)]);
  }

  // W x + both biases, but that of U h which r multiplies.
  double input(std::int64_t b, std::int64_t t, std::int64_t gate, std::int64_t j) const {
    const std::int64_t row = gate * size + j;
    double sum = number(bias_input, row);
    if (is_lstm || !reset_after || gate < 2) sum += number(bias, row);
    for (std::int64_t k = 0; k < inputs; ++k) {
      sum += number(weight_input, row * inputs + k) * number(x, (b * length + t) * inputs + k);
    }
    return sum;
  }

  // One step of entry b from h and c, which are replaced.
  void step(std::int64_t b, std::int64_t t, Numbers& h, Numbers& c) const {
    const auto units = static_cast<std::size_t>(size);
    Numbers r(units), reset(units), next(units);
    for (std::size_t j = 0; j < units; ++j) {
      const auto at = static_cast<std::int64_t>(j);
      r[j] = sigmoid(input(b, t, 0, at) + dot(0, at, h));
      reset[j] = r[j] * h[j];
    }
    for (std::size_t j = 0; j < units; ++j) {
      const auto at = static_cast<std::int64_t>(j);
      if (is_lstm) {
        const double forget = sigmoid(input(b, t, 1, at) + dot(1, at, h));
        const double fresh = std::tanh(input(b, t, 2, at) + dot(2, at, h));
        const double out = sigmoid(input(b, t, 3, at) + dot(3, at, h));
        c[j] = forget * c[j] + r[j] * fresh;
        next[j] = out * std::tanh(c[j]);
        continue;
      }
      const double z = sigmoid(input(b, t, 1, at) + dot(1, at, h));
      const double recurrent =
          reset_after ? r[j] * (dot(2, at, h) + number(bias, 2 * size + at)) : dot(2, at, reset);
      next[j] = (1 - z) * std::tanh(input(b, t, 2, at) + recurrent) + z * h[j];
    }
    h = next;
  }

  Numbers row(const std::vector<T>& states, std::int64_t b) const {
    const auto first = states.begin() + b * size;
    return {first, first + size};
  }

  double forward_error() const {
    double worst = 0;
    const auto see = [&](T found, double exact) {
      const double error = std::fabs(static_cast<double>(found) - exact);
      worst = error <= worst ? worst : error;  // a NaN counts
      if (std::isnan(error)) worst = 1e9;
    };
    for (std::int64_t b = 0; b < batch; ++b) {
      Numbers h = row(h0, b);
      Numbers c = row(c0, b);
      for (std::int64_t i = 0; i < length; ++i) {
        const std::int64_t t = i < steps(b) ? (reverse ? steps(b) - 1 - i : i) : i;
        if (i < steps(b)) step(b, t, h, c);
        for (std::int64_t j = 0; j < size; ++j) {
          see(output[static_cast<std::size_t>((b * length + t) * size + j)],
              i < steps(b) ? h[static_cast<std::size_t>(j)] : 0.0);
        }
      }
      for (std::int64_t j = 0; j < size; ++j) {
        const auto at = static_cast<std::size_t>(b * size + j);
        see(last[at], h[static_cast<std::size_t>(j)]);
        if (is_lstm) see(cell[at], c[static_cast<std::size_t>(j)]);
      }
    }
    return worst;
  }

  // sum(output * grad_output) + sum(last * grad_state) + sum(cell * grad_cell), the gradient of
  // which was asked for; with h0 moved by `by` along `where`.
  double loss(std::int64_t where, double by) const {
    const std::vector<T> of_state = sample<T>(batch * size, 7);
    const std::vector<T> of_cell = sample<T>(batch * size, 8);
    double sum = 0;
    for (std::int64_t b = 0; b < batch; ++b) {
      Numbers h = row(h0, b);
      Numbers c = row(c0, b);
      if (where / size == b) h[static_cast<std::size_t>(where % size)] += by;
      for (std::int64_t i = 0; i < steps(b); ++i) {
        const std::int64_t t = reverse ? steps(b) - 1 - i : i;
        step(b, t, h, c);
        for (std::int64_t j = 0; j < size; ++j) {
          sum += h[static_cast<std::size_t>(j)] *
                 static_cast<double>(
                     grad_output[static_cast<std::size_t>((b * length + t) * size + j)]);
        }
      }
      for (std::int64_t j = 0; j < size; ++j) {
        const auto at = static_cast<std::size_t>(b * size + j);
        sum += h[static_cast<std::size_t>(j)] * static_cast<double>(of_state[at]);
        if (is_lstm) sum += c[static_cast<std::size_t>(j)] * static_cast<double>(of_cell[at]);
      }
    }
    return sum;
  }
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <class T, class Body>
void each_problem(const Body& body) {
  for (const std::int64_t size : {1, 7, 16, 17, 33, 65}) {
    for (const int kind : {0, 1, 2}) {
      for (const bool reverse : {false, true}) {
        Problem<T> problem{.batch = 7, .length = 4, .size = size, .is_lstm = kind == 2};
        problem.reverse = reverse;
        problem.reset_after = kind != 1;
        if (size % 2 == 1) problem.lengths = {4, 0, 1, 3, 4, 2, 4};
        body(problem);
      }
    }
  }
}

template <class T>
void check_errors(double bound) {
  for (const std::string& isa : available_isas()) {
    set_isa(isa);
    each_problem<T>([&](Problem<T>& problem) {
      check::context = isa + " H " + std::to_string(problem.size);
      problem.run();
      CHECK(problem.forward_error() < bound);
    });
  }
  set_isa(available_isas().front());
}

TEST(states_are_those_of_the_definition) {
  check_errors<float>(1e-5);
  check_errors<double>(1e-13);
}

TEST(the_gradient_is_that_of_finite_differences) {
  for (const std::string& isa : available_isas()) {
    set_isa(isa);
    each_problem<double>([&](Problem<double>& problem) {
      check::context = isa + " H " + std::to_string(problem.size);
      problem.run();
      for (std::int64_t b = 0; b < problem.batch; ++b) {
        const std::int64_t where = b * problem.size + b % problem.size;
        const double step = 1e-5;
        const double estimate =
            (problem.loss(where, step) - problem.loss(where, -step)) / (2 * step);
        const double found = problem.grad_state[static_cast<std::size_t>(where)];
        CHECK(std::fabs(found - estimate) < 1e-7 * (1 + std::fabs(estimate)));
      }
    });
  }
  set_isa(available_isas().front());
}

TEST(bits_do_not_depend_on_the_threads) {
  const int before = threads();
  for (const int kind : {0, 1, 2}) {
    Problem<float> one{.batch = 9, .length = 12, .size = 150, .is_lstm = kind == 2};
    one.reset_after = kind != 1;
    set_threads(1);
    Problem<float> first = one;
    first.run();
    for (const int count : {2, 3, 5}) {
      set_threads(count);
      for (int repeat = 0; repeat < 5; ++repeat) {
        Problem<float> again = one;
        again.run();
        CHECK(same_bits(again.output, first.output));
        CHECK(same_bits(again.grad_state, first.grad_state));
        CHECK(same_bits(again.grad_gates, first.grad_gates));
      }
    }
  }
  set_threads(before);
}

// Without the gates of all steps their sums are made in blocks of steps: of 192 rows here, and of
// one where the inputs are many.
TEST(blocks_of_steps_have_the_same_bits) {
  for (const std::string& isa : available_isas()) {
    set_isa(isa);
    check::context = isa;
    for (const int kind : {0, 1, 2}) {
      for (const bool reverse : {false, true}) {
        for (const std::int64_t inputs : {std::int64_t{3}, std::int64_t{1} << 15}) {
          const std::int64_t length = inputs > 3 ? 9 : 90;
          Problem<float> problem{.batch = 5,
                                 .length = length,
                                 .size = 18,
                                 .is_lstm = kind == 2,
                                 .reverse = reverse,
                                 .reset_after = kind != 1,
                                 .lengths = {length, 1, length - 1, 0, length / 2},
                                 .inputs = inputs};
          Problem<float> again = problem;
          problem.forward();
          again.forward(false);
          CHECK(same_bits(again.output, problem.output));
          CHECK(problem.forward_error() < 1e-4);
        }
      }
    }
  }
  set_isa(available_isas().front());
}

// A single step of a single entry is computed without packing the weights.
void check_entry_alone(std::int64_t length, std::int64_t size, bool is_lstm) {
  Problem<float> many{.batch = 13, .length = length, .size = size, .is_lstm = is_lstm};
  Problem<float> alone{.batch = 1, .length = length, .size = size, .is_lstm = is_lstm};
  alone.weight = many.weight;
  alone.bias = many.bias;
  alone.weight_input = many.weight_input;
  alone.bias_input = many.bias_input;
  const std::int64_t entry = 11;
  const auto take = [&](const std::vector<float>& from, std::vector<float>& to) {
    const auto count = static_cast<std::int64_t>(to.size());
    to.assign(from.begin() + entry * count, from.begin() + (entry + 1) * count);
  };
  take(many.h0, alone.h0);
  take(many.cell, alone.cell);
  take(many.x, alone.x);
  many.forward();
  alone.forward();
  std::vector<float> expected(alone.output.size());
  take(many.output, expected);
  CHECK(same_bits(alone.output, expected));
}

TEST(an_entry_has_the_same_bits_alone) {
  for (const std::string& isa : available_isas()) {
    set_isa(isa);
    for (const std::int64_t size : {1, 16, 40, 65, 150}) {
      check::context = isa + " H " + std::to_string(size);
      for (const std::int64_t length : {1, 3}) {
        check_entry_alone(length, size, false);
        check_entry_alone(length, size, true);
      }
    }
  }
  set_isa(available_isas().front());
}

}  // namespace
}  // namespace pyattn

TEST_MAIN

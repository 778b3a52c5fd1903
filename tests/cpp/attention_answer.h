// The outputs of attention and the call that fills them.
#pragma once

#include <atomic>
#include <cstring>

#include "attention_problem.h"
#include "check.h"
#include "core/scratch.h"
#include "each_isa.h"

namespace pyattn::testing {

// The outputs of one call. Scores come alone, without a softmax.
struct Wanted {
  bool out = true;      // and lse, max
  bool second = false;  // weights and entropy, which need a second pass over the keys
  std::int64_t top_k = 0;
  bool scores = false;
};
inline constexpr Wanted kOut{};
inline constexpr Wanted kAll{.second = true, .top_k = 3};
inline constexpr Wanted kScores{.out = false, .scores = true};

// Rank 3 is (1, B, H, T).
template <class X>
struct Answer {
  using T = Compute<X>;

  Array<X> out, weights, scores;
  Array<T> lse, max, entropy, top_weights;
  Array<std::int64_t> top_indices;

  // Starts as NaN: what a kernel forgets to write shows.
  Answer(const Shape& s, std::int64_t rows, const Wanted& wanted) {
    const std::int64_t top_k = wanted.top_k;
    const T unset = static_cast<T>(kNan);
    out = {s.batch, s.heads, rows, s.columns, stored<X>(kNan), stored<X>(kBehind)};
    const Array<X> pairs(s.batch, s.heads, rows, wanted.second || wanted.scores ? s.keys : 0,
                         stored<X>(kNan), stored<X>(kBehind));
    if (wanted.second) weights = pairs;
    if (wanted.scores) scores = pairs;
    lse = {1, s.batch, s.heads, rows, unset, static_cast<T>(kBehind)};
    max = lse;
    entropy = lse;
    top_weights = {s.batch, s.heads, rows, top_k, unset, static_cast<T>(kBehind)};
    top_indices = {s.batch, s.heads, rows, top_k, -2, static_cast<std::int64_t>(kBehind)};
  }

  void put_into(AttentionParams<X>& p, const Wanted& wanted) {
    if (wanted.out) {
      p.out = out.view();
      p.lse = lse.view_3();
      p.max = max.view_3();
    }
    if (wanted.second) {
      p.weights = weights.view();
      p.entropy = entropy.view_3();
    }
    if (wanted.top_k > 0) {
      p.top_weights = top_weights.view();
      p.top_indices = top_indices.view();
    }
    if (wanted.scores) p.scores = scores.view();
  }

  bool gaps_are_intact() const {
    return intact(out) && intact(weights) && intact(scores) && intact(lse) && intact(max) &&
           intact(entropy) && intact(top_weights) && intact(top_indices);
  }

  static constexpr double kBehind = 24;  // a number in every storage type

 private:
  template <class U>
  static bool intact(const Array<U>& array) {
    if (array.shape[0] * array.shape[1] * array.shape[2] == 0) return true;
    const auto length = static_cast<std::size_t>(array.shape[3]);
    const auto step = static_cast<std::size_t>(array.stride[2]);
    for (std::size_t i = 0; i < array.data.size(); ++i) {
      if (i % step >= length && number(array.data[i]) != kBehind) return false;
    }
    return true;
  }
};

// Bit for bit, except that every NaN is the same.
template <class X>
bool same_bits(const X* a, const X* b, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (std::memcmp(a + i, b + i, sizeof(X)) == 0) continue;
    if (!std::isnan(number(a[i])) || !std::isnan(number(b[i]))) return false;
  }
  return true;
}
template <class X>
bool same_bits(const Array<X>& a, const Array<X>& b) {
  return a.data.size() == b.data.size() &&
         same_bits(a.data.data(), b.data.data(), static_cast<std::int64_t>(a.data.size()));
}
// Outputs that neither call was asked for are the same, too.
template <class X>
bool same_bits(const Answer<X>& a, const Answer<X>& b) {
  return same_bits(a.out, b.out) && same_bits(a.weights, b.weights) &&
         same_bits(a.scores, b.scores) && same_bits(a.lse, b.lse) && same_bits(a.max, b.max) &&
         same_bits(a.entropy, b.entropy) && same_bits(a.top_weights, b.top_weights) &&
         same_bits(a.top_indices, b.top_indices);
}
// Row i of head h of entry b in one, row k of head h of entry c in the other.
template <class X>
bool same_row(const Answer<X>& a, std::int64_t b, std::int64_t h, std::int64_t i,
              const Answer<X>& other, std::int64_t c, std::int64_t k) {
  const auto same = [&](const auto& x, const auto& y) {
    return same_bits(x.row(b, h, i), y.row(c, h, k), x.shape[3]);
  };
  const auto same_number = [&](const auto& x, const auto& y) {
    return same_bits(&x.at(0, b, h, i), &y.at(0, c, h, k), 1);
  };
  return same(a.out, other.out) && same(a.weights, other.weights) && same(a.scores, other.scores) &&
         same(a.top_weights, other.top_weights) && same(a.top_indices, other.top_indices) &&
         same_number(a.lse, other.lse) && same_number(a.max, other.max) &&
         same_number(a.entropy, other.entropy);
}

// How many parts of keys were tasks of their own.
inline std::atomic<std::int64_t> parts_run{0};

// The kernel of a mechanism, on memory that is full of NaN.
template <class X, Mechanism kMechanism>
void run_block(const AttentionParams<X>& p, const AttentionBlock& block,
               Compute<X>* scratch) noexcept {
  using T = Compute<X>;
  const std::int64_t columns = p.value.shape[3];
  const T nan = static_cast<T>(kNan);
  std::fill_n(scratch, attention_scratch_elements(p.query.shape[3], columns), nan);
  if (block.part != nullptr) {
    parts_run.fetch_add(1, std::memory_order_relaxed);
    std::fill_n(static_cast<T*>(block.part), part_elements(block.heads * block.rows, columns), nan);
  }
  const AttentionKernels<X>& table = attention_kernels_of<X>(kernels());
  (kMechanism == Mechanism::sdpa ? table.sdpa : table.additive)(p, block, scratch);
}

template <class X>
void merge_block(const AttentionParams<X>& p, const AttentionBlock& block, const Compute<X>* parts,
                 std::int64_t count, std::int64_t step, Compute<X>* scratch) noexcept {
  std::fill_n(scratch, attention_scratch_elements(p.query.shape[3], p.value.shape[3]),
              static_cast<Compute<X>>(kNan));
  attention_kernels_of<X>(kernels()).merge(p, block, parts, count, step, scratch);
}

template <class X>
Answer<X> run(const Problem<X>& problem, AttentionParams<X> p, const Wanted& wanted,
              typename AttentionKernels<X>::Run kernel) {
  Answer<X> answer(problem.shape, problem.row_count(), wanted);
  answer.put_into(p, wanted);
  constexpr std::size_t kPoisoned = std::size_t{1} << 20;
  std::memset(thread_scratch(kPoisoned), 0xff, kPoisoned);  // a NaN in every type
  run_attention<X>(p, kernel, merge_block<X>, static_cast<double>(problem.shape.depth));
  CHECK(answer.gaps_are_intact());
  return answer;
}
template <class X>
Answer<X> run(const Problem<X>& problem, AttentionParams<X> p, const Wanted& wanted) {
  return run(problem, p, wanted,
             problem.mechanism == Mechanism::sdpa ? run_block<X, Mechanism::sdpa>
                                                  : run_block<X, Mechanism::additive>);
}
template <class X>
Answer<X> run(const Problem<X>& problem, const Wanted& wanted = kAll) {
  return run(problem, problem.params(), wanted);
}

}  // namespace pyattn::testing

// Attention within a window around a real centre: local-p of Luong et al. 2015 (arXiv:1508.04025),
// equations 9 and 10. Row t with centre p and half width D sees the allowed keys s, |s - p| <= D:
//   a = softmax of their scores    w_s = a_s g_s    g_s = exp(-(s - p)^2 / (2 sigma^2))
// with sigma = D / 2; the w are divided by their sum on request. Scores are q . k, or
// v . tanh(q + k) with the direct tanh: the factored one of additive.inl pays where many rows share
// the exponentials of a key.
// A row is on its own: time T (2 D + 1), stored: a few numbers for each key of one window. Numbers
// of a row are in the lanes; as many keys as a register has lanes end in one transposition, which
// takes a third of the time of summing the lanes key by key (21 keys of 64, AVX-512).
#pragma once

#include "core/local_params.h"
#include "cpu/rows.inl"

namespace pyattn {
namespace {

// Rows taken together, whose sums are independent chains.
template <class V>
constexpr int kTogether = V::kLanes < 4 ? V::kLanes : 4;

template <class V>
struct DotTerm {
  PYATTN_INLINE V operator()(V x, V row, std::int64_t, std::int64_t, V sum) const {
    return V::fma(x, row, sum);
  }
};

template <class V>
struct TanhTerm {
  const typename V::Scalar* v;
  PYATTN_INLINE V operator()(V x, V row, std::int64_t a, std::int64_t left, V sum) const {
    return V::fma(load_left<V>(v + a, left), tanh(x + row), sum);
  }
};

template <class V, class T>
void fill(T* to, std::int64_t count, typename V::Scalar x) {
  const V all = V::broadcast(x);
  for (std::int64_t i = 0; i < count; i += V::kLanes) store_left(all, to + i, count - i);
}

template <class V, class X>
class LocalRow {
 public:
  using T = typename V::Scalar;

  LocalRow(const LocalParams<X>& p, std::int64_t batch, std::byte* scratch)
      : p_(p), batch_(batch), next_(scratch) {
    const std::int64_t depth = p.query.shape[2];
    const std::int64_t columns = p.value.shape[2];
    const std::int64_t width = window_width();
    query_copy_ = take<T>(depth);
    out_ = take<T>(columns);
    score_ = take<T>(width);
    weight_ = take<T>(width);
    gaussian_ = take<T>(width);
    away_ = take<T>(width);
    key_ = take<std::int64_t>(width);
    copies_ = take<X>(kMostTogether * (depth > columns ? depth : columns));
  }

  // The allowed keys of a row and their weights.
  void load(std::int64_t row) {
    row_ = row;
    window_ = &p_.windows[batch_ * p_.query.shape[1] + row];
    list_keys();
    if (count_ == 0) return;
    query_ = unit_row<V>(at(p_.query, row), p_.query.stride[2], p_.query.shape[2], query_copy_);
    if (p_.v != nullptr) {
      sum_rows(p_.key, query_, TanhTerm<V>{p_.v}, score_);
    } else {
      sum_rows(p_.key, query_, DotTerm<V>{}, score_);
    }
    for (std::int64_t i = 0; p_.mask.kind == MaskKind::additive && i < count_; ++i) {
      score_[i] = score_[i] + weight_[i];
    }
    weigh();
  }

  void store() const {
    const std::int64_t columns = p_.value.shape[2];
    X* out = at(p_.out, row_);
    if (count_ == 0) {
      fill<V>(out, columns, nothing());
    } else {
      fill<V>(out_, columns, T(0));
      add_rows(p_.value, weight_, out_);
      for (std::int64_t e = 0; e < columns; e += V::kLanes) {
        store_left(load_left<V>(out_ + e, columns - e), out + e, columns - e);
      }
    }
    if (p_.lse.data != nullptr) {
      const T none = window_->finite ? -static_cast<T>(HUGE_VAL) : nothing();
      p_.lse.data[batch_ * p_.lse.stride[0] + row_] = count_ == 0 ? none : lse_;
    }
    scatter(p_.weights, 0);
    scatter(p_.window_weights, window_->first);
  }

  // sums[i] = sum_d term(x_d, row_d) for the row of each key; room for whole registers.
  template <class Term>
  void sum_rows(const View<const X, 3>& view, const T* x, const Term& term, T* sums) const {
    for (std::int64_t first = 0; first < count_; first += V::kLanes) {
      const std::int64_t last = (count_ - first < V::kLanes ? count_ : first + V::kLanes) - 1;
      V part[V::kLanes];
      for (V& sum : part) sum = V::broadcast(T(0));
      for (int i = 0; first + i <= last; i += kTogether<V>) {
        const X* row[kTogether<V>];
        for (int j = 0; j < kTogether<V>; ++j) {
          const std::int64_t index = first + i + j < last ? first + i + j : last;
          row[j] = dense(view, index, j);
        }
        sum_terms(row, x, view.shape[2], term, part + i);
      }
      V::transpose(part);
      for (int half = V::kLanes / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) part[i] = part[i] + part[i + half];
      }
      part[0].store(sums + first);
    }
  }

  // to += sum_i factor_i row_i
  void add_rows(const View<const X, 3>& view, const T* factor, T* to) const {
    std::int64_t i = 0;
    for (; i + kTogether<V> <= count_; i += kTogether<V>) {
      add_some<kTogether<V>>(view, i, factor, to);
    }
    for (; i < count_; ++i) add_some<1>(view, i, factor, to);
  }

  // The row of key i of the window: where it lies, or copied to place `slot`.
  const X* dense(const View<const X, 3>& view, std::int64_t i, int slot) const {
    const X* row = at(view, key_[i]);
    if (view.stride[2] == 1) return row;
    const std::int64_t columns = view.shape[2];
    X* copy = copies_ + slot * columns;
    for (std::int64_t d = 0; d < columns; ++d) copy[d] = row[d * view.stride[2]];
    return copy;
  }

  template <class U>
  U* at(const View<U, 3>& view, std::int64_t row) const {
    return view.data + batch_ * view.stride[0] + row * view.stride[1];
  }

  // Memory behind that of the row.
  template <class U>
  U* take(std::int64_t count) {
    constexpr std::int64_t kLine = 64;
    auto* start = reinterpret_cast<U*>(next_);
    next_ += (count * static_cast<std::int64_t>(sizeof(U)) + kLine - 1) / kLine * kLine;
    return start;
  }

  // Room for a number for each key of a window, in whole registers.
  std::int64_t window_width() const {
    const std::int64_t most = 2 * p_.half_width + 1;
    const std::int64_t width = most < p_.keys ? most : p_.keys;
    return (width + kSumAlign - 1) / kSumAlign * kSumAlign;
  }

  const LocalWindow& window() const { return *window_; }
  std::int64_t count() const { return count_; }
  const T* query() const { return query_; }
  std::int64_t key(std::int64_t i) const { return key_[i]; }
  // Of each key, with 0 behind them up to a whole register.
  const T* share() const { return score_; }  // a
  const T* weight() const { return weight_; }
  const T* gaussian() const { return gaussian_; }
  const T* away() const { return away_; }  // s - p

  // What a row without keys gives: 0, unless its centre is no number.
  T nothing() const { return window_->finite ? T(0) : static_cast<T>(NAN); }

 private:
  static constexpr int kMostTogether = 4;

  // Leaves the bias of an additive mask in weight_.
  void list_keys() {
    const T centre = p_.centre.data[batch_ * p_.centre.stride[0] + row_ * p_.centre.stride[1]];
    const std::int64_t start = batch_ * p_.mask.stride[0] + row_ * p_.mask.stride[2];
    count_ = 0;
    for (std::int64_t s = window_->begin; s < window_->end; ++s) {
      const std::int64_t place = start + s * p_.mask.stride[3];
      if (p_.mask.kind == MaskKind::boolean) {
        if (static_cast<const std::uint8_t*>(p_.mask.data)[place] == 0) continue;
      } else if (p_.mask.kind == MaskKind::additive) {
        weight_[count_] = widen<V>(static_cast<const X*>(p_.mask.data) + place);
        if (weight_[count_] == -static_cast<T>(HUGE_VAL)) continue;
      }
      key_[count_] = s;
      away_[count_] = static_cast<T>(static_cast<double>(s) - static_cast<double>(centre));
      ++count_;
    }
  }

  void weigh() {
    const T lowest = -static_cast<T>(HUGE_VAL);
    for (std::int64_t i = count_; i % V::kLanes != 0; ++i) {
      score_[i] = lowest;
      away_[i] = T(0);
    }
    V top = V::broadcast(lowest);
    for (std::int64_t i = 0; i < count_; i += V::kLanes) top = V::max(V::load(score_ + i), top);
    const T most = max_lanes(top);
    const V shift = V::broadcast(most > lowest ? most : T(0));
    V sum = V::broadcast(T(0));
    for (std::int64_t i = 0; i < count_; i += V::kLanes) {
      const V numerator = exp_fast(V::load(score_ + i) - shift);
      numerator.store(score_ + i);
      sum = sum + numerator;
    }
    const T total = sum_lanes(sum);
    lse_ = most + static_cast<T>(::log(static_cast<double>(total)));
    scale(score_, inverse(total), score_);

    const auto width = static_cast<T>(p_.half_width);
    const V factor = V::broadcast(T(-2) / (width * width));
    sum = V::broadcast(T(0));
    for (std::int64_t i = 0; i < count_; i += V::kLanes) {
      const V x = V::load(away_ + i);
      const V gaussian = exp_fast(x * x * factor);
      const V weight = V::load(score_ + i) * gaussian;
      gaussian.store(gaussian_ + i);
      weight.store(weight_ + i);
      sum = sum + weight;
    }
    if (p_.renormalize) scale(weight_, inverse(sum_lanes(sum)), weight_);
  }

  static T inverse(T total) { return total == T(0) ? T(0) : T(1) / total; }

  void scale(const T* from, T factor, T* to) const {
    for (std::int64_t i = 0; i < count_; i += V::kLanes) {
      (V::load(from + i) * V::broadcast(factor)).store(to + i);
    }
  }

  // The weights of the row, of which `view` holds those from key `first` on.
  void scatter(const View<X, 3>& view, std::int64_t first) const {
    if (view.data == nullptr) return;
    X* row = at(view, row_);
    fill<V>(row, view.shape[2], nothing());
    for (std::int64_t i = 0; i < count_; ++i) {
      V::broadcast(weight_[i]).store(row + (key_[i] - first), 1);
    }
  }

  template <class Term>
  static PYATTN_INLINE void sum_terms(const X* const (&row)[kTogether<V>], const T* x,
                                      std::int64_t length, const Term& term, V* sums) {
    V sum[kTogether<V>];
    PYATTN_UNROLL
    for (int j = 0; j < kTogether<V>; ++j) sum[j] = V::broadcast(T(0));
    std::int64_t d = 0;
    for (; d + V::kLanes <= length; d += V::kLanes) {
      const V numbers = V::load(x + d);
      PYATTN_UNROLL
      for (int j = 0; j < kTogether<V>; ++j) {
        sum[j] = term(numbers, V::load(row[j] + d), d, V::kLanes, sum[j]);
      }
    }
    if (d < length) {
      const V numbers = load_left<V>(x + d, length - d);
      for (int j = 0; j < kTogether<V>; ++j) {
        sum[j] = term(numbers, load_left<V>(row[j] + d, length - d), d, length - d, sum[j]);
      }
    }
    for (int j = 0; j < kTogether<V>; ++j) sums[j] = sum[j];
  }

  template <int N>
  void add_some(const View<const X, 3>& view, std::int64_t first, const T* factor, T* to) const {
    const X* row[N];
    V by[N];
    for (int j = 0; j < N; ++j) {
      row[j] = dense(view, first + j, j);
      by[j] = V::broadcast(factor[first + j]);
    }
    const std::int64_t columns = view.shape[2];
    for (std::int64_t e = 0; e < columns; e += V::kLanes) {
      const std::int64_t left = columns - e;
      V sum = load_left<V>(to + e, left);
      PYATTN_UNROLL
      for (int j = 0; j < N; ++j) sum = V::fma(by[j], load_left<V>(row[j] + e, left), sum);
      store_left(sum, to + e, left);
    }
  }

  const LocalParams<X>& p_;
  std::int64_t batch_;
  std::byte* next_;
  std::int64_t row_ = 0;
  const LocalWindow* window_ = nullptr;
  std::int64_t count_ = 0;
  const T* query_ = nullptr;
  T lse_ = T(0);
  T* query_copy_;
  T* out_;
  T* score_;  // then a
  T* weight_;
  T* gaussian_;
  T* away_;
  std::int64_t* key_;
  X* copies_;
};

template <class V, class X>
void local_rows(const LocalParams<X>& p, std::int64_t batch, std::int64_t first, std::int64_t end,
                std::byte* scratch) noexcept {
  LocalRow<V, X> row(p, batch, scratch);
  for (std::int64_t t = first; t < end; ++t) {
    row.load(t);
    row.store();
  }
}

}  // namespace
}  // namespace pyattn

// Attention within a window around a real centre: local-p of Luong et al. 2015 (arXiv:1508.04025),
// equations 9 and 10. Row t with centre p and half width D sees the allowed keys s, |s - p| <= D:
//   a = softmax of their scores    w_s = a_s g_s    g_s = exp(-(s - p)^2 / (2 sigma^2))
// with sigma = D / 2; the w are divided by their sum on request. Scores are q . k, or
// v . tanh(q + k) with the direct tanh: the factored one of additive.inl pays where many rows share
// the exponentials of a key.
// A row is on its own: time T (2 D + 1), stored: a few numbers for each key of the windows of
// kLocalAbreast rows. Numbers of a row are in the lanes; sum_each adds up as many keys as a
// register has lanes. Rows come in the order of their windows, whose keys are then still in the
// cache. A softmax is one long chain: kLocalAbreast of them, one behind the other, overlap in the
// processor, as do their scores before and their sums of values behind. Tried and slower (AVX-512,
// Zen 5): eight rows abreast (3 %); eight keys together (6 %); two chains for each sum of values
// (no difference).
#pragma once

#include "core/kernels.h"
#include "cpu/local_keys.inl"

namespace pyattn {
namespace {

// Keys taken together, whose sums are independent chains.
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

// 0, 1, 2, ...
template <class V>
PYATTN_INLINE V numbers() {
  typename V::Scalar lane[V::kLanes];
  PYATTN_UNROLL
  for (int i = 0; i < V::kLanes; ++i) lane[i] = static_cast<typename V::Scalar>(i);
  return V::load(lane);
}

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
      : p_(p), batch_(batch), next_(scratch), keys_(p.key, batch), values_(p.value, batch) {
    const std::int64_t most = 2 * p.half_width + 1;
    const std::int64_t width = most < p.keys ? most : p.keys;
    width_ = (width + kSumAlign - 1) / kSumAlign * kSumAlign;
    query_copy_ = take<T>(p.query.shape[2]);
    score_ = take<T>(width_);
    weight_ = take<T>(width_);
    gaussian_ = take<T>(width_);
    away_ = take<T>(width_);
    key_ = take<std::int64_t>(width_);
    key_row_ = take<const X*>(width_);
    value_row_ = take<const X*>(width_);
    if (p.key.stride[2] != 1) key_copies_ = take<X>(width * p.key.shape[2]);
    if (p.value.stride[2] != 1) value_copies_ = take<X>(width * p.value.shape[2]);
  }

  // Where keys and values are read from now on.
  void read(const LocalSource<X>& keys, const LocalSource<X>& values) {
    keys_ = keys;
    values_ = values;
  }

  // The allowed keys of a row and their scores.
  void load(std::int64_t row) {
    row_ = row;
    window_ = &p_.windows[batch_ * p_.query.shape[1] + row];
    list_keys();
    if (count_ == 0) return;
    query_ = unit_row<V>(at(p_.query, row), p_.query.stride[2], p_.query.shape[2], query_copy_);
    if (p_.mask.kind == MaskKind::none && keys_.stride == 1) {
      score(keys_.from(window_->begin));
    } else {
      list_rows(keys_, p_.key.shape[2], key_copies_, key_row_);
      score(key_row_);
    }
    for (std::int64_t i = 0; p_.mask.kind == MaskKind::additive && i < count_; ++i) {
      score_[i] = score_[i] + weight_[i];
    }
  }

  // Makes weights of the scores.
  void weigh() {
    if (count_ == 0) return;
    const V lowest = V::broadcast(-static_cast<T>(HUGE_VAL));
    V top = lowest;
    for (std::int64_t i = 0; i < count_; i += V::kLanes) {
      const V score = V::select(here(i), V::load(score_ + i), lowest);
      score.store(score_ + i);
      top = V::max(score, top);
    }
    most_ = max_lanes(top);
    const V shift = V::broadcast(most_ > -static_cast<T>(HUGE_VAL) ? most_ : T(0));
    V sum = V::broadcast(T(0));
    for (std::int64_t i = 0; i < count_; i += V::kLanes) {
      const V numerator = exp_fast(V::load(score_ + i) - shift);
      numerator.store(score_ + i);
      sum = sum + numerator;
    }
    total_ = sum_lanes(sum);
    const V scale = V::broadcast(inverse(total_));
    const auto width = static_cast<T>(p_.half_width);
    const V factor = V::broadcast(T(-2) / (width * width));
    sum = V::broadcast(T(0));
    for (std::int64_t i = 0; i < count_; i += V::kLanes) {
      const V x = V::load(away_ + i);
      const V gaussian = exp_fast(x * x * factor);
      const V share = V::load(score_ + i) * scale;
      const V weight = share * gaussian;
      gaussian.store(gaussian_ + i);
      share.store(score_ + i);
      weight.store(weight_ + i);
      sum = sum + weight;
    }
    if (!p_.renormalize) return;
    const V whole = V::broadcast(inverse(sum_lanes(sum)));
    for (std::int64_t i = 0; i < count_; i += V::kLanes) {
      (V::load(weight_ + i) * whole).store(weight_ + i);
    }
  }

  void store() const {
    X* out = at(p_.out, row_);
    if (count_ == 0) {
      fill<V>(out, p_.value.shape[2], nothing());
    } else if (p_.mask.kind == MaskKind::none && values_.stride == 1) {
      add_rows(values_.from(window_->begin), p_.value.shape[2], weight_, out);
    } else {
      list_rows(values_, p_.value.shape[2], value_copies_, value_row_);
      add_rows(value_row_, p_.value.shape[2], weight_, out);
    }
    if (p_.lse.data != nullptr) {
      T lse = window_->finite ? -static_cast<T>(HUGE_VAL) : nothing();
      if (count_ > 0) lse = most_ + static_cast<T>(::log(static_cast<double>(total_)));
      p_.lse.data[batch_ * p_.lse.stride[0] + row_] = lse;
    }
    scatter(p_.weights, 0);
    scatter(p_.window_weights, window_->first);
  }

  // For the gradient: lists the rows of a window.
  const X* const* key_rows() const {
    list_rows(keys_, p_.key.shape[2], key_copies_, key_row_);
    return key_row_;
  }
  const X* const* value_rows() const {
    list_rows(values_, p_.value.shape[2], value_copies_, value_row_);
    return value_row_;
  }

  // sums[i] = sum_d term(x_d, row_id) for the row of each key; room for whole registers.
  template <class Rows, class Term>
  void sum_rows(const Rows& rows, std::int64_t length, const T* x, const Term& term,
                T* sums) const {
    for (std::int64_t first = 0; first < count_; first += V::kLanes) {
      const std::int64_t last = (count_ - first < V::kLanes ? count_ : first + V::kLanes) - 1;
      V part[V::kLanes];
      for (V& sum : part) sum = V::broadcast(T(0));
      for (int i = 0; first + i <= last; i += kTogether<V>) {
        const X* row[kTogether<V>];
        for (int j = 0; j < kTogether<V>; ++j) {
          row[j] = rows[first + i + j < last ? first + i + j : last];
        }
        sum_terms(row, x, length, term, part + i);
      }
      sum_each(part).store(sums + first);
    }
  }

  // to = sum_i factor_i row_i
  template <class Rows, class U>
  void add_rows(const Rows& rows, std::int64_t length, const T* factor, U* to) const {
    constexpr int kPart = 4;
    std::int64_t d = 0;
    for (; d + kPart * V::kLanes <= length; d += kPart * V::kLanes) {
      V sum[kPart];
      PYATTN_UNROLL
      for (int n = 0; n < kPart; ++n) sum[n] = V::broadcast(T(0));
      for (std::int64_t i = 0; i < count_; ++i) {
        const V by = V::broadcast(factor[i]);
        PYATTN_UNROLL
        for (int n = 0; n < kPart; ++n) {
          sum[n] = V::fma(by, V::load(rows[i] + d + n * V::kLanes), sum[n]);
        }
      }
      PYATTN_UNROLL
      for (int n = 0; n < kPart; ++n) sum[n].store(to + d + n * V::kLanes);
    }
    for (; d < length; d += V::kLanes) {
      const std::int64_t left = length - d;
      V sum = V::broadcast(T(0));
      for (std::int64_t i = 0; i < count_; ++i) {
        sum = V::fma(V::broadcast(factor[i]), load_left<V>(rows[i] + d, left), sum);
      }
      store_left(sum, to + d, left);
    }
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

  std::byte* end() const { return next_; }

  // Room for a number for each key of a window, in whole registers.
  std::int64_t width() const { return width_; }

  const LocalWindow& window() const { return *window_; }
  std::int64_t count() const { return count_; }
  const T* query() const { return query_; }
  std::int64_t key(std::int64_t i) const {
    return p_.mask.kind == MaskKind::none ? window_->begin + i : key_[i];
  }
  // Of each key, with 0 behind them up to a whole register.
  const T* share() const { return score_; }  // a
  const T* weight() const { return weight_; }
  const T* gaussian() const { return gaussian_; }
  const T* away() const { return away_; }  // s - p

  // What a row without keys gives: 0, unless its centre is no number.
  T nothing() const { return window_->finite ? T(0) : static_cast<T>(NAN); }

 private:
  // Leaves the bias of an additive mask in weight_.
  void list_keys() {
    count_ = 0;
    if (window_->begin == window_->end) return;
    const T centre = p_.centre.data[batch_ * p_.centre.stride[0] + row_ * p_.centre.stride[1]];
    const T away =
        static_cast<T>(static_cast<double>(window_->begin) - static_cast<double>(centre));
    if (p_.mask.kind == MaskKind::none) {
      count_ = window_->end - window_->begin;
      for (std::int64_t i = 0; i < count_; i += V::kLanes) {
        (numbers<V>() + V::broadcast(away + static_cast<T>(i))).store(away_ + i);
      }
      return;
    }
    const std::int64_t start = batch_ * p_.mask.stride[0] + row_ * p_.mask.stride[2];
    for (std::int64_t s = window_->begin; s < window_->end; ++s) {
      const std::int64_t place = start + s * p_.mask.stride[3];
      if (p_.mask.kind == MaskKind::boolean) {
        if (static_cast<const std::uint8_t*>(p_.mask.data)[place] == 0) continue;
      } else {
        weight_[count_] = widen<V>(static_cast<const X*>(p_.mask.data) + place);
        if (weight_[count_] == -static_cast<T>(HUGE_VAL)) continue;
      }
      key_[count_] = s;
      away_[count_] = away + static_cast<T>(s - window_->begin);
      ++count_;
    }
    for (std::int64_t i = count_; i % V::kLanes != 0; ++i) away_[i] = T(0);
  }

  // Where the rows of the keys are, or copies without gaps between their numbers.
  void list_rows(const LocalSource<X>& source, std::int64_t length, X* copies,
                 const X** rows) const {
    for (std::int64_t i = 0; i < count_; ++i) rows[i] = source.start + key(i) * source.step;
    if (source.stride == 1) return;
    for (std::int64_t i = 0; i < count_; ++i, copies += length) {
      for (std::int64_t d = 0; d < length; ++d) copies[d] = rows[i][d * source.stride];
      rows[i] = copies;
    }
  }

  template <class Rows>
  void score(const Rows& rows) {
    if (p_.v != nullptr) {
      sum_rows(rows, p_.query.shape[2], query_, TanhTerm<V>{p_.v}, score_);
    } else {
      sum_rows(rows, p_.query.shape[2], query_, DotTerm<V>{}, score_);
    }
  }

  // Which lanes of the register from key i on have one.
  typename V::Mask here(std::int64_t i) const {
    return V::less(numbers<V>(), V::broadcast(static_cast<T>(count_ - i)));
  }

  static T inverse(T total) { return total == T(0) ? T(0) : T(1) / total; }

  // The weights of the row, of which `view` holds those from key `first` on.
  void scatter(const View<X, 3>& view, std::int64_t first) const {
    if (view.data == nullptr) return;
    X* row = at(view, row_);
    fill<V>(row, view.shape[2], nothing());
    for (std::int64_t i = 0; i < count_; ++i) {
      V::broadcast(weight_[i]).store(row + (key(i) - first), 1);
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
      PYATTN_UNROLL
      for (int j = 0; j < kTogether<V>; ++j) {
        sum[j] = term(numbers, load_left<V>(row[j] + d, length - d), d, length - d, sum[j]);
      }
    }
    PYATTN_UNROLL
    for (int j = 0; j < kTogether<V>; ++j) sums[j] = sum[j];
  }

  const LocalParams<X>& p_;
  std::int64_t batch_;
  std::byte* next_;
  LocalSource<X> keys_;
  LocalSource<X> values_;
  std::int64_t width_ = 0;
  std::int64_t row_ = 0;
  const LocalWindow* window_ = nullptr;
  std::int64_t count_ = 0;
  const T* query_ = nullptr;
  T most_ = T(0);
  T total_ = T(0);
  T* query_copy_;
  T* score_;  // then a
  T* weight_;
  T* gaussian_;
  T* away_;
  std::int64_t* key_;
  const X** key_row_;
  const X** value_row_;
  X* key_copies_ = nullptr;
  X* value_copies_ = nullptr;
};

template <class V, class X>
void local_rows(const LocalParams<X>& p, std::int64_t batch, const std::int64_t* rows,
                std::int64_t count, std::byte* scratch) noexcept {
  LocalRow<V, X> first(p, batch, scratch);
  LocalRow<V, X> second(p, batch, first.end());
  LocalRow<V, X> third(p, batch, second.end());
  LocalRow<V, X> fourth(p, batch, third.end());
  LocalRow<V, X>* const row[] = {&first, &second, &third, &fourth};
  LocalSource<X> keys(p.key, batch);
  LocalSource<X> values(p.value, batch);
  const LocalWindow all = covered(p, batch, rows, count);
  if (worth_copying(p, all, count)) {
    auto* copies = fourth.template take<X>(kLocalCopies * local_step<X>(p.key.shape[2]));
    keys.template move<V>(all.begin, all.end, p.key.shape[2], copies);
    copies = fourth.template take<X>(kLocalCopies * local_step<X>(p.value.shape[2]));
    values.template move<V>(all.begin, all.end, p.value.shape[2], copies);
    for (LocalRow<V, X>* one : row) one->read(keys, values);
  }
  for (; count > 0; rows += kLocalAbreast, count -= kLocalAbreast) {
    const int some = count < kLocalAbreast ? static_cast<int>(count) : kLocalAbreast;
    for (int i = 0; i < some; ++i) row[i]->load(rows[i]);
    for (int i = 0; i < some; ++i) row[i]->weigh();
    for (int i = 0; i < some; ++i) row[i]->store();
  }
}

}  // namespace
}  // namespace pyattn

// The gradient of attention within a window around a real centre (arXiv:1508.04025). With a, g and
// w as in local.inl, l the gradient of the log-sum-exp, and dw_s = grad_out . v_s and what came
// for the weights themselves:
//   delta = sum_s w_s dw_s     ds_s = a_s (g_s dw_s - delta + l)     h_s = w_s dw_s
//   dp = sum_s h_s 4 (s - p) / D^2
// and where the weights are renormalised ds_s = w_s (dw_s - delta) + a_s l, h_s = w_s (dw_s -
// delta). The edges of the window have no derivative. The weights are computed again; nothing of
// them is stored. Rows come sorted by their windows, so that a task's sums over keys cover few of
// them.
#pragma once

#include "cpu/local.inl"

namespace pyattn {
namespace {

template <class V, class X>
class LocalGradient {
 public:
  using T = typename V::Scalar;

  LocalGradient(const LocalGradientParams<X>& params, std::int64_t batch, const LocalSums<T>& sums,
                std::byte* scratch)
      : params_(params),
        p_(params.forward),
        batch_(batch),
        sums_(sums),
        depth_(p_.query.shape[2]),
        columns_(p_.value.shape[2]),
        row_(p_, batch, scratch),
        grad_out_copy_(row_.template take<T>(columns_)),
        grad_(row_.template take<T>(row_.width())) {}

  void add(std::int64_t row) {
    row_.load(row);
    row_.weigh();
    X* to = params_.grad_query.data == nullptr ? nullptr : row_.at(params_.grad_query, row);
    T centre = row_.nothing();
    if (row_.count() == 0) {
      if (to != nullptr) fill<V>(to, depth_, centre);
    } else {
      grad_out_ = unit_row<V>(row_.at(params_.grad_out, row), params_.grad_out.stride[2], columns_,
                              grad_out_copy_);
      centre = add_scores(row);
      for (std::int64_t i = 0; sums_.value != nullptr && i < row_.count(); ++i) {
        add_to(sums_.value + (row_.key(i) - sums_.first) * columns_, columns_, row_.weight()[i],
               grad_out_);
      }
      if (p_.v != nullptr) {
        add_tanh(to);
      } else {
        if (to != nullptr) row_.add_rows(row_.key_rows(), depth_, grad_, to);
        for (std::int64_t i = 0; sums_.key != nullptr && i < row_.count(); ++i) {
          add_to(key_sum(i), depth_, grad_[i], row_.query());
        }
      }
    }
    if (params_.grad_centre.data != nullptr) {
      params_.grad_centre.data[batch_ * params_.grad_centre.stride[0] + row] = centre;
    }
  }

 private:
  T* key_sum(std::int64_t i) const { return sums_.key + (row_.key(i) - sums_.first) * depth_; }

  // Leaves ds in grad_; the gradient of the centre.
  T add_scores(std::int64_t row) {
    row_.sum_rows(row_.value_rows(), columns_, grad_out_, DotTerm<V>{}, grad_);
    add_given(params_.grad_weights, row, 0);
    add_given(params_.grad_window_weights, row, row_.window().first);
    const std::int64_t count = row_.count();
    for (std::int64_t i = count; i % V::kLanes != 0; ++i) grad_[i] = T(0);
    V sum = V::broadcast(T(0));
    for (std::int64_t i = 0; i < count; i += V::kLanes) {
      sum = V::fma(V::load(row_.weight() + i), V::load(grad_ + i), sum);
    }
    const V delta = V::broadcast(sum_lanes(sum));
    const View<const T, 2>& given = params_.grad_lse;
    const V lse = V::broadcast(given.data == nullptr
                                   ? T(0)
                                   : given.data[batch_ * given.stride[0] + row * given.stride[1]]);
    sum = V::broadcast(T(0));
    for (std::int64_t i = 0; i < count; i += V::kLanes) {
      const V share = V::load(row_.share() + i);
      const V weight = V::load(row_.weight() + i);
      const V dw = V::load(grad_ + i);
      V by_gaussian = weight * dw;
      V ds = share * (V::fma(V::load(row_.gaussian() + i), dw, lse) - delta);
      if (p_.renormalize) {
        by_gaussian = weight * (dw - delta);
        ds = V::fma(share, lse, by_gaussian);
      }
      ds.store(grad_ + i);
      sum = V::fma(by_gaussian, V::load(row_.away() + i), sum);
    }
    const auto width = static_cast<T>(p_.half_width);
    return sum_lanes(sum) * (T(4) / (width * width));
  }

  // The gradients of the weights from key `first` on.
  void add_given(const View<const X, 3>& view, std::int64_t row, std::int64_t first) {
    if (view.data == nullptr) return;
    const X* given = row_.at(view, row);
    for (std::int64_t i = 0; i < row_.count(); ++i) {
      grad_[i] = grad_[i] + widen<V>(given + (row_.key(i) - first) * view.stride[2]);
    }
  }

  // u = ds v (1 - tanh^2) for query and key, ds tanh for v.
  void add_tanh(X* to) {
    const V one = V::broadcast(T(1));
    const X* const* keys = row_.key_rows();
    for (std::int64_t a = 0; a < depth_; a += V::kLanes) {
      const std::int64_t left = depth_ - a;
      const V query = load_left<V>(row_.query() + a, left);
      const V v = load_left<V>(p_.v + a, left);
      V to_query = V::broadcast(T(0));
      V to_v = to_query;
      for (std::int64_t i = 0; i < row_.count(); ++i) {
        const V ds = V::broadcast(grad_[i]);
        const V t = tanh(query + load_left<V>(keys[i] + a, left));
        const V u = ds * v * V::fnma(t, t, one);
        to_query = to_query + u;
        to_v = V::fma(ds, t, to_v);
        if (sums_.key != nullptr) add_register(key_sum(i) + a, left, u);
      }
      if (to != nullptr) store_left(to_query, to + a, left);
      if (sums_.v != nullptr) add_register(sums_.v + a, left, to_v);
    }
  }

  static PYATTN_INLINE void add_register(T* to, std::int64_t left, V x) {
    store_left(load_left<V>(to, left) + x, to, left);
  }

  // to += factor x
  static void add_to(T* to, std::int64_t length, T factor, const T* x) {
    const V by = V::broadcast(factor);
    for (std::int64_t d = 0; d < length; d += V::kLanes) {
      const std::int64_t left = length - d;
      store_left(V::fma(by, load_left<V>(x + d, left), load_left<V>(to + d, left)), to + d, left);
    }
  }

  const LocalGradientParams<X>& params_;
  const LocalParams<X>& p_;
  std::int64_t batch_;
  const LocalSums<T>& sums_;
  std::int64_t depth_;
  std::int64_t columns_;
  LocalRow<V, X> row_;
  T* grad_out_copy_;
  T* grad_;  // dw, then ds
  const T* grad_out_ = nullptr;
};

template <class V, class X>
void add_local_gradients(const LocalGradientParams<X>& params, std::int64_t batch,
                         const std::int64_t* rows, std::int64_t count,
                         const LocalSums<Compute<X>>& sums, std::byte* scratch) noexcept {
  LocalGradient<V, X> gradient(params, batch, sums, scratch);
  for (std::int64_t i = 0; i < count; ++i) gradient.add(rows[i]);
}

template <class V, class X>
void store_local_key_gradients(const LocalGradientParams<X>& params, std::int64_t batch,
                               std::int64_t first, std::int64_t end,
                               const LocalSums<Compute<X>>* parts, std::int64_t count) noexcept {
  using T = Compute<X>;
  const auto store = [&](const View<X, 3>& view, T* LocalSums<T>::* sums) {
    if (view.data == nullptr) return;
    const std::int64_t length = view.shape[2];
    for (std::int64_t key = first; key < end; ++key) {
      X* to = view.data + batch * view.stride[0] + key * view.stride[1];
      for (std::int64_t d = 0; d < length; d += V::kLanes) {
        V sum = V::broadcast(T(0));
        for (std::int64_t i = 0; i < count; ++i) {
          if (key < parts[i].first || key >= parts[i].end) continue;
          const T* row = parts[i].*sums + (key - parts[i].first) * length;
          sum = sum + load_left<V>(row + d, length - d);
        }
        store_left(sum, to + d, length - d);
      }
    }
  };
  store(params.grad_key, &LocalSums<T>::key);
  store(params.grad_value, &LocalSums<T>::value);
}

}  // namespace
}  // namespace pyattn

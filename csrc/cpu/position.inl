// The positions that local-p predicts (Luong et al. 2015, arXiv:1508.04025, equation 9):
//   p_t = S sigmoid(v . tanh(W h_t))
// A block of rows goes through the product with W, tanh and v while its hidden numbers are in the
// cache: no array (T, P) is written. Every sum is in an order of its own, whichever rows are
// computed together. A position of some thousands shows every rounding before it: tanh and exp are
// the accurate ones, and the last step divides.
#pragma once

#include "core/position_params.h"
#include "cpu/product.inl"

namespace pyattn {
namespace {

// W h_t for some rows.
template <class T>
ProductParams<T> hidden_product(const PositionParams<T>& p) {
  return {.columns = p.weight.shape[0],
          .depth = p.weight.shape[1],
          .left_row = p.state.stride[1],
          .right = p.weight.data,
          .right_depth = p.weight.stride[1],
          .right_column = p.weight.stride[0],
          .out_row = p.weight.shape[0],
          .packed = p.packed};
}

template <class V>
void pack_positions(const PositionParams<typename V::Scalar>& p) noexcept {
  const auto params = hidden_product(p);
  for (std::int64_t i = 0; i * 4 * V::kLanes < params.columns; ++i) pack_product<V>(params, i);
}

template <class V>
V weighted_tanh(const typename V::Scalar* x, const typename V::Scalar* v, std::int64_t length) {
  V sum = V::broadcast(typename V::Scalar(0));
  for (std::int64_t a = 0; a < length; a += V::kLanes) {
    const std::int64_t left = length - a;
    sum = V::fma(load_left<V>(v + a, left), tanh_accurate(load_left<V>(x + a, left)), sum);
  }
  return sum;
}

template <class V>
void positions(const PositionParams<typename V::Scalar>& p, const PositionPart& part,
               typename V::Scalar* hidden) noexcept {
  using T = typename V::Scalar;
  const std::int64_t rows = part.end_row - part.first_row;
  auto product_params = hidden_product(p);
  product_params.rows = rows;
  product_params.left =
      p.state.data + part.batch * p.state.stride[0] + part.first_row * p.state.stride[1];
  product_params.out = hidden;
  const std::int64_t units = product_params.columns;
  for (std::int64_t i = 0; i * 4 * V::kLanes < units; ++i) {
    product<V>(product_params, {.panel = i, .first_row = 0, .end_row = rows});
  }
  const T keys = static_cast<T>(p.kv_lengths == nullptr ? p.keys : p.kv_lengths[part.batch]);
  T* centre = p.centre.data + part.batch * p.centre.stride[0] + part.first_row;
  const V limit = V::broadcast(sizeof(T) == 8 ? T(700) : T(87));
  const V zero = V::broadcast(T(0));
  for (std::int64_t row = 0; row < rows; row += V::kLanes) {
    V sum[V::kLanes];
    for (int i = 0; i < V::kLanes; ++i) {
      sum[i] = row + i < rows ? weighted_tanh<V>(hidden + (row + i) * units, p.v, units) : zero;
    }
    const V x = V::max(zero - limit, V::min(limit, sum_each(sum)));
    T lane[V::kLanes];
    exp_accurate(zero - x).store(lane);
    for (T& one : lane) one = T(1) / (T(1) + one) * keys;
    store_left(V::load(lane), centre + row, rows - row);
  }
}

}  // namespace
}  // namespace pyattn

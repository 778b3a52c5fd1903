// Instantiates every kernel for a pair of Vec types. The flags come from CMakeLists.txt.
#pragma once

#include "core/kernels.h"
#include "cpu/additive_few.inl"
#include "cpu/elementwise.inl"
#include "cpu/gru.inl"
#include "cpu/local_backward.inl"
#include "cpu/lstm.inl"
#include "cpu/normalisation.inl"
#include "cpu/position.inl"
#include "cpu/product.inl"
#include "cpu/rotary.inl"
#include "cpu/sdpa.inl"
#include "cpu/sdpa_backward.inl"

#ifndef PYATTN_ISA_FLAGS
#define PYATTN_ISA_FLAGS ""
#endif

namespace pyattn {
namespace {

template <class V>
constexpr Kernels<typename V::Scalar> kernels_for() {
  return {.erf = erf_array<V>,
          .gelu = gelu_array<V>,
          .softmax = softmax_rows<V>,
          .layer_norm = layer_norm_rows<V>,
          .rms_norm = rms_norm_rows<V>,
          .rms_norm_gradient = rms_norm_gradient_rows<V>,
          .gru = gru<V>,
          .lstm = lstm<V>,
          .gru_gradient = gru_gradient<V>,
          .lstm_gradient = lstm_gradient<V>,
          .pack_positions = pack_positions<V>,
          .positions = positions<V>,
          .pack_product = pack_product<V>,
          .product = product<V>,
          .product_columns = 4 * V::kLanes};
}

template <class V, class X>
constexpr AttentionKernels<X> attention_for() {
  AttentionKernels<X> table{
      .sdpa = sdpa<V, X>, .additive = additive<V, X>, .merge = merge_parts<V, X>};
  table.backward = {.add = add_gradients<V, X, DotGradient>,
                    .store_query = store_query_gradients<V, X>,
                    .store_keys = store_key_gradients<V, X>,
                    .store_few = nullptr,
                    .add_scores = add_scores<V, X, DotGradient>,
                    .store_scores = store_scores<V, X>};
  table.additive_backward = {.add = add_gradients<V, X, AdditiveGradient>,
                             .store_query = store_additive_query_gradients<V, X>,
                             .store_keys = store_key_gradients<V, X>,
                             .store_few = store_few_gradients<V, X>,
                             .add_scores = add_scores<V, X, AdditiveGradient>,
                             .store_scores = store_scores<V, X>};
  table.local = {.rows = local_rows<V, X>,
                 .add = add_local_gradients<V, X>,
                 .store_keys = store_local_key_gradients<V, X>};
  table.rotary = rotary<V, X>;
  return table;
}

template <class VecFloat, class VecDouble>
constexpr KernelTable make_table(const char* name) {
  return {.name = name,
          .flags = PYATTN_ISA_FLAGS,
          .f32 = kernels_for<VecFloat>(),
          .f64 = kernels_for<VecDouble>(),
          .attention_f32 = attention_for<VecFloat, float>(),
          .attention_f64 = attention_for<VecDouble, double>(),
          .attention_f16 = attention_for<VecFloat, Half>(),
          .attention_bf16 = attention_for<VecFloat, BFloat16>()};
}

}  // namespace
}  // namespace pyattn

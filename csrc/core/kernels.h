// The table of kernels: one per instruction set, filled in by csrc/cpu/isa_*.cpp, which export
// nothing else. Kernels are noexcept, check nothing and allocate nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/backward_params.h"
#include "core/local_params.h"
#include "core/position_params.h"
#include "core/product_params.h"
#include "core/recurrent_params.h"

namespace pyattn {

// The backward pass of a mechanism, in the pieces that core/backward.cpp puts together.
template <class X>
struct BackwardKernels {
  using T = Compute<X>;
  using Params = BackwardParams<X>;

  // Adds what the block's queries and keys give to `sums` and to the block's `query_sums`,
  // kBlockRows * D numbers in an order of its own.
  void (*add)(const Params&, const AttentionBlock&, const KeySums<T>& sums, T* query_sums,
              T* scratch) noexcept;
  void (*store_query)(const Params&, const AttentionBlock&, const T* query_sums,
                      T* scratch) noexcept;
  // Adds the parts up in order and stores the gradients of keys first .. end - 1.
  void (*store_keys)(const Params&, std::int64_t batch, std::int64_t group, std::int64_t first,
                     std::int64_t end, const KeySums<T>* parts, std::int64_t count) noexcept;
  // Stores the gradients of a block of up to kFewQueries queries that has its keys to itself, and
  // what it gives to KeySums::v. Null where a mechanism has no such kernel.
  void (*store_few)(const Params&, const AttentionBlock&, T* v_sums, T* scratch) noexcept;
  void (*add_scores)(const Params&, const AttentionBlock&, const ScoreSums<T>&,
                     T* scratch) noexcept;
  void (*store_scores)(const Params&, const ScoreSums<T>&, const ScoreTarget&) noexcept;
};

// Attention within windows, in the pieces that core/local.cpp puts together. LocalRow and
// LocalGradient carve up the scratch.
template <class X>
struct LocalKernels {
  using T = Compute<X>;
  using Params = LocalGradientParams<X>;

  void (*rows)(const LocalParams<X>&, std::int64_t batch, const std::int64_t* rows,
               std::int64_t count, std::byte* scratch) noexcept;
  // Stores the gradients of `count` rows and adds what they give to keys, values and v to `sums`.
  void (*add)(const Params&, std::int64_t batch, const std::int64_t* rows, std::int64_t count,
              const LocalSums<T>& sums, std::byte* scratch) noexcept;
  // Adds the parts up in order and stores the gradients of keys first .. end - 1.
  void (*store_keys)(const Params&, std::int64_t batch, std::int64_t first, std::int64_t end,
                     const LocalSums<T>* parts, std::int64_t count) noexcept;
};

template <class X>
struct AttentionKernels {
  using Scratch = Compute<X>*;
  using Run = void (*)(const AttentionParams<X>&, const AttentionBlock&, Scratch) noexcept;
  // Merges the states of `count` parts of a block, `step` elements apart, and stores its output.
  using Merge = void (*)(const AttentionParams<X>&, const AttentionBlock&, const Compute<X>* parts,
                         std::int64_t count, std::int64_t step, Scratch) noexcept;

  Run sdpa;
  Run additive;
  Merge merge;
  BackwardKernels<X> backward;
  BackwardKernels<X> additive_backward;
  LocalKernels<X> local;
  void (*rotary)(const RotaryParams<X>&, const RotaryBlock&) noexcept;
};

template <class T>
struct Kernels {
  using Pointwise = void (*)(const T* input, T* output, std::int64_t count) noexcept;

  Pointwise erf;
  Pointwise gelu;
  void (*softmax)(const Rows<T>&) noexcept;
  void (*layer_norm)(const Rows<T>&, const LayerNormParams<T>&) noexcept;
  void (*rms_norm)(const Rows<T>&, const RmsNormParams<T>&) noexcept;
  void (*rms_norm_gradient)(const RmsNormGradientRows<T>&, const RmsNormParams<T>&) noexcept;

  using Recurrent = void (*)(const RecurrentParams<T>&, const RecurrentStage&) noexcept;
  Recurrent gru;
  Recurrent lstm;
  Recurrent gru_gradient;
  Recurrent lstm_gradient;

  void (*pack_positions)(const PositionParams<T>&) noexcept;
  void (*positions)(const PositionParams<T>&, const PositionPart&, T* hidden) noexcept;

  void (*pack_product)(const ProductParams<T>&, std::int64_t panel) noexcept;
  void (*product)(const ProductParams<T>&, const ProductPart&) noexcept;
  std::int64_t product_columns;  // of a panel
};

struct KernelTable {
  const char* name;
  const char* flags;  // what the compiler was told, for build_info()
  Kernels<float> f32;
  Kernels<double> f64;
  AttentionKernels<float> attention_f32;
  AttentionKernels<double> attention_f64;
  AttentionKernels<Half> attention_f16;
  AttentionKernels<BFloat16> attention_bf16;
};

}  // namespace pyattn

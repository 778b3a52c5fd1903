// Element-wise and row-wise kernels over arrays of any strides.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/kernels.h"

namespace pyattn {

inline constexpr std::size_t kMaxRank = 64;  // as in NumPy

// An input of any rank up to kMaxRank and strides (in elements). The output is dense, in C order.
template <class T>
struct StridedArray {
  const T* data = nullptr;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> stride;
};

template <class T>
void run_pointwise(const StridedArray<T>& input, T* output, typename Kernels<T>::Pointwise kernel);

// Rows are the last axis; the rank is at least 1.
template <class T>
void run_softmax(const StridedArray<T>& input, T* output);

template <class T>
void run_layer_norm(const StridedArray<T>& input, T* output, const LayerNormParams<T>& params);

// Rows are the last axes, as many as `scale` has; its shape is theirs.
template <class T>
void run_rms_norm(const StridedArray<T>& input, const StridedArray<T>& scale, T epsilon, T* output);

template <class T>
struct RmsNormGradient {
  StridedArray<T> input;
  StridedArray<T> gradient;  // of the output, in its shape
  StridedArray<T> scale;
  T epsilon = T(0);
  T* input_gradient = nullptr;  // dense
  T* scale_gradient = nullptr;  // dense, in the shape of scale; or null
};

template <class T>
void run_rms_norm_gradient(const RmsNormGradient<T>& arrays);

}  // namespace pyattn

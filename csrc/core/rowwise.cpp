#include "core/rowwise.h"

#include <algorithm>

#include "core/isa.h"
#include "core/parallel.h"

namespace pyattn {
namespace {

// Elements per task: a few kilobytes, and a multiple of every register.
constexpr std::int64_t kChunk = 4096;
// Rough costs of one element in multiply-adds.
constexpr double kPointwiseWork = 16;
constexpr double kRowWork = 16;
constexpr double kRmsNormWork = 4;
// The gradient of a scale is summed in at most so many parts, whatever the number of threads.
constexpr std::int64_t kScaleParts = 32;

template <class T>
std::int64_t element_count(const StridedArray<T>& array) {
  std::int64_t count = 1;
  for (const std::int64_t length : array.shape) count *= length;
  return count;
}

template <class T>
bool is_dense(const StridedArray<T>& array) {
  std::int64_t expected = 1;
  for (std::size_t axis = array.shape.size(); axis-- > 0;) {
    if (array.shape[axis] != 1 && array.stride[axis] != expected) return false;
    expected *= array.shape[axis];
  }
  return true;
}

// Copies elements [first, last) of the C order of `array` to `to`. Allocates nothing: it runs in a
// task.
template <class T>
void gather(const StridedArray<T>& array, std::int64_t first, std::int64_t last, T* to) {
  const std::size_t rank = array.shape.size();
  std::int64_t index[kMaxRank];
  std::int64_t rest = first;
  std::int64_t offset = 0;
  for (std::size_t axis = rank; axis-- > 0;) {
    index[axis] = rest % array.shape[axis];
    rest /= array.shape[axis];
    offset += index[axis] * array.stride[axis];
  }
  const std::int64_t inner = rank > 0 ? array.shape[rank - 1] : 1;
  const std::int64_t step = rank > 0 ? array.stride[rank - 1] : 0;
  while (first < last) {
    const std::int64_t start = rank > 0 ? index[rank - 1] : 0;
    const std::int64_t run = std::min(inner - start, last - first);
    for (std::int64_t i = 0; i < run; ++i) to[i] = array.data[offset + i * step];
    to += run;
    first += run;
    if (first == last) return;
    // Carry: back to the start of the last axis, one further on the axes before it.
    offset -= start * step;
    index[rank - 1] = 0;
    for (std::size_t axis = rank - 1; axis-- > 0;) {
      offset += array.stride[axis];
      if (++index[axis] < array.shape[axis]) break;
      offset -= index[axis] * array.stride[axis];
      index[axis] = 0;
    }
  }
}

// Calls part(input, output, first, last) over ranges of whole units. An input that is not dense is
// gathered into the output first, and the kernels are then run in place.
template <class T, class Part>
void for_each_part(const StridedArray<T>& input, T* output, std::int64_t unit, double work,
                   const Part& part) {
  const std::int64_t count = element_count(input);
  if (count == 0) return;
  const bool dense = is_dense(input);
  const std::int64_t chunk = std::max<std::int64_t>(unit, kChunk / unit * unit);
  TaskLoop loop{.tasks = (count + chunk - 1) / chunk};
  loop.work = static_cast<double>(count) * work;
  auto body = [&](std::int64_t task, int) {
    const std::int64_t first = task * chunk;
    const std::int64_t last = std::min(first + chunk, count);
    if (!dense) gather(input, first, last, output + first);
    part(dense ? input.data + first : output + first, output + first, last - first);
  };
  parallel_for(loop, loop_threads(loop), body);
}

template <class T>
void for_each_row_range(const StridedArray<T>& input, std::int64_t length, T* output, double work,
                        auto&& kernel) {
  for_each_part(
      input, output, std::max<std::int64_t>(length, 1), work,
      [&](const T* from, T* to, std::int64_t elements) {
        kernel(Rows<T>{.input = from, .output = to, .count = elements / length, .length = length});
      });
}

// The elements of an array one behind the other: its own, or a copy.
template <class T>
class Dense {
 public:
  explicit Dense(const StridedArray<T>& array) : data_(array.data) {
    const std::int64_t count = element_count(array);
    if (count == 0 || is_dense(array)) return;
    copy_.resize(static_cast<std::size_t>(count));
    gather(array, 0, count, copy_.data());
    data_ = copy_.data();
  }
  Dense(const Dense&) = delete;
  Dense& operator=(const Dense&) = delete;
  const T* data() const { return data_; }

 private:
  std::vector<T> copy_;
  const T* data_;
};

// Dense rows [first, first + count); the gradient of the scale is added to `part`, if that is
// there.
template <class T>
void rms_norm_gradient_rows(const RmsNormGradient<T>& arrays, const RmsNormParams<T>& params,
                            std::int64_t first, std::int64_t count, T* part) {
  const std::int64_t length = element_count(arrays.scale);
  const std::int64_t at = first * length;
  kernels_of<T>(kernels()).rms_norm_gradient({.input = arrays.input.data + at,
                                              .gradient = arrays.gradient.data + at,
                                              .input_gradient = arrays.input_gradient + at,
                                              .scale_gradient = part,
                                              .count = count,
                                              .length = length},
                                             params);
}

// One row of any strides: the input is gathered to where its gradient goes, and replaced by it.
template <class T>
void rms_norm_gradient_row(const RmsNormGradient<T>& arrays, const RmsNormParams<T>& params,
                           std::int64_t row, T* copy, T* part) {
  const std::int64_t length = element_count(arrays.scale);
  const std::int64_t at = row * length;
  T* result = arrays.input_gradient + at;
  gather(arrays.input, at, at + length, result);
  gather(arrays.gradient, at, at + length, copy);
  kernels_of<T>(kernels()).rms_norm_gradient({.input = result,
                                              .gradient = copy,
                                              .input_gradient = result,
                                              .scale_gradient = part,
                                              .count = 1,
                                              .length = length},
                                             params);
}

// out[i] = sum over the parts, in their order.
template <class T>
void sum_parts(const std::vector<T>& parts, std::int64_t length, T* out) {
  for (std::int64_t i = 0; i < length; ++i) {
    double sum = 0;
    for (auto at = static_cast<std::size_t>(i); at < parts.size();
         at += static_cast<std::size_t>(length)) {
      sum += static_cast<double>(parts[at]);
    }
    out[i] = static_cast<T>(sum);
  }
}

}  // namespace

template <class T>
void run_pointwise(const StridedArray<T>& input, T* output, typename Kernels<T>::Pointwise kernel) {
  for_each_part(input, output, 1, kPointwiseWork, kernel);
}

template <class T>
void run_softmax(const StridedArray<T>& input, T* output) {
  const auto kernel = kernels_of<T>(kernels()).softmax;
  for_each_row_range(input, input.shape.back(), output, kRowWork, kernel);
}

template <class T>
void run_layer_norm(const StridedArray<T>& input, T* output, const LayerNormParams<T>& params) {
  const auto kernel = kernels_of<T>(kernels()).layer_norm;
  for_each_row_range(input, input.shape.back(), output, kRowWork,
                     [&](const Rows<T>& rows) { kernel(rows, params); });
}

template <class T>
void run_rms_norm(const StridedArray<T>& input, const StridedArray<T>& scale, T epsilon,
                  T* output) {
  const Dense<T> scales(scale);
  const RmsNormParams<T> params{.scale = scales.data(), .epsilon = epsilon};
  const auto kernel = kernels_of<T>(kernels()).rms_norm;
  for_each_row_range(input, element_count(scale), output, kRmsNormWork,
                     [&](const Rows<T>& rows) { kernel(rows, params); });
}

template <class T>
void run_rms_norm_gradient(const RmsNormGradient<T>& arrays) {
  const std::int64_t count = element_count(arrays.input);
  const std::int64_t length = element_count(arrays.scale);
  if (count == 0) {
    if (arrays.scale_gradient != nullptr) std::fill_n(arrays.scale_gradient, length, T(0));
    return;
  }
  const Dense<T> scale(arrays.scale);
  const bool dense = is_dense(arrays.input) && is_dense(arrays.gradient);
  const std::int64_t rows = count / length;
  const std::int64_t rows_per_part =
      std::max((rows + kScaleParts - 1) / kScaleParts, std::max<std::int64_t>(1, kChunk / length));
  TaskLoop loop{.tasks = (rows + rows_per_part - 1) / rows_per_part};
  loop.work = static_cast<double>(count) * 2 * kRmsNormWork;
  const int workers = loop_threads(loop);
  std::vector<T> parts;
  if (arrays.scale_gradient != nullptr) parts.resize(static_cast<std::size_t>(loop.tasks * length));
  std::vector<T> gathered(dense ? 0 : static_cast<std::size_t>(workers * length));
  const RmsNormParams<T> params{.scale = scale.data(), .epsilon = arrays.epsilon};
  auto body = [&](std::int64_t task, int worker) {
    T* part = parts.empty() ? nullptr : parts.data() + task * length;
    const std::int64_t first = task * rows_per_part;
    const std::int64_t end = std::min(first + rows_per_part, rows);
    if (dense) {
      rms_norm_gradient_rows(arrays, params, first, end - first, part);
    } else {
      T* copy = gathered.data() + worker * length;
      for (std::int64_t row = first; row < end; ++row) {
        rms_norm_gradient_row(arrays, params, row, copy, part);
      }
    }
  };
  parallel_for(loop, workers, body);
  if (arrays.scale_gradient != nullptr) sum_parts(parts, length, arrays.scale_gradient);
}

template void run_pointwise(const StridedArray<float>&, float*, Kernels<float>::Pointwise);
template void run_pointwise(const StridedArray<double>&, double*, Kernels<double>::Pointwise);
template void run_softmax(const StridedArray<float>&, float*);
template void run_softmax(const StridedArray<double>&, double*);
template void run_layer_norm(const StridedArray<float>&, float*, const LayerNormParams<float>&);
template void run_layer_norm(const StridedArray<double>&, double*, const LayerNormParams<double>&);
template void run_rms_norm(const StridedArray<float>&, const StridedArray<float>&, float, float*);
template void run_rms_norm(const StridedArray<double>&, const StridedArray<double>&, double,
                           double*);
template void run_rms_norm_gradient(const RmsNormGradient<float>&);
template void run_rms_norm_gradient(const RmsNormGradient<double>&);

}  // namespace pyattn

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
void for_each_row_range(const StridedArray<T>& input, T* output, auto&& kernel) {
  const std::int64_t length = input.shape.back();
  for_each_part(
      input, output, std::max<std::int64_t>(length, 1), kRowWork,
      [&](const T* from, T* to, std::int64_t elements) {
        kernel(Rows<T>{.input = from, .output = to, .count = elements / length, .length = length});
      });
}

}  // namespace

template <class T>
void run_pointwise(const StridedArray<T>& input, T* output, typename Kernels<T>::Pointwise kernel) {
  for_each_part(input, output, 1, kPointwiseWork, kernel);
}

template <class T>
void run_softmax(const StridedArray<T>& input, T* output) {
  for_each_row_range(input, output, kernels_of<T>(kernels()).softmax);
}

template <class T>
void run_layer_norm(const StridedArray<T>& input, T* output, const LayerNormParams<T>& params) {
  const auto kernel = kernels_of<T>(kernels()).layer_norm;
  for_each_row_range(input, output, [&](const Rows<T>& rows) { kernel(rows, params); });
}

template void run_pointwise(const StridedArray<float>&, float*, Kernels<float>::Pointwise);
template void run_pointwise(const StridedArray<double>&, double*, Kernels<double>::Pointwise);
template void run_softmax(const StridedArray<float>&, float*);
template void run_softmax(const StridedArray<double>&, double*);
template void run_layer_norm(const StridedArray<float>&, float*, const LayerNormParams<float>&);
template void run_layer_norm(const StridedArray<double>&, double*, const LayerNormParams<double>&);

}  // namespace pyattn

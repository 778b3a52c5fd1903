#include "core/recurrent.h"

#include <algorithm>

#include "core/parallel.h"
#include "core/scratch.h"

namespace pyattn {
namespace {

// Multiply-adds of a step from which on threads share it: a microsecond or two.
constexpr double kSharedStep = 1 << 16;
// So that a thread that comes late, or is away for a while, holds up half of its share.
constexpr std::int64_t kChunksPerThread = 2;

}  // namespace

template <class T>
void run_recurrent(RecurrentParams<T> params, typename Kernels<T>::Recurrent kernel,
                   std::int64_t gates) {
  const std::int64_t size = params.size;
  if (params.batch == 0 || params.length == 0 || size == 0) return;
  const std::int64_t groups = (size + kUnitGroup - 1) / kUnitGroup;
  // One step of one entry, as in decoding, reads the weights only once.
  const bool once =
      params.batch == 1 && params.length == 1 && params.reset_after && params.grad_gates == nullptr;
  if (!once) {
    const std::int64_t elements = gates * size * groups * kUnitGroup;
    params.packed =
        reinterpret_cast<T*>(thread_scratch(static_cast<std::size_t>(elements) * sizeof(T)));
  }

  const double step = static_cast<double>(params.batch) * static_cast<double>(gates) *
                      static_cast<double>(size) * static_cast<double>(size);
  const int most = step < kSharedStep ? 1 : threads();
  StageLoop loop{.stages = 1 + params.length * (params.reset_after ? 1 : 2)};
  loop.chunks = most == 1 ? 1 : std::min(groups * 2, kChunksPerThread * most);
  auto body = [&](std::int64_t stage, std::int64_t chunk) {
    kernel(params, {.index = stage, .chunk = chunk, .chunks = loop.chunks});
  };
  parallel_stages(loop, std::min<int>(most, static_cast<int>(loop.chunks)), body);
}

template <class T>
void finish_recurrent(const RecurrentParams<T>& params, T* last) {
  for (std::int64_t b = 0; b < params.batch; ++b) {
    const std::int64_t steps = params.lengths == nullptr ? params.length : params.lengths[b];
    T* rows = params.output + b * params.length * params.size;
    std::fill(rows + steps * params.size, rows + params.length * params.size, T(0));
    const T* from = steps == 0 ? params.h0 + b * params.size
                               : rows + (params.reverse ? 0 : steps - 1) * params.size;
    std::copy_n(from, params.size, last + b * params.size);
  }
}

template void finish_recurrent(const RecurrentParams<float>&, float*);
template void finish_recurrent(const RecurrentParams<double>&, double*);
template void run_recurrent(RecurrentParams<float>, Kernels<float>::Recurrent, std::int64_t);
template void run_recurrent(RecurrentParams<double>, Kernels<double>::Recurrent, std::int64_t);

}  // namespace pyattn

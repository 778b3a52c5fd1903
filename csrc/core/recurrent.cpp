#include "core/recurrent.h"

#include <algorithm>
#include <utility>

#include "core/parallel.h"
#include "core/scratch.h"

namespace pyattn {
namespace {

// Multiply-adds of a step from which on threads share it: a microsecond or two.
constexpr double kSharedStep = 1 << 16;
// So that a thread that comes late, or is away for a while, holds up half of its share.
constexpr std::int64_t kChunksPerThread = 2;
// Rows of the input that pass a panel of their weights, and numbers in them: 512 KiB of floats,
// which stay in the second-level cache beside the panel.
constexpr std::int64_t kBlockRows = 192;
constexpr std::int64_t kBlockNumbers = 1 << 17;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

template <class T>
std::int64_t block_steps(const RecurrentParams<T>& p) {
  const std::int64_t rows =
      std::clamp<std::int64_t>(kBlockNumbers / std::max<std::int64_t>(p.inputs, 1), 1, kBlockRows);
  return std::clamp<std::int64_t>(rows / p.batch, 1, p.length);
}

// Shares a piece of memory out.
template <class T>
class Pieces {
 public:
  explicit Pieces(std::int64_t elements)
      : next_(
            reinterpret_cast<T*>(thread_scratch(static_cast<std::size_t>(elements) * sizeof(T)))) {}
  T* take(std::int64_t elements) { return std::exchange(next_, next_ + elements); }

 private:
  T* next_;
};

// Room for the packed weights, and for the sums of a block of steps unless they are kept.
template <class T>
void provide(RecurrentParams<T>& p, std::int64_t gates) {
  const bool forward = p.grad_gates == nullptr;
  // One step of one entry, as in decoding, reads the weights only once.
  const bool once = p.batch == 1 && p.length == 1 && p.reset_after && forward;
  const std::int64_t units = ceil_div(p.size, kUnitGroup) * kUnitGroup;
  const std::int64_t state = once ? 0 : gates * p.size * units;
  const std::int64_t input = once || !forward ? 0 : gates * p.inputs * units;
  if (forward) p.block = block_steps(p);
  const std::int64_t sums = p.gates != nullptr ? 0 : gates * p.block * p.batch * units;
  Pieces<T> pieces(state + input + sums);
  if (state > 0) p.packed = pieces.take(state);
  if (!once && forward) p.packed_input = pieces.take(input);
  if (sums > 0) p.gates = pieces.take(sums);
}

}  // namespace

template <class T>
void run_recurrent(RecurrentParams<T> params, typename Kernels<T>::Recurrent kernel,
                   std::int64_t gates) {
  const std::int64_t size = params.size;
  if (params.batch == 0 || params.length == 0 || size == 0) return;
  provide(params, gates);
  const double step = static_cast<double>(params.batch) * static_cast<double>(gates) *
                      static_cast<double>(size) * static_cast<double>(size + params.inputs);
  const int most = step < kSharedStep ? 1 : threads();
  StageLoop loop{.stages = params.length * (params.reset_after ? 1 : 2)};
  // A last stage finishes what the gradient of the last step leaves.
  if (params.grad_gates != nullptr) ++loop.stages;
  const std::int64_t groups = ceil_div(size, kUnitGroup);
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

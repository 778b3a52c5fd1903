#include "core/rotary.h"

#include <algorithm>

#include "core/isa.h"
#include "core/parallel.h"

namespace pyattn {
namespace {

// Elements per task, and the rough cost of one in multiply-adds: memory is what it waits for.
constexpr std::int64_t kTaskElements = 1 << 14;
constexpr double kElementWork = 4;

}  // namespace

template <class X>
void run_rotary(const RotaryParams<X>& params) {
  const auto& [batch, heads, length, size] = params.input.shape;
  if (batch == 0 || heads == 0 || length == 0 || size == 0) return;
  const std::int64_t rows = std::clamp<std::int64_t>(kTaskElements / (heads * size), 1, length);
  const std::int64_t blocks = (length + rows - 1) / rows;
  TaskLoop loop{.tasks = batch * blocks};
  loop.work = static_cast<double>(batch) * static_cast<double>(length) *
              static_cast<double>(heads * size) * kElementWork;
  const auto kernel = attention_kernels_of<X>(kernels()).rotary;
  auto body = [&](std::int64_t task, int) {
    const std::int64_t first = task % blocks * rows;
    kernel(params, {.batch = task / blocks,
                    .first_row = first,
                    .rows = std::min(rows, params.input.shape[2] - first)});
  };
  parallel_for(loop, loop_threads(loop), body);
}

template void run_rotary(const RotaryParams<float>&);
template void run_rotary(const RotaryParams<double>&);
template void run_rotary(const RotaryParams<Half>&);
template void run_rotary(const RotaryParams<BFloat16>&);

}  // namespace pyattn

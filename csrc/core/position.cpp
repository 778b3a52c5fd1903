#include "core/position.h"

#include <algorithm>

#include "core/isa.h"
#include "core/parallel.h"
#include "core/product_params.h"
#include "core/scratch.h"

namespace pyattn {
namespace {

// Multiply-adds that take as long as v_a tanh(x_a).
constexpr double kTanhWork = 12;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace

template <class T>
void run_positions(PositionParams<T> params) {
  const std::int64_t batch = params.state.shape[0];
  const std::int64_t rows = params.state.shape[1];
  const std::int64_t units = params.weight.shape[0];
  const std::int64_t depth = params.weight.shape[1];
  if (batch == 0 || rows == 0) return;
  const auto& kernel = kernels_of<T>(kernels());
  const std::int64_t columns = ceil_div(units, kernel.product_columns) * kernel.product_columns;
  // Worth packing for more than a row, as in product.cpp.
  const bool once = batch * rows == 1 && params.weight.stride[1] == 1;
  const std::int64_t packed = once ? 0 : depth * columns;
  TaskLoop loop{.tasks = batch * ceil_div(rows, kPositionRows)};
  loop.work = static_cast<double>(batch * rows) * static_cast<double>(units) *
              (static_cast<double>(depth) + kTanhWork);
  const int workers = loop_threads(loop);
  const std::int64_t hidden = std::min(rows, kPositionRows) * columns;
  auto* memory = reinterpret_cast<T*>(
      thread_scratch(static_cast<std::size_t>(packed + workers * hidden) * sizeof(T)));
  if (!once) {
    params.packed = memory;
    kernel.pack_positions(params);
  }
  const std::int64_t blocks = ceil_div(rows, kPositionRows);
  auto body = [&](std::int64_t task, int worker) {
    const std::int64_t first = task % blocks * kPositionRows;
    const PositionPart part{.batch = task / blocks,
                            .first_row = first,
                            .end_row = std::min(first + kPositionRows, rows)};
    kernel.positions(params, part, memory + packed + worker * hidden);
  };
  parallel_for(loop, workers, body);
}

template void run_positions(PositionParams<float>);
template void run_positions(PositionParams<double>);

}  // namespace pyattn

#include "core/product.h"

#include <algorithm>

#include "core/isa.h"
#include "core/parallel.h"
#include "core/scratch.h"

namespace pyattn {
namespace {

// Rows of a task, which bring a piece of a panel into the cache once for all of them.
constexpr std::int64_t kTaskRows = 192;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace

template <class T>
void run_product(ProductParams<T> params) {
  if (params.rows == 0 || params.columns == 0) return;
  const auto& kernel = kernels_of<T>(kernels());
  const std::int64_t panels = ceil_div(params.columns, kernel.product_columns);
  const std::int64_t elements = params.depth * panels * kernel.product_columns;
  // The rows of a transposed matrix that meet a single row are read only once.
  const bool once = params.rows == 1 && params.left_depth == 1 && params.right_depth == 1 &&
                    params.right_column != 1;
  if (!once) {
    params.packed =
        reinterpret_cast<T*>(thread_scratch(static_cast<std::size_t>(elements) * sizeof(T)));
    TaskLoop packing{.tasks = panels, .work = static_cast<double>(elements)};
    auto pack = [&](std::int64_t panel, int) { kernel.pack_product(params, panel); };
    parallel_for(packing, loop_threads(packing), pack);
  }

  // Neighbouring tasks share a panel.
  const std::int64_t blocks = ceil_div(params.rows, kTaskRows);
  TaskLoop loop{.tasks = panels * blocks};
  loop.work = static_cast<double>(params.rows) * static_cast<double>(elements);
  auto body = [&](std::int64_t task, int) {
    const std::int64_t block = task % blocks;
    kernel.product(params, {.panel = task / blocks,
                            .first_row = params.rows * block / blocks,
                            .end_row = params.rows * (block + 1) / blocks});
  };
  parallel_for(loop, loop_threads(loop), body);
}

template void run_product(ProductParams<float>);
template void run_product(ProductParams<double>);

}  // namespace pyattn

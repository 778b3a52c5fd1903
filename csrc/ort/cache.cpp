// A cache of keys or values, (B, G, C, D), with new rows (B, G, T, D) written into it.
#include <cstring>

#include "core/parallel.h"
#include "ort/call.h"

namespace pyattn::ort {
namespace {

void check(const Call& call) {
  const Tensor& cache = call.tensor(Role::cache);
  const Tensor& update = call.tensor(Role::update);
  const auto both = {Role::cache, Role::update};
  call.require(cache.rank == 4 && update.rank == 4, "cache and update must have 4 axes", both);
  for (const std::size_t axis : {0UL, 1UL, 3UL}) {
    call.require(cache.shape[axis] == update.shape[axis], "cache and update must share B, G and D",
                 both);
  }
  call.require(update.shape[2] <= cache.shape[2], "the cache must have room for the rows", both);
}

}  // namespace

// Where ONNX Runtime has bound the output to the memory of the input, only the rows are written.
template <class X>
void compute_cache(const Call& call) {
  check(call);
  const Tensor& cache = call.tensor(Role::cache);
  const Tensor& update = call.tensor(Role::update);
  const std::int64_t groups = cache.shape[1];
  const std::int64_t room = cache.shape[2] * cache.shape[3];
  const std::int64_t rows = update.shape[2] * update.shape[3];
  const auto starts =
      call.integers(Role::write_indices, cache.shape[0], 0, cache.shape[2] - update.shape[2]);
  const Tensor out = call.result(0);
  if (out.data == nullptr) return;
  const auto* before = static_cast<const X*>(cache.data);
  const auto* given = static_cast<const X*>(update.data);
  auto* after = static_cast<X*>(out.data);
  const bool in_place = before == after;
  auto copy = [&](std::int64_t task, int) noexcept {
    const std::int64_t start = starts[static_cast<std::size_t>(task / groups)] * cache.shape[3];
    const auto put = [](X* to, const X* from, std::int64_t count) {
      if (count > 0) std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(X));
    };
    X* to = after + task * room;
    if (!in_place) {
      const X* from = before + task * room;
      put(to, from, start);
      put(to + start + rows, from + start + rows, room - start - rows);
    }
    put(to + start, given + task * rows, rows);
  };
  const TaskLoop loop{.tasks = cache.shape[0] * groups,
                      .work = static_cast<double>(cache.shape[0] * groups) *
                              static_cast<double>(in_place ? rows : room)};
  parallel_for(loop, loop_threads(loop), copy);
}

template void compute_cache<float>(const Call&);
template void compute_cache<double>(const Call&);
template void compute_cache<Half>(const Call&);
template void compute_cache<BFloat16>(const Call&);

}  // namespace pyattn::ort

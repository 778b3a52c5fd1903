// A loop over independent tasks on a persistent pool of threads.
//
// Which thread runs which task varies from run to run, so a task's result may depend on its index
// only. Work below kSerialWork never reaches the pool. When the pool is busy with another caller's
// loop, the second caller runs its own loop alone. After a fork the child starts a new pool.
#pragma once

#include <cstdint>

namespace pyattn {

int threads();
// Throws std::invalid_argument unless 1 <= count <= kMaxThreads.
void set_threads(std::int64_t count);

inline constexpr std::int64_t kMaxThreads = 1024;

// About a quarter of a million multiply-adds: some 10 microseconds, what waking a thread costs.
inline constexpr double kSerialWork = 1 << 18;

struct TaskLoop {
  std::int64_t tasks = 0;
  std::int64_t grain = 1;  // consecutive tasks handed out together
  double work = 0;         // multiply-adds of the whole loop, roughly
};

// worker < threads that take part: an index into per-worker scratch.
using TaskFunction = void (*)(void* context, std::int64_t task, int worker) noexcept;

// How many threads parallel_for will use at most for this loop, hence how much scratch to provide.
int loop_threads(const TaskLoop& loop);

void parallel_for(const TaskLoop& loop, int max_threads, TaskFunction function, void* context);

template <class Body>
void parallel_for(const TaskLoop& loop, int max_threads, Body& body) {
  parallel_for(
      loop, max_threads,
      [](void* context, std::int64_t task, int worker) noexcept {
        (*static_cast<Body*>(context))(task, worker);
      },
      &body);
}

}  // namespace pyattn

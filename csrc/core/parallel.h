// A loop over independent tasks on a persistent pool of threads.
//
// Which thread runs which task varies from run to run, so a task's result may depend on its index
// only. Work below kSerialWork never reaches the pool. When the pool is busy with another caller's
// loop, the second caller runs its own loop alone. After a fork the child starts a new pool.
#pragma once

#include <cstdint>

namespace pyattn {

// How many threads a loop of this thread may use.
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

// Threads that are somebody else's. `run` calls lane(context, i) for each i in 0 .. lanes - 1 once,
// on any threads and in any order, and returns when all that it began are done.
struct Executor {
  using Lane = void (*)(void* context, int lane) noexcept;

  void (*run)(void* owner, int lanes, Lane lane, void* context) noexcept = nullptr;
  void* owner = nullptr;
  int lanes = 1;  // at most
};

// As long as it lives, the loops of the thread that made it run on `executor`, not on the pool.
class ExecutorScope {
 public:
  explicit ExecutorScope(const Executor& executor);
  ~ExecutorScope();
  ExecutorScope(const ExecutorScope&) = delete;
  ExecutorScope& operator=(const ExecutorScope&) = delete;

 private:
  const Executor* outer_;
};

// Stages one behind the other, each of which is a set of chunks in any order: the steps of a
// recurrence. A chunk begins when all chunks of the stage before it are done.
struct StageLoop {
  std::int64_t stages = 0;
  std::int64_t chunks = 1;
};

using StageFunction = void (*)(void* context, std::int64_t stage, std::int64_t chunk) noexcept;

// Any number of threads up to max_threads takes part, from any stage on, so nobody waits for a
// thread that may never come: each takes chunks that nobody has, first those that it had in the
// stage before, whose data its cache holds. Throws std::bad_alloc.
void parallel_stages(const StageLoop& loop, int max_threads, StageFunction function, void* context);

template <class Body>
void parallel_stages(const StageLoop& loop, int max_threads, Body& body) {
  parallel_stages(
      loop, max_threads,
      [](void* context, std::int64_t stage, std::int64_t chunk) noexcept {
        (*static_cast<Body*>(context))(stage, chunk);
      },
      &body);
}

}  // namespace pyattn

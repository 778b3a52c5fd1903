#include "core/parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "core/cpu_quota.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define PYATTN_HAS_FORK 1
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <emmintrin.h>
#endif

namespace pyattn {
namespace {

// How long a thread looks for work before it sleeps. Long enough for the gap between two calls of a
// loop in Python: a thread that sleeps on an idle virtual processor takes a millisecond to come
// back, and with 30 microseconds two calls in a row ran on one thread (227 GFLOP/s instead of 380).
// Short, and with a yield in each turn, for the sake of other libraries' threads: a millisecond of
// plain spinning made NumPy's matrix products between our kernels a third slower.
constexpr int kTurns = 1000;
constexpr std::chrono::microseconds kSpin{200};

void pause() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
  asm volatile("yield");
#endif
}

struct Job {
  TaskFunction function = nullptr;
  void* context = nullptr;
  std::int64_t tasks = 0;
  std::int64_t grain = 1;
};

// Carries out tasks that nobody has, `grain` at a time, until there are none.
void take_tasks(const Job& job, std::atomic<std::int64_t>& next, int worker) {
  while (true) {
    const std::int64_t first = next.fetch_add(job.grain, std::memory_order_relaxed);
    if (first >= job.tasks) return;
    const std::int64_t last = std::min(first + job.grain, job.tasks);
    for (std::int64_t task = first; task < last; ++task) job.function(job.context, task, worker);
  }
}

// True as soon as `done` is, false when the time is up. After the first turns it lets other threads
// go first: another library's pool may want this processor.
template <class Done>
bool spin_until(Done&& done) {
  for (int i = 0; i < kTurns; ++i) {
    if (done()) return true;
    pause();
  }
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    std::this_thread::yield();
    if (done()) return true;
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

// `gate` holds an epoch (upper bits) and the seats left at the current job. A worker takes a seat
// by a compare-and-swap on the value it inspected; the seat's number is its worker index. The
// caller never waits for a worker to wake: when its own share is done it withdraws the free seats
// and waits only for the workers that are seated. They alone touch job_ and next_.
class Pool {
 public:
  // At most one run at a time: the caller holds busy().
  void run(const Job& job, std::uint32_t helpers) {
    grow(helpers);
    job_ = job;
    next_.store(0, std::memory_order_relaxed);
    finished_.store(0, std::memory_order_relaxed);
    const std::uint32_t epoch = gate_.load(std::memory_order_relaxed) + kEpochStep;
    gate_.store(epoch | helpers, std::memory_order_release);
    gate_.notify_all();
    work(0);
    const std::uint32_t free = gate_.fetch_and(~kSeats, std::memory_order_acq_rel) & kSeats;
    await(helpers - free);
  }

  std::mutex& busy() { return busy_; }

 private:
  static constexpr std::uint32_t kSeats = 0xfff;
  static constexpr std::uint32_t kEpochStep = kSeats + 1;
  static_assert(kMaxThreads <= kSeats);

  void grow(std::uint32_t workers) {
    for (; workers_ < workers; ++workers_) {
      try {
        // Detached, and the pool is never destroyed: at exit the workers are asleep.
        std::thread([this] { serve(); }).detach();
      } catch (const std::system_error&) {
        return;  // the loop runs on the threads there are
      }
    }
  }

  void serve() {
    while (true) {
      std::uint32_t seen = 0;
      spin_until([&] { return ((seen = gate_.load(std::memory_order_acquire)) & kSeats) != 0; });
      const std::uint32_t seat = seen & kSeats;
      if (seat == 0) {
        gate_.wait(seen, std::memory_order_acquire);
      } else if (gate_.compare_exchange_strong(seen, seen - 1, std::memory_order_acq_rel)) {
        work(static_cast<int>(seat));
        finished_.fetch_add(1, std::memory_order_acq_rel);
        finished_.notify_one();
      }
    }
  }

  void work(int worker) {
    const Job job = job_;
    take_tasks(job, next_, worker);
  }

  void await(std::uint32_t seated) {
    std::uint32_t finished = 0;
    while (!spin_until(
        [&] { return (finished = finished_.load(std::memory_order_acquire)) == seated; })) {
      finished_.wait(finished, std::memory_order_acquire);
    }
  }

  std::mutex busy_;
  Job job_;
  std::uint32_t workers_ = 0;
  std::atomic<std::uint32_t> gate_{0};
  std::atomic<std::uint32_t> finished_{0};
  std::atomic<std::int64_t> next_{0};
};

// The state of a StageLoop that its threads share.
class Stages {
 public:
  Stages(const StageLoop& loop, int members, StageFunction function, void* context)
      : loop_(loop),
        members_(members),
        function_(function),
        context_(context),
        next_(static_cast<std::size_t>(loop.chunks)) {}

  // Takes part until the last stage is done.
  void run(int member) {
    const std::int64_t home = loop_.chunks * member / members_;
    const std::int64_t end = loop_.chunks * (member + 1) / members_;
    while (true) {
      const std::int64_t stage = done_.load(std::memory_order_acquire) / loop_.chunks;
      if (stage >= loop_.stages) return;
      for (std::int64_t i = 0; i < loop_.chunks; ++i) {
        // There and back: what was used last is still in the cache.
        const std::int64_t back = (end - 1 - i + loop_.chunks) % loop_.chunks;
        const std::int64_t chunk = stage % 2 == 0 ? (home + i) % loop_.chunks : back;
        if (!take(chunk, stage)) continue;
        function_(context_, stage, chunk);
        done_.fetch_add(1, std::memory_order_acq_rel);
      }
      await((stage + 1) * loop_.chunks);
    }
  }

 private:
  // The stage in which a chunk is to be taken next, in a cache line of its own.
  struct alignas(64) Next {
    std::atomic<std::int64_t> stage{0};
  };

  bool take(std::int64_t chunk, std::int64_t stage) {
    std::atomic<std::int64_t>& next = next_[static_cast<std::size_t>(chunk)].stage;
    std::int64_t expected = stage;
    return next.load(std::memory_order_relaxed) == stage &&
           next.compare_exchange_strong(expected, stage + 1, std::memory_order_relaxed);
  }

  // The chunks that are waited for are in the hands of running threads. Whoever shares the
  // processor with one of them lets it go on.
  void await(std::int64_t count) const {
    for (int i = 0; done_.load(std::memory_order_acquire) < count; ++i) {
      if (i < kTurns) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

  StageLoop loop_;
  int members_;
  StageFunction function_;
  void* context_;
  std::vector<Next> next_;
  alignas(64) std::atomic<std::int64_t> done_{0};  // chunks of all stages
};

std::atomic<Pool*> current_pool{nullptr};
std::atomic<int> thread_count{0};
thread_local const Executor* current_executor = nullptr;

// Lanes take tasks until there are none. A lane that comes late, or not at all, is missed by
// nobody.
void run_on(const Executor& executor, int lanes, const Job& job) {
  struct Shared {
    Job job;
    std::atomic<std::int64_t> next{0};
  } shared{job};
  const auto lane = [](void* context, int worker) noexcept {
    auto& [own, next] = *static_cast<Shared*>(context);
    take_tasks(own, next, worker);
  };
  executor.run(executor.owner, lanes, lane, &shared);
  take_tasks(shared.job, shared.next, 0);
}

// The child of a fork has none of the workers, and the lock may have been held by a thread that
// does not exist there: forget the pool, the next loop makes another.
void forget_pool() { current_pool.store(nullptr, std::memory_order_release); }

Pool& pool() {
  Pool* found = current_pool.load(std::memory_order_acquire);
  if (found != nullptr) return *found;
#ifdef PYATTN_HAS_FORK
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
  static_cast<void>(registered);
#endif
  auto* fresh = new Pool;
  if (current_pool.compare_exchange_strong(found, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;  // another thread was first; this one has no workers yet
  return *found;
}

}  // namespace

ExecutorScope::ExecutorScope(const Executor& executor) : outer_(current_executor) {
  current_executor = &executor;
}

ExecutorScope::~ExecutorScope() { current_executor = outer_; }

int threads() {
  if (current_executor != nullptr) return current_executor->lanes;
  int count = thread_count.load(std::memory_order_relaxed);
  if (count == 0) {
    count = usable_processors();
    thread_count.store(count, std::memory_order_relaxed);
  }
  return count;
}

void set_threads(std::int64_t count) {
  if (count < 1 || count > kMaxThreads) {
    throw std::invalid_argument("set_threads: the number of threads must be 1 to " +
                                std::to_string(kMaxThreads) + ", got " + std::to_string(count));
  }
  thread_count.store(static_cast<int>(count), std::memory_order_relaxed);
}

int loop_threads(const TaskLoop& loop) {
  if (loop.work < kSerialWork) return 1;
  const std::int64_t shares = (loop.tasks + loop.grain - 1) / loop.grain;
  return static_cast<int>(std::clamp<std::int64_t>(shares, 1, threads()));
}

void parallel_for(const TaskLoop& loop, int max_threads, TaskFunction function, void* context) {
  if (max_threads > 1 && current_executor != nullptr) {
    run_on(*current_executor, max_threads, {function, context, loop.tasks, loop.grain});
    return;
  }
  if (max_threads > 1) {
    Pool& shared = pool();
    const std::unique_lock lock(shared.busy(), std::try_to_lock);
    if (lock.owns_lock()) {
      const Job job{function, context, loop.tasks, loop.grain};
      shared.run(job, static_cast<std::uint32_t>(max_threads - 1));
      return;
    }
  }
  for (std::int64_t task = 0; task < loop.tasks; ++task) function(context, task, 0);
}

void parallel_stages(const StageLoop& loop, int max_threads, StageFunction function,
                     void* context) {
  if (max_threads <= 1) {
    for (std::int64_t stage = 0; stage < loop.stages; ++stage) {
      for (std::int64_t chunk = 0; chunk < loop.chunks; ++chunk) function(context, stage, chunk);
    }
    return;
  }
  Stages stages(loop, max_threads, function, context);
  // A thread that comes when all is done returns at once.
  auto member = [&](std::int64_t, int worker) { stages.run(worker); };
  parallel_for({.tasks = max_threads}, max_threads, member);
}

}  // namespace pyattn

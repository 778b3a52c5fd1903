// The thread pool: every task once, from many callers, and after a fork.
#include "core/parallel.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "core/cpu_quota.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace pyattn {
namespace {

constexpr double kPlentyOfWork = 1e9;

// Runs `tasks` tasks and returns whether each ran exactly once with a legal worker index.
bool every_task_once(std::int64_t tasks, std::int64_t grain) {
  std::vector<std::atomic<int>> runs(static_cast<std::size_t>(tasks));
  std::atomic<bool> legal{true};
  const TaskLoop loop{.tasks = tasks, .grain = grain, .work = kPlentyOfWork};
  const int workers = loop_threads(loop);
  auto body = [&](std::int64_t task, int worker) {
    runs[static_cast<std::size_t>(task)].fetch_add(1);
    if (worker < 0 || worker >= workers) legal = false;
  };
  parallel_for(loop, workers, body);
  for (const auto& count : runs) {
    if (count.load() != 1) return false;
  }
  return legal;
}

TEST(every_task_runs_once) {
  for (const int count : {1, 2, 3, 16}) {
    set_threads(count);
    for (const std::int64_t tasks : {0, 1, 2, 5, 64, 1000}) {
      for (const std::int64_t grain : {1, 3, 2000}) {
        check::context = std::to_string(count) + " threads, " + std::to_string(tasks) + " tasks";
        CHECK(every_task_once(tasks, grain));
      }
    }
  }
}

// Threads of somebody else's: `begun` of the lanes run, on threads of their own, the rest never do.
struct Lender {
  int begun;

  static void run(void* owner, int lanes, Executor::Lane lane, void* context) noexcept {
    const int begun = std::min(lanes, static_cast<Lender*>(owner)->begun);
    std::vector<std::thread> running;
    for (int i = 0; i < begun; ++i) running.emplace_back([=] { lane(context, lanes - 1 - i); });
    for (std::thread& thread : running) thread.join();
  }
};

TEST(an_executor_lends_its_threads) {
  set_threads(1);
  for (const int begun : {0, 1, 3}) {
    Lender lender{begun};
    const Executor executor{.run = Lender::run, .owner = &lender, .lanes = 3};
    const ExecutorScope scope(executor);
    CHECK(threads() == 3);
    for (const std::int64_t tasks : {0, 1, 5, 1000}) CHECK(every_task_once(tasks, 2));
    std::atomic<int> other{0};
    std::thread([&] { other = threads(); }).join();
    CHECK(other == 1);  // it is this thread's only
  }
  CHECK(threads() == 1);
}

TEST(many_loops_in_a_row) {
  set_threads(4);
  bool all = true;
  for (int i = 0; i < 2000; ++i) all = all && every_task_once(8, 1);
  CHECK(all);
}

TEST(workers_have_their_own_index) {
  set_threads(4);
  std::atomic<int> users[4] = {};
  std::atomic<bool> shared{false};
  const TaskLoop loop{.tasks = 500, .work = kPlentyOfWork};
  auto body = [&](std::int64_t, int worker) {
    if (users[worker].fetch_add(1) != 0) shared = true;
    std::this_thread::yield();
    users[worker].fetch_sub(1);
  };
  parallel_for(loop, loop_threads(loop), body);
  CHECK(!shared);
}

TEST(small_work_stays_on_the_caller) {
  set_threads(4);
  const TaskLoop loop{.tasks = 100, .work = 10};
  CHECK(loop_threads(loop) == 1);
  const auto caller = std::this_thread::get_id();
  bool same = true;
  auto body = [&](std::int64_t, int) { same = same && std::this_thread::get_id() == caller; };
  parallel_for(loop, loop_threads(loop), body);
  CHECK(same);
}

TEST(concurrent_callers) {
  set_threads(3);
  std::atomic<bool> all{true};
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&all] {
      for (int repeat = 0; repeat < 200; ++repeat) {
        if (!every_task_once(20, 1)) all = false;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(all);
}

// Runs a loop of stages and returns whether each chunk ran once, behind all of the stage before.
bool stages_in_order(std::int64_t stages, std::int64_t chunks, int members) {
  std::atomic<std::int64_t> done{0};
  std::atomic<bool> legal{true};
  std::vector<std::int64_t> next(static_cast<std::size_t>(chunks));
  auto body = [&](std::int64_t stage, std::int64_t chunk) {
    if (done.load() < stage * chunks) legal = false;
    // Without a lock: the stages before are to be seen by whoever runs the next one.
    if (next[static_cast<std::size_t>(chunk)]++ != stage) legal = false;
    done.fetch_add(1);
  };
  parallel_stages({.stages = stages, .chunks = chunks}, members, body);
  return legal && done.load() == stages * chunks;
}

TEST(stages_run_one_behind_the_other) {
  for (const int count : {1, 2, 3, 9}) {
    set_threads(count);
    for (const std::int64_t stages : {0, 1, 2, 300}) {
      for (const std::int64_t chunks : {1, 2, 3, 8}) {
        check::context = std::to_string(count) + " threads, " + std::to_string(chunks) + " chunks";
        CHECK(stages_in_order(stages, chunks, count));
      }
    }
  }
}

TEST(stages_of_concurrent_callers) {
  set_threads(3);
  std::atomic<bool> all{true};
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&all] {
      for (int repeat = 0; repeat < 50; ++repeat) {
        if (!stages_in_order(20, 4, 3)) all = false;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(all);
}

TEST(number_of_threads) {
  CHECK(usable_processors() >= 1);
  CHECK_THROWS(set_threads(0), std::invalid_argument);
  CHECK_THROWS(set_threads(-1), std::invalid_argument);
  CHECK_THROWS(set_threads(kMaxThreads + 1), std::invalid_argument);
  set_threads(7);
  CHECK(threads() == 7);
}

#if (defined(__unix__) || defined(__APPLE__)) && !defined(__SANITIZE_THREAD__) && \
    !defined(PYATTN_EMULATED)
TEST(fork_gives_the_child_its_own_pool) {
  set_threads(3);
  CHECK(every_task_once(50, 1));
  const pid_t child = fork();
  if (child == 0) {
    const bool ok = every_task_once(50, 1) && every_task_once(50, 1);
    _exit(ok ? 0 : 1);
  }
  int status = 0;
  CHECK(child > 0 && waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(every_task_once(50, 1));
}
#endif

}  // namespace
}  // namespace pyattn

TEST_MAIN

#include "core/local.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/isa.h"
#include "core/parallel.h"
#include "core/scratch.h"

namespace pyattn {
namespace {

constexpr std::int64_t kCacheLine = 64;
// Sums that are in the making at once, unless one entry of the batch needs more.
constexpr std::int64_t kWaveBytes = std::int64_t{1} << 24;
// Multiply-adds that take as long as one term v_a tanh(q_a + k_a), and as the rest of a score.
constexpr double kTanhWork = 12;
constexpr double kScoreWork = 32;
// Rows of one task, and keys whose sums are added together.
constexpr std::int64_t kTaskRows = 32;
constexpr std::int64_t kPartRows = 64;
constexpr std::int64_t kStoredKeys = 256;
// Rows whose windows are found together, and multiply-adds that take as long as one.
constexpr std::int64_t kWindowRows = 512;
constexpr double kWindowWork = 128;

std::int64_t round_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b * b; }

template <class X>
std::int64_t window_keys(const LocalParams<X>& p) {
  return std::min(2 * p.half_width + 1, p.keys);
}

// What LocalRow and LocalGradient take: five numbers, an index and two addresses for each key of a
// window, a row of each size, and where numbers of a row have gaps between them, copies of the
// rows.
template <class X>
std::int64_t scratch_bytes(const LocalParams<X>& p) {
  constexpr std::int64_t kSize = sizeof(Compute<X>);
  constexpr std::int64_t kPieces = 13;
  const std::int64_t width = round_up(window_keys(p), kSumAlign);
  std::int64_t numbers = p.query.shape[2] + p.value.shape[2];
  if (p.key.stride[2] != 1) numbers += width * p.key.shape[2];
  if (p.value.stride[2] != 1) numbers += width * p.value.shape[2];
  return width * (5 * kSize + 24) + numbers * kSize + kPieces * kCacheLine;
}

// What local_rows takes: rows abreast, and copies of keys and values.
template <class X>
std::int64_t rows_scratch_bytes(const LocalParams<X>& p) {
  const std::int64_t numbers = p.key.shape[2] + p.value.shape[2];
  constexpr std::int64_t kSize = sizeof(X);
  return kLocalAbreast * scratch_bytes(p) + kLocalCopies * (numbers * kSize + 2 * kCacheLine);
}

template <class X>
double row_work(const LocalParams<X>& p) {
  const double term = p.v == nullptr ? 1 : kTanhWork;
  return static_cast<double>(window_keys(p)) * (term * static_cast<double>(p.query.shape[2]) +
                                                static_cast<double>(p.value.shape[2]) + kScoreWork);
}

template <class X>
void find_windows(const LocalParams<X>& p, LocalWindow* windows) {
  const std::int64_t rows = p.query.shape[1];
  const std::int64_t blocks = (rows + kWindowRows - 1) / kWindowRows;
  TaskLoop loop{.tasks = p.query.shape[0] * blocks};
  loop.work = kWindowWork * static_cast<double>(p.query.shape[0] * rows);
  auto body = [&](std::int64_t task, int) {
    const std::int64_t b = task / blocks;
    const std::int64_t keys = p.kv_lengths == nullptr ? p.keys : std::min(p.keys, p.kv_lengths[b]);
    const std::int64_t first = task % blocks * kWindowRows;
    for (std::int64_t t = first; t < std::min(first + kWindowRows, rows); ++t) {
      const auto centre = p.centre.data[b * p.centre.stride[0] + t * p.centre.stride[1]];
      windows[b * rows + t] = local_window(static_cast<double>(centre), p.half_width, keys);
    }
  };
  parallel_for(loop, loop_threads(loop), body);
}

// Rows of one entry, those whose windows lie near each other side by side, so that their keys are
// still in the cache: into at most as many bins as there are rows, in order within each.
void sort_rows(const LocalWindow* windows, std::int64_t rows, std::int64_t keys,
               std::int64_t* order, std::int64_t* next) {
  int shift = 0;
  while (keys >> shift >= rows) ++shift;
  const auto bin = [&](std::int64_t row) { return windows[row].begin >> shift; };
  std::fill_n(next, rows + 1, std::int64_t{0});
  for (std::int64_t t = 0; t < rows; ++t) ++next[bin(t) + 1];
  for (std::int64_t i = 1; i < rows; ++i) next[i] += next[i - 1];
  for (std::int64_t t = 0; t < rows; ++t) order[next[bin(t)]++] = t;
}

// Windows and sorted rows of every entry, in memory of the caller's.
struct Plan {
  LocalWindow* windows;
  std::int64_t* order;
  std::int64_t* next;  // scratch

  template <class X>
  static std::int64_t bytes(const LocalParams<X>& p) {
    constexpr std::int64_t kEach = sizeof(LocalWindow) + 2 * sizeof(std::int64_t);
    return round_up((p.query.shape[0] * p.query.shape[1] + 1) * kEach, kCacheLine);
  }

  template <class X>
  Plan(const LocalParams<X>& p, std::byte* memory) {
    const std::int64_t rows = p.query.shape[1];
    const std::int64_t all = p.query.shape[0] * rows;
    windows = reinterpret_cast<LocalWindow*>(memory);
    order = reinterpret_cast<std::int64_t*>(windows + all);
    next = order + all;
    find_windows(p, windows);
    for (std::int64_t at = 0; at < all; at += rows) {
      sort_rows(windows + at, rows, p.keys, order + at, next);
    }
  }
};

// Rows of one entry that share their sums, and where these are.
template <class T>
struct Part {
  std::int64_t batch = 0;
  std::int64_t first_row = 0;  // in the sorted order
  std::int64_t rows = 0;
  LocalSums<T> sums;
};

template <class X>
class LocalBackward {
 public:
  using T = Compute<X>;

  LocalBackward(const LocalGradientParams<X>& params, const std::int64_t* order)
      : params_(params),
        p_(params.forward),
        kernels_(attention_kernels_of<X>(kernels()).local),
        depth_(p_.query.shape[2]),
        columns_(p_.value.shape[2]),
        order_(order),
        key_size_(params.grad_key.data == nullptr ? 0 : depth_),
        value_size_(params.grad_value.data == nullptr ? 0 : columns_),
        v_size_(params.grad_v == nullptr ? 0 : depth_),
        v_total_(static_cast<std::size_t>(v_size_)) {}

  void run() {
    for (std::int64_t first = 0; first < p_.query.shape[0];) {
      parts_.clear();
      std::int64_t numbers = 0;
      std::int64_t end = first;
      const std::int64_t most = kWaveBytes / static_cast<std::int64_t>(sizeof(T));
      while (end < p_.query.shape[0] && (end == first || numbers < most)) {
        numbers += plan(end++);
      }
      run_wave(first, end, numbers);
      first = end;
    }
    for (std::size_t a = 0; a < v_total_.size(); ++a) {
      params_.grad_v[a] = static_cast<T>(v_total_[a]);
    }
  }

 private:
  // Cuts the sorted rows of an entry into parts, whatever the number of threads. Each part covers a
  // range of keys of its own, but for a window and a bin at the border. Returns how many numbers
  // there are in their sums.
  std::int64_t plan(std::int64_t batch) {
    const std::int64_t rows = p_.query.shape[1];
    const LocalWindow* window = p_.windows + batch * rows;
    const std::int64_t* order = order_ + batch * rows;
    // So many rows that the borders do not count.
    const std::int64_t step = std::max(kPartRows, 2 * window_keys(p_));
    std::int64_t numbers = 0;
    for (std::int64_t first = 0; first < rows; first += step) {
      Part<T> part{.batch = batch, .first_row = first, .rows = std::min(step, rows - first)};
      part.sums.first = part.sums.end = -1;
      for (std::int64_t i = first; i < first + part.rows; ++i) {
        const LocalWindow& one = window[order[i]];
        if (one.begin == one.end) continue;
        const bool first_one = part.sums.first < 0;
        part.sums.first = first_one ? one.begin : std::min(part.sums.first, one.begin);
        part.sums.end = std::max(part.sums.end, one.end);
      }
      numbers += part_numbers(part.sums);
      parts_.push_back(part);
    }
    return numbers;
  }

  std::int64_t part_numbers(const LocalSums<T>& sums) const {
    return round_up((sums.end - sums.first) * (key_size_ + value_size_) + v_size_, kSumAlign);
  }

  void run_wave(std::int64_t first, std::int64_t end, std::int64_t numbers) {
    TaskLoop loop{.tasks = static_cast<std::int64_t>(parts_.size())};
    loop.work = 3 * row_work(p_) * static_cast<double>((end - first) * p_.query.shape[1]);
    const int workers = loop_threads(loop);
    const std::int64_t scratch = round_up(scratch_bytes(p_), kCacheLine);
    const std::int64_t sums = numbers * static_cast<std::int64_t>(sizeof(T));
    std::byte* memory = thread_scratch(static_cast<std::size_t>(scratch * workers + sums));
    place(reinterpret_cast<T*>(memory + scratch * workers));
    auto body = [&](std::int64_t task, int worker) {
      const Part<T>& part = parts_[static_cast<std::size_t>(task)];
      T* start = start_of(part.sums);
      if (start != nullptr) {
        std::memset(start, 0, sizeof(T) * static_cast<std::size_t>(part_numbers(part.sums)));
      }
      const std::int64_t* rows = order_ + part.batch * p_.query.shape[1] + part.first_row;
      kernels_.add(params_, part.batch, rows, part.rows, part.sums, memory + scratch * worker);
    };
    parallel_for(loop, workers, body);
    if (key_size_ + value_size_ > 0) store_keys(first, end);
    for (const Part<T>& part : parts_) {
      for (std::int64_t a = 0; a < v_size_; ++a) {
        v_total_[static_cast<std::size_t>(a)] += static_cast<double>(part.sums.v[a]);
      }
    }
  }

  void place(T* next) {
    for (Part<T>& part : parts_) {
      LocalSums<T>& sums = part.sums;
      const std::int64_t keys = sums.end - sums.first;
      if (key_size_ > 0) sums.key = next;
      if (value_size_ > 0) sums.value = next + keys * key_size_;
      if (v_size_ > 0) sums.v = next + keys * (key_size_ + value_size_);
      next += part_numbers(sums);
    }
  }

  static T* start_of(const LocalSums<T>& sums) {
    if (sums.key != nullptr) return sums.key;
    return sums.value != nullptr ? sums.value : sums.v;
  }

  void store_keys(std::int64_t first, std::int64_t end) const {
    const std::int64_t keys = p_.key.shape[1];
    const std::int64_t blocks = (keys + kStoredKeys - 1) / kStoredKeys;
    TaskLoop loop{.tasks = (end - first) * blocks};
    loop.work = static_cast<double>((end - first) * keys * (key_size_ + value_size_));
    std::vector<LocalSums<T>> sums;
    std::vector<std::size_t> starts;  // of every entry
    for (const Part<T>& part : parts_) {
      if (part.first_row == 0) starts.push_back(sums.size());
      sums.push_back(part.sums);
    }
    starts.push_back(sums.size());
    auto body = [&](std::int64_t task, int) {
      const auto entry = static_cast<std::size_t>(task / blocks);
      const std::int64_t key = task % blocks * kStoredKeys;
      const std::int64_t stop = std::min(key + kStoredKeys, keys);
      // Ranges rise, but for the width of a bin.
      std::size_t from = p_.query.shape[1] == 0 ? 0 : starts[entry];
      std::size_t to = p_.query.shape[1] == 0 ? 0 : starts[entry + 1];
      while (from < to && sums[from].end <= key) ++from;
      while (to > from && sums[to - 1].first >= stop) --to;
      kernels_.store_keys(params_, first + static_cast<std::int64_t>(entry), key, stop,
                          sums.data() + from, static_cast<std::int64_t>(to - from));
    };
    parallel_for(loop, loop_threads(loop), body);
  }

  const LocalGradientParams<X>& params_;
  const LocalParams<X>& p_;
  const LocalKernels<X>& kernels_;
  std::int64_t depth_;
  std::int64_t columns_;
  const std::int64_t* order_;  // rows of every entry
  std::int64_t key_size_;
  std::int64_t value_size_;
  std::int64_t v_size_;
  std::vector<double> v_total_;
  std::vector<Part<T>> parts_;  // of the entries in the making
};

}  // namespace

LocalWindow local_window(double centre, std::int64_t half_width, std::int64_t keys) {
  // Beyond this there is no key, and a conversion would overflow.
  constexpr double kFar = 1e18;
  if (!(centre > -kFar && centre < kFar)) return {.finite = keys == 0 || std::isfinite(centre)};
  const auto whole = static_cast<std::int64_t>(centre);  // towards 0: the floor or the ceiling
  const auto back = static_cast<double>(whole);
  const std::int64_t first = whole + (back < centre ? 1 : 0) - half_width;
  const std::int64_t last = whole - (back > centre ? 1 : 0) + half_width;
  LocalWindow window{
      .first = first, .begin = std::max<std::int64_t>(first, 0), .end = std::min(last + 1, keys)};
  if (window.begin >= window.end) window.begin = window.end = 0;
  return window;
}

template <class X>
void run_local(LocalParams<X> params) {
  const std::int64_t batch = params.query.shape[0];
  const std::int64_t rows = params.query.shape[1];
  if (batch == 0 || rows == 0) return;
  const std::int64_t blocks = (rows + kTaskRows - 1) / kTaskRows;
  TaskLoop loop{.tasks = batch * blocks};
  loop.work = row_work(params) * static_cast<double>(batch * rows);
  const int workers = loop_threads(loop);
  const std::int64_t scratch = round_up(rows_scratch_bytes(params), kCacheLine);
  const std::int64_t planned = Plan::bytes(params);
  std::byte* memory = thread_scratch(static_cast<std::size_t>(planned + scratch * workers));
  const Plan plan(params, memory);
  params.windows = plan.windows;
  const auto kernel = attention_kernels_of<X>(kernels()).local.rows;
  auto body = [&](std::int64_t task, int worker) {
    const std::int64_t entry = task / blocks;
    const std::int64_t first = task % blocks * kTaskRows;
    kernel(params, entry, plan.order + entry * rows + first, std::min(kTaskRows, rows - first),
           memory + planned + scratch * worker);
  };
  parallel_for(loop, workers, body);
}

template <class X>
void run_local_gradient(LocalGradientParams<X> params) {
  // The waves of the backward pass take the thread's scratch.
  std::vector<std::byte> memory(static_cast<std::size_t>(Plan::bytes(params.forward)));
  const Plan plan(params.forward, memory.data());
  params.forward.windows = plan.windows;
  LocalBackward<X>(params, plan.order).run();
}

#define PYATTN_INSTANTIATE(X)              \
  template void run_local(LocalParams<X>); \
  template void run_local_gradient(LocalGradientParams<X>);
PYATTN_INSTANTIATE(float)
PYATTN_INSTANTIATE(double)
PYATTN_INSTANTIATE(Half)
PYATTN_INSTANTIATE(BFloat16)
#undef PYATTN_INSTANTIATE

}  // namespace pyattn

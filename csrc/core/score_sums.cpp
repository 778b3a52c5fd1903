// Sums over queries, heads or the batch: the gradient of a mask, and the column mass.
#include <algorithm>
#include <cstring>
#include <utility>

#include "core/attention.h"
#include "core/backward.h"
#include "core/parallel.h"
#include "core/scratch.h"

namespace pyattn {
namespace {

constexpr std::int64_t kAlign = 64;  // elements

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Sums of weights or of ds over the axes along which the target has length 1. A task owns a part of
// the target: up to 64 of its rows, or the one that it has, by up to kPartKeys of its keys.
template <class X>
class ScoreSummation {
 public:
  using T = Compute<X>;

  ScoreSummation(const BackwardParams<X>& params, const BackwardKernels<X>& kernels,
                 const std::int64_t (&shape)[4], bool weights)
      : params_(params), p_(params.forward), kernels_(kernels), weights_(weights) {
    std::copy(shape, shape + 4, shape_);
    rows_ = shape[2] == 1 ? 1 : kBlockRows;
    row_parts_ = ceil_div(shape[2], rows_);
    keys_ = shape[3] == 1 ? p_.keys : kPartKeys;
    key_parts_ = shape[3] == 1 ? 1 : ceil_div(shape[3], kPartKeys);
  }

  void run() const {
    TaskLoop loop{.tasks = shape_[0] * shape_[1] * row_parts_ * key_parts_};
    if (loop.tasks == 0) return;
    loop.work = static_cast<double>(p_.batch * p_.query.shape[1] * p_.query.shape[2]) *
                static_cast<double>(p_.keys * (p_.query.shape[3] + p_.value.shape[3]));
    const int workers = loop_threads(loop);
    const std::int64_t scratch =
        ceil_div(backward_scratch_elements(p_.query.shape[3], p_.value.shape[3]), kAlign) * kAlign;
    const std::int64_t sums = kBlockRows * kPartKeys;
    auto* memory = reinterpret_cast<T*>(
        thread_scratch(sizeof(T) * static_cast<std::size_t>((scratch + sums) * workers)));
    auto body = [&](std::int64_t task, int worker) {
      T* own = memory + (scratch + sums) * worker;
      run_part(task, own, own + scratch);
    };
    parallel_for(loop, workers, body);
  }

 private:
  void run_part(std::int64_t task, T* scratch, T* memory) const {
    const std::int64_t key = task % key_parts_ * keys_;
    task /= key_parts_;
    ScoreTarget target{.first_row = task % row_parts_ * rows_, .one_row = shape_[2] == 1};
    target.rows = std::min(rows_, shape_[2] - target.first_row);
    task /= row_parts_;
    target.head = task % shape_[1];
    target.batch = task / shape_[1];
    ScoreSums<T> sums{.sums = memory,
                      .first = shape_[3] == 1 ? 0 : key,
                      .end = shape_[3] == 1 ? p_.keys : std::min(key + keys_, shape_[3]),
                      .keys = 1,
                      .weights = weights_};
    if (shape_[3] != 1) sums.keys = sums.end - sums.first;
    std::memset(memory, 0, sizeof(T) * static_cast<std::size_t>(kBlockRows * sums.keys));
    add_all(target, sums, scratch);
    kernels_.store_scores(params_, sums, target);
  }

  // Every entry, head and row that the target stands for, in order.
  void add_all(const ScoreTarget& target, const ScoreSums<T>& sums, T* scratch) const {
    const auto range = [](std::int64_t length, std::int64_t at, std::int64_t full) {
      return length == 1 ? std::pair<std::int64_t, std::int64_t>{0, full}
                         : std::pair<std::int64_t, std::int64_t>{at, at + 1};
    };
    const auto [batch, batch_end] = range(shape_[0], target.batch, p_.batch);
    const auto [head, head_end] = range(shape_[1], target.head, p_.query.shape[1]);
    const std::int64_t rows = p_.query.shape[2];
    const std::int64_t first = target.one_row ? 0 : target.first_row;
    const std::int64_t end = target.one_row ? rows : first + target.rows;
    for (std::int64_t b = batch; b < batch_end; ++b) {
      for (std::int64_t h = head; h < head_end; ++h) {
        for (std::int64_t row = first; row < end; row += kBlockRows) {
          AttentionBlock block{.batch = b, .first_head = h, .heads = 1, .first_row = row};
          block.rows = std::min<std::int64_t>(kBlockRows, end - row);
          limit_keys(p_, block);
          block.key_begin = std::max(block.key_begin, sums.first);
          block.key_end = std::min(block.key_end, sums.end);
          if (block.key_begin < block.key_end) kernels_.add_scores(params_, block, sums, scratch);
        }
      }
    }
  }

  const BackwardParams<X>& params_;
  const AttentionParams<X>& p_;
  const BackwardKernels<X>& kernels_;
  bool weights_;
  std::int64_t shape_[4];
  std::int64_t rows_;
  std::int64_t row_parts_;
  std::int64_t keys_;
  std::int64_t key_parts_;
};

}  // namespace

template <class X>
void run_mask_gradient(const BackwardParams<X>& params, const BackwardKernels<X>& kernels) {
  ScoreSummation<X>(params, kernels, params.grad_mask.shape, false).run();
}

template <class X>
void run_column_mass(const BackwardParams<X>& params, const BackwardKernels<X>& kernels) {
  const View<Compute<X>, 3>& mass = params.column_mass;
  ScoreSummation<X>(params, kernels, {mass.shape[0], mass.shape[1], 1, mass.shape[2]}, true).run();
}

#define PYATTN_INSTANTIATE(X)                                                           \
  template void run_mask_gradient(const BackwardParams<X>&, const BackwardKernels<X>&); \
  template void run_column_mass(const BackwardParams<X>&, const BackwardKernels<X>&);
PYATTN_INSTANTIATE(float)
PYATTN_INSTANTIATE(double)
PYATTN_INSTANTIATE(Half)
PYATTN_INSTANTIATE(BFloat16)
#undef PYATTN_INSTANTIATE

}  // namespace pyattn

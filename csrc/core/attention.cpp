#include "core/attention.h"

#include <algorithm>
#include <new>

#include "core/parallel.h"
#include "core/scratch.h"

namespace pyattn {
namespace {

constexpr std::int64_t kCacheLine = 64;
// Enough shares per thread that the last one to finish does not keep the others waiting long.
constexpr std::int64_t kSharesPerThread = 8;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace

template <class T>
AttentionPlan plan_attention(const AttentionParams<T>& params) {
  const std::int64_t batch = params.query.shape[0];
  const std::int64_t heads = params.query.shape[1];
  const std::int64_t length = params.query.shape[2];
  const std::int64_t groups = params.key.shape[1];
  AttentionPlan plan;
  if (batch == 0 || heads == 0 || length == 0 || groups == 0) return plan;
  const std::int64_t sharing = heads / groups;
  plan.rows_per_block = std::min<std::int64_t>(length, kBlockRows);
  plan.row_blocks = ceil_div(length, plan.rows_per_block);
  // Short queries: the heads that share a key/value head fill the block, and read it once.
  plan.heads_per_block = std::clamp<std::int64_t>(kBlockRows / length, 1, sharing);
  plan.head_blocks = ceil_div(sharing, plan.heads_per_block);
  plan.tasks = batch * groups * plan.head_blocks * plan.row_blocks;
  return plan;
}

template <class T>
AttentionBlock block_of(const AttentionPlan& plan, const AttentionParams<T>& params,
                        std::int64_t task) {
  const std::int64_t length = params.query.shape[2];
  const std::int64_t groups = params.key.shape[1];
  const std::int64_t sharing = params.query.shape[1] / groups;
  const std::int64_t row_block = plan.row_blocks - 1 - task % plan.row_blocks;
  task /= plan.row_blocks;
  const std::int64_t head_block = task % plan.head_blocks;
  task /= plan.head_blocks;
  AttentionBlock block;
  block.batch = task / groups;
  const std::int64_t within_group = head_block * plan.heads_per_block;
  block.first_head = task % groups * sharing + within_group;
  block.heads = std::min(plan.heads_per_block, sharing - within_group);
  block.first_row = row_block * plan.rows_per_block;
  block.rows = std::min(plan.rows_per_block, length - block.first_row);
  block.key_end = params.key.shape[2];
  if (params.kv_lengths != nullptr) block.key_end = params.kv_lengths[block.batch];
  if (params.is_causal) block.key_end = std::min(block.key_end, block.first_row + block.rows);
  return block;
}

template <class T>
void run_attention(const AttentionParams<T>& params, typename Kernels<T>::Attention kernel,
                   double work_per_score) {
  const AttentionPlan plan = plan_attention(params);
  if (plan.tasks == 0) return;
  const std::int64_t depth = params.query.shape[3];
  const std::int64_t value_depth = params.value.shape[3];
  const double scores =
      static_cast<double>(params.query.shape[0]) * static_cast<double>(params.query.shape[1]) *
      static_cast<double>(params.query.shape[2]) * static_cast<double>(params.key.shape[2]);
  TaskLoop loop{.tasks = plan.tasks};
  loop.work = scores * (work_per_score + static_cast<double>(value_depth) + 16.0);
  loop.grain = std::clamp<std::int64_t>(plan.tasks / (kSharesPerThread * threads()), 1,
                                        plan.row_blocks * plan.head_blocks);
  const int workers = loop_threads(loop);
  const std::int64_t elements = attention_scratch_elements(depth, value_depth);
  const std::int64_t bytes =
      ceil_div(elements * static_cast<std::int64_t>(sizeof(T)), kCacheLine) * kCacheLine;
  std::byte* scratch =
      thread_scratch(static_cast<std::size_t>(bytes) * static_cast<std::size_t>(workers));
  auto body = [&](std::int64_t task, int worker) {
    auto* mine = reinterpret_cast<T*>(scratch + bytes * worker);
    kernel(params, block_of(plan, params, task), mine);
  };
  parallel_for(loop, workers, body);
}

template AttentionPlan plan_attention(const AttentionParams<float>&);
template AttentionPlan plan_attention(const AttentionParams<double>&);
template AttentionBlock block_of(const AttentionPlan&, const AttentionParams<float>&, std::int64_t);
template AttentionBlock block_of(const AttentionPlan&, const AttentionParams<double>&,
                                 std::int64_t);
template void run_attention(const AttentionParams<float>&, Kernels<float>::Attention, double);
template void run_attention(const AttentionParams<double>&, Kernels<double>::Attention, double);

}  // namespace pyattn

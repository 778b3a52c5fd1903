#include "core/attention.h"

#include <algorithm>
#include <new>

#include "core/isa.h"
#include "core/parallel.h"
#include "core/scratch.h"

namespace pyattn {
namespace {

constexpr std::int64_t kCacheLine = 64;
// Enough shares per thread that the last one to finish does not keep the others waiting long.
constexpr std::int64_t kSharesPerThread = 8;
// Fewer blocks per thread than this, and the parts of their keys become tasks of their own.
constexpr std::int64_t kBlocksPerThread = 4;
constexpr std::int64_t kMostPartBytes = std::int64_t{1} << 25;
// Multiply-adds that take as long as one term v_a tanh(q_a + k_a).
constexpr double kWorkPerTerm = 5;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

template <class X>
std::int64_t entry_keys(const AttentionParams<X>& params, std::int64_t batch) {
  if (params.kv_lengths != nullptr) return std::min(params.kv_lengths[batch], params.keys);
  if (params.key_offsets == nullptr) return params.keys;
  return params.key_offsets[batch + 1] - params.key_offsets[batch];
}

std::int64_t parts_of(const AttentionBlock& block) {
  if (block.key_begin == block.key_end) return 0;
  return ceil_div(block.key_end, kPartKeys) - block.key_begin / kPartKeys;
}

template <class X>
std::int64_t part_bytes(const AttentionParams<X>& params, const AttentionBlock& block) {
  return part_elements(block.heads * block.rows, params.value.shape[3]) *
         static_cast<std::int64_t>(sizeof(Compute<X>));
}

// Scores that a window or the causal rule may leave out do not count.
template <class X>
double count_scores(const AttentionParams<X>& params) {
  const std::int64_t left = std::min(params.left, params.keys);
  const std::int64_t right = std::min(params.right, params.keys);
  const std::int64_t seen = std::clamp<std::int64_t>(left + right + 1, 0, params.keys);
  const double packed = params.query_offsets != nullptr ? 1.0 : static_cast<double>(params.batch);
  return packed * static_cast<double>(params.query.shape[1]) *
         static_cast<double>(params.query.shape[2]) * static_cast<double>(seen);
}

// Memory of a loop: a piece of scratch for every worker, and what the caller needs behind them.
struct LoopMemory {
  std::byte* start;
  std::int64_t per_worker;

  LoopMemory(std::int64_t elements, std::int64_t element_size, int workers, std::int64_t more)
      : per_worker(ceil_div(elements * element_size, kCacheLine) * kCacheLine) {
    start = thread_scratch(static_cast<std::size_t>(per_worker * workers + more));
  }
  template <class T>
  T* worker(int index) const {
    return reinterpret_cast<T*>(start + per_worker * index);
  }
};

template <class X>
void run_whole(const AttentionParams<X>& params, const AttentionTasks<X>& tasks,
               typename AttentionKernels<X>::Run kernel, std::int64_t elements, double work) {
  TaskLoop loop{.tasks = tasks.count(), .work = work};
  loop.grain = std::clamp<std::int64_t>(tasks.count() / (kSharesPerThread * threads()), 1,
                                        std::max<std::int64_t>(tasks.blocks_per_entry(), 1));
  const int workers = loop_threads(loop);
  const LoopMemory memory(elements, sizeof(Compute<X>), workers, 0);
  auto body = [&](std::int64_t task, int worker) {
    kernel(params, tasks.block(task), memory.worker<Compute<X>>(worker));
  };
  parallel_for(loop, workers, body);
}

struct Part {
  std::int64_t block;
  std::int64_t key_begin;
  std::int64_t offset;  // in bytes, of its state
};

// Decoding: few blocks, many keys. Every part of the keys of a block is a task.
template <class X>
void run_parts(const AttentionParams<X>& params, const std::vector<AttentionBlock>& blocks,
               typename AttentionKernels<X>::Run kernel, typename AttentionKernels<X>::Merge merge,
               std::int64_t elements, double work) {
  std::vector<Part> parts;
  std::vector<std::int64_t> first;  // of every block
  std::int64_t bytes = 0;
  for (const AttentionBlock& block : blocks) {
    first.push_back(bytes);
    const auto index = static_cast<std::int64_t>(first.size()) - 1;
    for (std::int64_t key = block.key_begin; key < block.key_end;
         key = (key / kPartKeys + 1) * kPartKeys) {
      parts.push_back({index, key, bytes});
      bytes += part_bytes(params, block);
    }
  }
  TaskLoop loop{.tasks = static_cast<std::int64_t>(parts.size()), .work = work};
  const int workers = loop_threads(loop);
  const LoopMemory memory(elements, sizeof(Compute<X>), workers, bytes);
  std::byte* states = memory.start + memory.per_worker * workers;
  auto body = [&](std::int64_t task, int worker) {
    const Part& part = parts[static_cast<std::size_t>(task)];
    AttentionBlock block = blocks[static_cast<std::size_t>(part.block)];
    block.key_begin = part.key_begin;
    block.key_end = std::min(block.key_end, (part.key_begin / kPartKeys + 1) * kPartKeys);
    block.part = states + part.offset;
    kernel(params, block, memory.worker<Compute<X>>(worker));
  };
  parallel_for(loop, workers, body);

  TaskLoop last{.tasks = static_cast<std::int64_t>(blocks.size())};
  last.work = static_cast<double>(bytes) / sizeof(Compute<X>);
  auto finish = [&](std::int64_t task, int worker) {
    const AttentionBlock& block = blocks[static_cast<std::size_t>(task)];
    const auto* states_of =
        reinterpret_cast<const Compute<X>*>(states + first[static_cast<std::size_t>(task)]);
    const std::int64_t step = part_elements(block.heads * block.rows, params.value.shape[3]);
    merge(params, block, states_of, parts_of(block), step, memory.worker<Compute<X>>(worker));
  };
  parallel_for(last, std::min(workers, loop_threads(last)), finish);
}

}  // namespace

bool broadcast_mask(const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& stride,
                    const std::vector<std::int64_t>& target, Mask& mask, std::int64_t& keys) {
  const std::size_t rank = shape.size();
  if (rank < 1 || rank > target.size()) return false;
  // (T, S) of the target are the last two strides; (B, T, S) has no head axis.
  constexpr int kPlaces4[] = {3, 2, 1, 0};
  constexpr int kPlaces3[] = {3, 2, 0};
  for (std::size_t i = 0; i < rank; ++i) {
    const std::int64_t length = shape[rank - 1 - i];
    const std::int64_t full = target[target.size() - 1 - i];
    if (length != 1 && length != full && !(i == 0 && length < full)) return false;
    const int place = target.size() == 4 ? kPlaces4[i] : kPlaces3[i];
    mask.stride[place] = length == 1 ? 0 : stride[rank - 1 - i];
  }
  if (shape.back() != 1) keys = shape.back();
  return true;
}

template <class X>
void limit_keys(const AttentionParams<X>& params, AttentionBlock& block) {
  std::int64_t lowest = block.first_row;
  std::int64_t highest = block.first_row + block.rows - 1;
  if (params.rows != nullptr) {
    const auto [least, most] = std::minmax_element(params.rows + lowest, params.rows + highest + 1);
    lowest = *least;
    highest = *most;
  }
  const std::int64_t start = params.query_starts == nullptr ? 0 : params.query_starts[block.batch];
  block.key_end = entry_keys(params, block.batch);
  if (params.right < kUnbounded) {
    block.key_end = std::min(block.key_end, start + highest + params.right + 1);
  }
  if (params.left < kUnbounded) {
    block.key_begin = std::max<std::int64_t>(0, start + lowest - params.left);
    block.key_begin = block.key_begin / kTileKeys * kTileKeys;
  }
  block.key_end = std::max(block.key_end, block.key_begin);
}

template <class X>
AttentionTasks<X>::AttentionTasks(const AttentionParams<X>& params)
    : params_(params),
      groups_(params.key.shape[1]),
      sharing_(groups_ == 0 ? 0 : params.query.shape[1] / groups_) {
  if (groups_ == 0) return;
  if (params.query_offsets == nullptr) {
    entries_.push_back(entry_of(params.query.shape[2]));
    count_ = entries_[0].blocks * params.batch;
    return;
  }
  for (std::int64_t b = 0; b < params.batch; ++b) {
    Entry entry = entry_of(params.query_offsets[b + 1] - params.query_offsets[b]);
    entry.first_task = count_;
    count_ += entry.blocks;
    entries_.push_back(entry);
  }
}

template <class X>
typename AttentionTasks<X>::Entry AttentionTasks<X>::entry_of(std::int64_t length) const {
  Entry entry;
  entry.length = length;
  if (length == 0 || sharing_ == 0) return entry;
  entry.rows_per_block = std::min<std::int64_t>(length, kBlockRows);
  entry.row_blocks = ceil_div(length, entry.rows_per_block);
  // Short queries: the heads that share a key/value head fill the block, and read it once.
  entry.heads_per_block = std::clamp<std::int64_t>(kBlockRows / length, 1, sharing_);
  entry.head_blocks = ceil_div(sharing_, entry.heads_per_block);
  entry.blocks = groups_ * entry.head_blocks * entry.row_blocks;
  return entry;
}

template <class X>
AttentionBlock AttentionTasks<X>::block(std::int64_t task) const {
  AttentionBlock block;
  const Entry* entry = entries_.data();
  if (params_.query_offsets != nullptr) {
    const auto after =
        std::upper_bound(entries_.begin(), entries_.end(), task,
                         [](std::int64_t value, const Entry& e) { return value < e.first_task; });
    // Empty sequences share their first task with the next one; upper_bound passes them.
    entry = &*(after - 1);
    block.batch = entry - entries_.data();
    task -= entry->first_task;
  } else {
    block.batch = task / entry->blocks;
    task %= entry->blocks;
  }
  const std::int64_t row_block = entry->row_blocks - 1 - task % entry->row_blocks;
  task /= entry->row_blocks;
  const std::int64_t within_group = task % entry->head_blocks * entry->heads_per_block;
  block.first_head = task / entry->head_blocks * sharing_ + within_group;
  block.heads = std::min(entry->heads_per_block, sharing_ - within_group);
  block.first_row = row_block * entry->rows_per_block;
  block.rows = std::min(entry->rows_per_block, entry->length - block.first_row);
  limit_keys(params_, block);
  return block;
}

template <class X>
void run_attention(const AttentionParams<X>& params, typename AttentionKernels<X>::Run kernel,
                   typename AttentionKernels<X>::Merge merge, double work_per_score) {
  const AttentionTasks<X> tasks(params);
  if (tasks.count() == 0) return;
  const std::int64_t columns = params.value.shape[3];
  const std::int64_t elements = attention_scratch_elements(params.query.shape[3], columns);
  const double work = count_scores(params) * (work_per_score + static_cast<double>(columns) + 16.0);
  const bool second_pass = params.weights.data != nullptr || params.scores.data != nullptr ||
                           params.entropy.data != nullptr || params.top_weights.data != nullptr;
  const int workers = loop_threads({.tasks = params.keys, .work = work});
  if (workers > 1 && !second_pass && params.out.data != nullptr &&
      tasks.count() < kBlocksPerThread * workers && params.keys > kPartKeys) {
    std::vector<AttentionBlock> blocks;
    std::int64_t bytes = 0;
    for (std::int64_t task = 0; task < tasks.count(); ++task) {
      blocks.push_back(tasks.block(task));
      bytes += parts_of(blocks.back()) * part_bytes(params, blocks.back());
    }
    if (bytes <= kMostPartBytes) {
      run_parts(params, blocks, kernel, merge, elements, work);
      return;
    }
  }
  run_whole(params, tasks, kernel, elements, work);
}

template <class X>
void run_mechanism(const AttentionParams<X>& params) {
  const auto& table = attention_kernels_of<X>(kernels());
  const auto depth = static_cast<double>(params.query.shape[3]);
  if (params.v == nullptr) {
    run_attention<X>(params, table.sdpa, table.merge, depth);
  } else {
    run_attention<X>(params, table.additive, table.merge, kWorkPerTerm * depth);
  }
}

template <class X>
AttentionParams<X> scores_of(AttentionParams<X> params, ScoreStage stage,
                             const View<X, 4>& scores) {
  params.out.data = params.weights.data = nullptr;
  params.lse.data = params.max.data = params.entropy.data = params.top_weights.data = nullptr;
  params.scores = scores;
  if (stage != ScoreStage::biased) {
    params.mask = {};
    params.kv_lengths = nullptr;
    params.slopes = nullptr;
    params.left = params.right = kUnbounded;
    params.keys = scores.shape[3];
  }
  if (stage == ScoreStage::plain) params.softcap = 0;
  return params;
}

#define PYATTN_INSTANTIATE(X)                                                      \
  template class AttentionTasks<X>;                                                \
  template void limit_keys(const AttentionParams<X>&, AttentionBlock&);            \
  template void run_attention(const AttentionParams<X>&, AttentionKernels<X>::Run, \
                              AttentionKernels<X>::Merge, double);                 \
  template void run_mechanism(const AttentionParams<X>&);                          \
  template AttentionParams<X> scores_of(AttentionParams<X>, ScoreStage, const View<X, 4>&);
PYATTN_INSTANTIATE(float)
PYATTN_INSTANTIATE(double)
PYATTN_INSTANTIATE(Half)
PYATTN_INSTANTIATE(BFloat16)
#undef PYATTN_INSTANTIATE

}  // namespace pyattn

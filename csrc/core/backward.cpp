#include "core/backward.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/attention.h"
#include "core/parallel.h"
#include "core/scratch.h"

namespace pyattn {
namespace {

constexpr std::int64_t kCacheLine = 64;
// Sums of the segments that are in the making at once, unless one head or the threads need more.
constexpr std::int64_t kWaveBytes = std::int64_t{1} << 24;
// Sums of the segments of one head; beyond this there are fewer segments.
constexpr std::int64_t kHeadBytes = std::int64_t{40} << 20;
// K, V, dK and dV of the keys that all blocks of a segment pass over before the next ones.
constexpr std::int64_t kChunkBytes = std::int64_t{1} << 19;
// So many units per entry of the batch are wanted, if there are rows enough for them.
constexpr std::int64_t kUnits = 16;
constexpr std::int64_t kMostSegments = 8;
constexpr std::int64_t kLeastBlocks = 8;  // per segment

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

template <class X>
std::int64_t row_count(const AttentionParams<X>& p, std::int64_t batch) {
  if (p.query_offsets == nullptr) return p.query.shape[2];
  return p.query_offsets[batch + 1] - p.query_offsets[batch];
}

// All keys of an entry, those beyond its length included.
template <class X>
std::int64_t key_count(const AttentionParams<X>& p, std::int64_t batch) {
  if (p.key_offsets == nullptr) return p.key.shape[2];
  return p.key_offsets[batch + 1] - p.key_offsets[batch];
}

// How the query rows of the heads that share a key/value head are cut into blocks.
template <class X>
struct RowBlocks {
  std::int64_t length;
  std::int64_t sharing;  // query heads per key/value head
  std::int64_t rows;     // per block
  std::int64_t count;    // along the rows
  std::int64_t heads;    // per block

  RowBlocks(const AttentionParams<X>& p, std::int64_t batch)
      : length(row_count(p, batch)), sharing(p.query.shape[1] / p.key.shape[1]) {
    rows = std::clamp<std::int64_t>(length, 1, kBlockRows);
    count = ceil_div(length, rows);
    heads = std::clamp<std::int64_t>(kBlockRows / rows, 1, std::max<std::int64_t>(sharing, 1));
  }

  std::int64_t heads_blocks() const { return ceil_div(sharing, heads); }

  AttentionBlock block(const AttentionParams<X>& p, std::int64_t batch, std::int64_t group,
                       std::int64_t row_block, std::int64_t head_block) const {
    AttentionBlock block;
    block.batch = batch;
    block.first_head = group * sharing + head_block * heads;
    block.heads = std::min(heads, sharing - head_block * heads);
    block.first_row = row_block * rows;
    block.rows = std::min(rows, length - block.first_row);
    limit_keys(p, block);
    return block;
  }
};

// One unit of work.
struct Segment {
  std::int64_t batch = 0;
  std::int64_t group = 0;
  std::int64_t first_block = 0;
  std::int64_t end_block = 0;
  std::int64_t key_begin = 0;  // the keys that it touches
  std::int64_t key_end = 0;
  bool alone = false;  // the only one of its head
};

template <class X>
class Backward {
 public:
  using T = Compute<X>;

  Backward(const BackwardParams<X>& params, const BackwardKernels<X>& kernels)
      : params_(params),
        p_(params.forward),
        kernels_(kernels),
        depth_(p_.query.shape[3]),
        columns_(p_.value.shape[3]),
        key_stride_(params.grad_key.data == nullptr ? 0 : round_up(depth_, kSumAlign)),
        value_stride_(params.grad_value.data == nullptr ? 0 : round_up(columns_, kSumAlign)),
        v_stride_(params.grad_v == nullptr ? 0 : round_up(depth_ + 1, kSumAlign)) {
    const std::int64_t row_bytes = 2 * (depth_ + columns_) * static_cast<std::int64_t>(sizeof(T));
    chunk_ = std::max<std::int64_t>(kChunkBytes / std::max<std::int64_t>(row_bytes, 1), 1);
    chunk_ = std::min(round_up(chunk_, kTileKeys), kPartKeys);
  }

  void run() {
    plan();
    v_sums_.assign(segments_.size() * static_cast<std::size_t>(v_stride_), T(0));
    for (std::size_t first = 0; first < segments_.size();) {
      std::size_t end = first;
      std::int64_t bytes = 0;
      const auto busy = first + static_cast<std::size_t>(threads());
      while (end < segments_.size() && (bytes <= kWaveBytes || end < busy || !begins_head(end))) {
        bytes += shared_bytes(segments_[end++]);
      }
      run_wave(first, end, bytes);
      first = end;
    }
    if (params_.grad_v != nullptr) store_v();
  }

 private:
  bool begins_head(std::size_t index) const { return segments_[index].first_block == 0; }

  void plan() {
    const std::int64_t groups = p_.key.shape[1];
    for (std::int64_t batch = 0; batch < p_.batch; ++batch) {
      const RowBlocks<X> blocks(p_, batch);
      const std::vector<Segment> segments = segments_of(blocks, batch);
      for (const Segment& segment : segments) {
        const std::int64_t rows = segment.end_block - segment.first_block;
        most_sums_ = std::max(most_sums_, rows * blocks.heads_blocks());
      }
      for (std::int64_t group = 0; group < groups; ++group) {
        for (Segment segment : segments) {
          segment.group = group;
          segments_.push_back(segment);
        }
      }
    }
  }

  // The segments of an entry, those of its first head: as many as there are rows and memory for.
  std::vector<Segment> segments_of(const RowBlocks<X>& blocks, std::int64_t batch) {
    std::vector<std::int64_t> before = {0};  // keys that the blocks before it look at
    for (std::int64_t i = 0; i < blocks.count; ++i) {
      const AttentionBlock block = blocks.block(p_, batch, 0, i, 0);
      before.push_back(before.back() + kTileKeys + block.key_end - block.key_begin);
    }
    const std::int64_t term = p_.v == nullptr ? 3 : 12;  // a tanh and its gradients
    work_ += static_cast<double>(before.back() * blocks.rows * p_.query.shape[1]) *
             static_cast<double>(term * depth_ + 2 * columns_ + 32);
    std::int64_t count = 1;
    while (count < kMostSegments && count * p_.key.shape[1] < kUnits &&
           2 * count * kLeastBlocks <= blocks.count) {
      count *= 2;
    }
    for (;; count /= 2) {
      const std::vector<Segment> segments = cut(blocks, batch, before, count);
      std::int64_t bytes = 0;
      for (const Segment& segment : segments) bytes += shared_bytes(segment);
      if (count <= 2 || bytes <= kHeadBytes) return segments;
    }
  }

  // About as many scores in each.
  std::vector<Segment> cut(const RowBlocks<X>& blocks, std::int64_t batch,
                           const std::vector<std::int64_t>& before, std::int64_t count) const {
    std::vector<Segment> segments;
    std::int64_t begin = 0;
    for (std::int64_t i = 1; i <= count; ++i) {
      const std::int64_t share = before.back() / count * i;
      const auto end = std::lower_bound(before.begin(), before.end(), share) - before.begin();
      Segment segment{.batch = batch, .first_block = begin, .end_block = blocks.count};
      if (i < count) segment.end_block = std::max<std::int64_t>(begin, end);
      segment.alone = count == 1;
      limit(segment, blocks);
      segments.push_back(segment);
      begin = segment.end_block;
    }
    return segments;
  }

  void limit(Segment& segment, const RowBlocks<X>& blocks) const {
    segment.key_begin = kUnbounded;
    for (std::int64_t i = segment.first_block; i < segment.end_block; ++i) {
      const AttentionBlock block = blocks.block(p_, segment.batch, segment.group, i, 0);
      if (block.key_begin >= block.key_end) continue;
      segment.key_begin = std::min(segment.key_begin, block.key_begin);
      segment.key_end = std::max(segment.key_end, block.key_end);
    }
    segment.key_begin = std::min(segment.key_begin, segment.key_end);
  }

  // Memory of the sums of `keys` keys, dK and dV.
  std::int64_t sums_bytes(std::int64_t keys) const {
    return round_up(keys * (key_stride_ + value_stride_) * static_cast<std::int64_t>(sizeof(T)),
                    kCacheLine);
  }
  std::int64_t shared_bytes(const Segment& segment) const {
    return segment.alone ? 0 : sums_bytes(segment.key_end - segment.key_begin);
  }

  KeySums<T> sums_at(std::byte* memory, std::int64_t first, std::int64_t end) const {
    KeySums<T> sums{.first = first, .end = end};
    auto* start = reinterpret_cast<T*>(memory);
    if (key_stride_ != 0) sums.key = start;
    if (value_stride_ != 0) sums.value = start + (end - first) * key_stride_;
    return sums;
  }

  void run_wave(std::size_t first, std::size_t end, std::int64_t shared) {
    const auto count = static_cast<std::int64_t>(end - first);
    const auto all = static_cast<double>(segments_.size());
    TaskLoop loop{.tasks = count, .work = work_ * static_cast<double>(count) / all};
    const int workers = loop_threads(loop);
    const auto size = static_cast<std::int64_t>(sizeof(T));
    const std::int64_t scratch =
        round_up(backward_scratch_elements(depth_, columns_) * size, kCacheLine);
    query_bytes_ = params_.grad_query.data == nullptr ? 0 : kBlockRows * depth_ * size;
    query_bytes_ = round_up(query_bytes_, kCacheLine);
    const std::int64_t per_worker = scratch + most_sums_ * query_bytes_ + sums_bytes(chunk_);
    std::byte* memory = thread_scratch(static_cast<std::size_t>(per_worker * workers + shared));
    std::vector<KeySums<T>> parts;
    std::byte* next = memory + per_worker * workers;
    for (std::size_t i = first; i < end; ++i) {
      const Segment& segment = segments_[i];
      parts.push_back(sums_at(next, segment.key_begin, segment.key_end));
      next += shared_bytes(segment);
    }
    auto body = [&](std::int64_t task, int worker) {
      const auto at = static_cast<std::size_t>(task);
      run_segment(first + at, parts[at], memory + per_worker * worker, scratch);
    };
    parallel_for(loop, workers, body);
    if (shared > 0) add_parts(first, end, parts, static_cast<double>(shared / size));
  }

  void run_segment(std::size_t index, const KeySums<T>& part, std::byte* memory,
                   std::int64_t scratch_bytes) {
    const Segment& segment = segments_[index];
    const RowBlocks<X> blocks(p_, segment.batch);
    auto* scratch = reinterpret_cast<T*>(memory);
    std::byte* queries = memory + scratch_bytes;
    std::byte* own = queries + most_sums_ * query_bytes_;
    const std::int64_t heads = blocks.heads_blocks();
    const std::int64_t count = (segment.end_block - segment.first_block) * heads;
    if (kernels_.store_few != nullptr && segment.alone && count == 1 &&
        blocks.length <= kFewQueries) {
      store_zeros(segment);
      kernels_.store_few(params_, blocks.block(p_, segment.batch, segment.group, 0, 0),
                         v_sums_of(index), scratch);
      return;
    }
    std::memset(queries, 0, static_cast<std::size_t>(count * query_bytes_));
    const auto block_at = [&](std::int64_t i) {
      return blocks.block(p_, segment.batch, segment.group, segment.first_block + i / heads,
                          i % heads);
    };
    const auto sums_of = [&](std::int64_t i) {
      return query_bytes_ == 0 ? nullptr : reinterpret_cast<T*>(queries + i * query_bytes_);
    };
    if (segment.alone) store_zeros(segment);
    for (std::int64_t key = segment.key_begin; key < segment.key_end; key += chunk_) {
      const std::int64_t end = std::min(key + chunk_, segment.key_end);
      KeySums<T> sums = segment.alone ? sums_at(own, key, end) : part;
      sums.v = v_sums_of(index);
      clear(sums, key, end);
      for (std::int64_t i = 0; i < count; ++i) {
        AttentionBlock block = block_at(i);
        block.key_begin = std::max(block.key_begin, key);
        block.key_end = std::min(block.key_end, end);
        if (block.key_begin < block.key_end)
          kernels_.add(params_, block, sums, sums_of(i), scratch);
      }
      if (segment.alone) {
        kernels_.store_keys(params_, segment.batch, segment.group, key, end, &sums, 1);
      }
    }
    for (std::int64_t i = 0; i < count && query_bytes_ != 0; ++i) {
      kernels_.store_query(params_, block_at(i), sums_of(i), scratch);
    }
  }

  T* v_sums_of(std::size_t index) {
    if (v_stride_ == 0) return nullptr;
    return v_sums_.data() + index * static_cast<std::size_t>(v_stride_);
  }

  void clear(const KeySums<T>& sums, std::int64_t key, std::int64_t end) const {
    const auto zero = [&](T* rows, std::int64_t stride) {
      if (rows == nullptr) return;
      std::memset(rows + (key - sums.first) * stride, 0,
                  sizeof(T) * static_cast<std::size_t>((end - key) * stride));
    };
    zero(sums.key, key_stride_);
    zero(sums.value, value_stride_);
  }

  // The sums of the segments of each head, in order; see KeySums.
  void store_v() const {
    std::vector<double> sums(static_cast<std::size_t>(p_.query.shape[1] * depth_));
    for (std::size_t i = 0; i < segments_.size(); ++i) {
      const T* part = v_sums_.data() + i * static_cast<std::size_t>(v_stride_);
      double* sum = sums.data() + segments_[i].group * depth_;
      for (std::int64_t a = 0; a < depth_; ++a) {
        sum[a] += static_cast<double>(part[depth_]) - 2 * static_cast<double>(part[a]);
      }
    }
    for (std::size_t i = 0; i < sums.size(); ++i) params_.grad_v[i] = static_cast<T>(sums[i]);
  }

  // Keys that no query sees.
  void store_zeros(const Segment& segment) const {
    const std::int64_t keys = key_count(p_, segment.batch);
    kernels_.store_keys(params_, segment.batch, segment.group, 0, segment.key_begin, nullptr, 0);
    kernels_.store_keys(params_, segment.batch, segment.group, segment.key_end, keys, nullptr, 0);
  }

  struct Rows {
    std::size_t first;  // segment, of its head
    std::int64_t key;
  };

  // Adds the sums of the segments of each head up, in order.
  void add_parts(std::size_t first, std::size_t end, const std::vector<KeySums<T>>& parts,
                 double work) const {
    std::vector<Rows> rows;
    for (std::size_t i = first; i < end; ++i) {
      if (!begins_head(i) || segments_[i].alone) continue;
      const std::int64_t keys = key_count(p_, segments_[i].batch);
      for (std::int64_t key = 0; key < keys; key += chunk_) rows.push_back({i, key});
    }
    TaskLoop loop{.tasks = static_cast<std::int64_t>(rows.size()), .work = work};
    auto body = [&](std::int64_t task, int) {
      const auto [index, key] = rows[static_cast<std::size_t>(task)];
      const Segment& segment = segments_[index];
      std::size_t last = index + 1;
      while (last < end && !begins_head(last)) ++last;
      const std::int64_t stop = std::min(key + chunk_, key_count(p_, segment.batch));
      kernels_.store_keys(params_, segment.batch, segment.group, key, stop,
                          parts.data() + (index - first), static_cast<std::int64_t>(last - index));
    };
    parallel_for(loop, loop_threads(loop), body);
  }

  const BackwardParams<X>& params_;
  const AttentionParams<X>& p_;
  const BackwardKernels<X>& kernels_;
  std::int64_t depth_;
  std::int64_t columns_;
  std::int64_t key_stride_;
  std::int64_t value_stride_;
  std::int64_t v_stride_;
  std::vector<T> v_sums_;  // of every segment
  std::int64_t chunk_ = 0;
  std::int64_t query_bytes_ = 0;
  std::int64_t most_sums_ = 0;  // blocks of a segment
  double work_ = 0;
  std::vector<Segment> segments_;
};

}  // namespace

template <class X>
void run_backward(const BackwardParams<X>& params, const BackwardKernels<X>& kernels) {
  const bool wanted = params.grad_query.data != nullptr || params.grad_key.data != nullptr ||
                      params.grad_value.data != nullptr || params.grad_v != nullptr;
  if (wanted && params.forward.key.shape[1] > 0) {
    Backward<X>(params, kernels).run();
  }
  if (params.grad_mask.data != nullptr) run_mask_gradient(params, kernels);
}

#define PYATTN_INSTANTIATE(X) \
  template void run_backward(const BackwardParams<X>&, const BackwardKernels<X>&);
PYATTN_INSTANTIATE(float)
PYATTN_INSTANTIATE(double)
PYATTN_INSTANTIATE(Half)
PYATTN_INSTANTIATE(BFloat16)
#undef PYATTN_INSTANTIATE

}  // namespace pyattn

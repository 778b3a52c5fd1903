// Rows of keys and values where they lie: one step apart, in pages, or in packed sequences.
#pragma once

#include "core/params.h"
#include "cpu/math.inl"

namespace pyattn {
namespace {

// Row `index` of K or V of a batch entry.
template <class X>
const X* row_of(const AttentionParams<X>& p, const View<const X, 4>& view, std::int64_t batch,
                std::int64_t head, std::int64_t index) {
  if (p.pages.table != nullptr) {
    batch = p.pages.table[batch * p.pages.stride + index / p.pages.size];
    index %= p.pages.size;
  } else if (p.key_offsets != nullptr) {
    index += p.key_offsets[batch];
  }
  return view.data + batch * view.stride[0] + head * view.stride[1] + index * view.stride[2];
}

// Rows `first`, first + 1, ... of K or V.
template <class X>
struct TileRows {
  const AttentionParams<X>& p;
  const View<const X, 4>& view;
  std::int64_t batch;
  std::int64_t head;
  std::int64_t first;
  const X* start;

  TileRows(const AttentionParams<X>& params, const View<const X, 4>& rows, std::int64_t b,
           std::int64_t h, std::int64_t from)
      : p(params), view(rows), batch(b), head(h), first(from), start(row_of(p, view, b, h, from)) {}

  PYATTN_INLINE const X* operator[](int k) const {
    if (p.pages.table != nullptr) return row_of(p, view, batch, head, first + k);
    return start + k * view.stride[2];
  }

  // The first `count` of them.
  void list(int count, const X** to) const {
    if (p.pages.table != nullptr) {
      for (int k = 0; k < count; ++k) to[k] = (*this)[k];
      return;
    }
    const std::int64_t step = view.stride[2];  // in a register: then the loop is vectorised
    for (int k = 0; k < count; ++k) to[k] = start + k * step;
  }
};

// Rows first .. end - 1 of K or V, which will be read soon. A kernel asks for the next cache lines
// of them between two groups of its own rows, so that the requests for memory spread over the
// arithmetic: of many at once the processor drops those that find its miss queue full. For the same
// reason the loop that asks is not unrolled (0.66 instead of 0.80 of the memory's rate, decoding on
// Zen 5). Masked rows may be among them: prefetching is not reading.
template <class X>
class Ahead {
 public:
  static constexpr std::int64_t kLine = 64 / static_cast<std::int64_t>(sizeof(X));

  Ahead() = default;
  Ahead(const AttentionParams<X>& p, const View<const X, 4>& view, std::int64_t batch,
        std::int64_t head, std::int64_t first, std::int64_t end)
      : p_(&p), view_(&view), batch_(batch), head_(head), next_(first), end_(end) {
    if (view.stride[3] != 1 || view.shape[3] == 0) next_ = end;
  }

  // Rows first .. end - 1 of `view` come after these.
  void then(const View<const X, 4>& view, std::int64_t first, std::int64_t end) {
    if (view.stride[3] != 1 || view.shape[3] == 0) return;
    after_ = &view;
    after_first_ = first;
    after_end_ = end;
  }

  // Cache lines of `rows` rows.
  std::int64_t lines(std::int64_t rows) const {
    return view_ == nullptr ? 0 : (rows * view_->shape[3] + kLine - 1) / kLine;
  }

  PYATTN_INLINE void touch(std::int64_t lines) {
    if (left_ >= lines * kLine) {
      PYATTN_LOOP
      for (std::int64_t i = 0; i < lines; ++i) PYATTN_PREFETCH(at_ + i * kLine);
      at_ += lines * kLine;
      left_ -= lines * kLine;
      return;
    }
    while (lines > 0) {
      if (left_ <= 0 && !next_run()) return;
      const std::int64_t run = (left_ + kLine - 1) / kLine;
      const std::int64_t some = lines < run ? lines : run;
      for (std::int64_t i = 0; i < some; ++i) PYATTN_PREFETCH(at_ + i * kLine);
      at_ += some * kLine;
      left_ -= some * kLine;
      lines -= some;
    }
  }

 private:
  // The next numbers beside each other: the rest of a page, or all rows, if there is no gap
  // between rows, otherwise one row.
  bool next_run() {
    if (next_ >= end_) {
      if (after_first_ >= after_end_) return false;
      view_ = after_;
      next_ = after_first_;
      end_ = after_first_ = after_end_;
    }
    std::int64_t rows = end_ - next_;
    if (p_->pages.table != nullptr) {
      const std::int64_t page = p_->pages.size - next_ % p_->pages.size;
      rows = page < rows ? page : rows;
    }
    if (view_->stride[2] != view_->shape[3]) rows = 1;
    at_ = row_of(*p_, *view_, batch_, head_, next_);
    left_ = rows * view_->shape[3];
    next_ += rows;
    return true;
  }

  const AttentionParams<X>* p_ = nullptr;
  const View<const X, 4>* view_ = nullptr;
  std::int64_t batch_ = 0;
  std::int64_t head_ = 0;
  std::int64_t next_ = 0;  // row
  std::int64_t end_ = 0;
  const View<const X, 4>* after_ = nullptr;
  std::int64_t after_first_ = 0;
  std::int64_t after_end_ = 0;
  const X* at_ = nullptr;
  std::int64_t left_ = 0;  // numbers from at_ on
};

// For products whose operands are in the cache.
struct NothingAhead {
  std::int64_t lines(std::int64_t) const { return 0; }
  void touch(std::int64_t) const {}
};

// A row as numbers of type U beside each other: where it lies, or copied to `copy`.
template <class V, class U, class X>
const U* unit_row(const X* row, std::int64_t step, std::int64_t columns, U* copy) {
  if constexpr (sizeof(X) == sizeof(U)) {
    if (step == 1) return row;
    for (std::int64_t d = 0; d < columns; ++d) copy[d] = row[d * step];
  } else if (step == 1) {
    for (std::int64_t d = 0; d < columns; d += V::kLanes) {
      store_left(load_left<V>(row + d, columns - d), copy + d, columns - d);
    }
  } else {
    for (std::int64_t d = 0; d < columns; ++d) copy[d] = widen<V>(row + d * step);
  }
  return copy;
}

}  // namespace
}  // namespace pyattn

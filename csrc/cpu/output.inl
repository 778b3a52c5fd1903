// Into and out of panels: the queries of a block, and its results.
#pragma once

#include "cpu/softmax_tile.inl"
#include "cpu/values.inl"

namespace pyattn {
namespace {

// panels[panel][d][lane] = scale * row(lane), of the shape and step of the view. `depth` is the
// number of rows per panel, at least the length of a row.
template <class V, class X, class Row>
void load_panels(const Queries<X>& queries, const View<const X, 4>& view, std::int64_t depth,
                 Compute<X> scale, Compute<X>* panels, const Row& row_of_lane) {
  using T = Compute<X>;
  const std::int64_t columns = view.shape[3];
  for (int lane = 0; lane < queries.count; lane += kPanel<V>) {
    const int lanes = queries.count - lane < kPanel<V> ? queries.count - lane : kPanel<V>;
    const X* row[kPanel<V>];
    for (int i = 0; i < lanes; ++i) row[i] = row_of_lane(lane + i);
    T* panel = panels + lane * depth;
    if (view.stride[3] == 1) {
      transpose_in<V>(row, lanes, columns, panel, kPanel<V>, Scaled<V>{V::broadcast(scale)});
      continue;
    }
    for (std::int64_t d = 0; d < columns; ++d) {
      for (int i = 0; i < kPanel<V>; ++i) {
        panel[d * kPanel<V> + i] = i < lanes ? widen<V>(row[i] + d * view.stride[3]) * scale : T(0);
      }
    }
  }
}

template <class V, class X>
void load_panels(const Queries<X>& queries, const View<const X, 4>& view, std::int64_t depth,
                 Compute<X> scale, Compute<X>* panels) {
  load_panels<V>(queries, view, depth, scale, panels,
                 [&](int lane) { return queries.input(view.data, view.stride, lane); });
}

// query[panel][d][lane] = scale * q. `depth` is the number of rows per panel, D or D + 1.
template <class V, class X>
void load_queries(const Queries<X>& queries, std::int64_t depth, Compute<X> scale,
                  Compute<X>* panels) {
  load_panels<V>(queries, queries.p.query, depth, scale, panels,
                 [&](int lane) { return queries.query(lane); });
}

// Rows of `out`, in panels or as rows, times `scale`, to wherever row(lane) points.
template <class V, class T, class Row>
void store_rows(const T* out, const T* scale, int count, std::int64_t columns, bool by_rows,
                Row&& row) {
  for (int lane = 0; by_rows && lane < count; ++lane) {
    const V factor = V::broadcast(scale[lane]);
    auto* place = row(lane);
    for (std::int64_t e = 0; e < columns; e += V::kLanes) {
      const V x = load_left<V>(out + lane * columns + e, columns - e) * factor;
      store_left(x, place + e, columns - e);
    }
  }
  for (int lane = 0; !by_rows && lane < count; lane += kPanel<V>) {
    const int lanes = count - lane < kPanel<V> ? count - lane : kPanel<V>;
    decltype(row(0)) place[kPanel<V>];
    for (int i = 0; i < lanes; ++i) place[i] = row(lane + i);
    transpose_out<V>(out + lane * columns, kPanel<V>, columns, scale + lane, place, lanes);
  }
}

// scale = factor / l, 0 where no key was allowed.
template <class T>
void invert_sums(const T* sum, T factor, T* scale) {
  for (int lane = 0; lane < kBlockRows; ++lane) {
    scale[lane] = sum[lane] == T(0) ? T(0) : factor / sum[lane];
  }
}

// out = o / l, max = m, then the sinks, lse = m + log l. Leaves the sinks in m and l.
template <class V, class X>
void store_output(const Queries<X>& queries, const State<Compute<X>>& total, bool by_rows,
                  Compute<X>* scale) {
  using T = Compute<X>;
  const AttentionParams<X>& p = queries.p;
  for (int lane = 0; p.max.data != nullptr && lane < queries.count; ++lane) {
    *queries.output(p.max.data, p.max.stride, lane) = total.max[lane];
  }
  const T factor = p.dropout.on ? p.dropout.factor : T(1);
  if (p.sinks != nullptr) {
    add_sinks<V>(queries, total, scale);
    for (int lane = 0; lane < kBlockRows; ++lane) {
      scale[lane] = total.sum[lane] == T(0) ? T(0) : factor * scale[lane] / total.sum[lane];
    }
  } else {
    invert_sums(total.sum, factor, scale);
  }
  store_rows<V>(total.out, scale, queries.count, p.value.shape[3], by_rows,
                [&](int lane) { return queries.output(p.out.data, p.out.stride, lane); });
  for (int lane = 0; p.lse.data != nullptr && lane < queries.count; ++lane) {
    *queries.output(p.lse.data, p.lse.stride, lane) =
        total.max[lane] + static_cast<T>(::log(static_cast<double>(total.sum[lane])));
  }
}

}  // namespace
}  // namespace pyattn

// Packed sequences between Python and the kernels.
#pragma once

#include <algorithm>
#include <string_view>
#include <vector>

#include "python/sdpa_call.h"

namespace pyattn::python {

// Offsets of the sequences of queries and of keys: 0, ..., total, as many of one as of the other.
struct PackedOffsets {
  std::vector<std::int64_t> rows;
  std::vector<std::int64_t> keys;

  PackedOffsets(const py::object& cu_seqlens_q, const py::object& cu_seqlens_k,
                std::int64_t all_rows, std::int64_t all_keys, std::string_view function);

  std::int64_t batch() const { return static_cast<std::int64_t>(rows.size()) - 1; }
};

void check_packed(const py::array& query, const py::array& key, const py::array& value,
                  std::string_view function);

// (N, H, D) as (B, H, N, D) whose sequences all start at the same place.
template <class X>
View<X, 4> packed_view(const View<X, 3>& view, std::int64_t batch) {
  return {.data = view.data,
          .shape = {batch, view.shape[1], view.shape[0], view.shape[2]},
          .stride = {0, view.stride[1], view.stride[0], view.stride[2]}};
}

// (H, N) as (B, H, N), likewise.
template <class X>
View<X, 3> packed_rows(const View<X, 2>& view, std::int64_t batch) {
  return {.data = view.data,
          .shape = {batch, view.shape[0], view.shape[1]},
          .stride = {0, view.stride[0], view.stride[1]}};
}

// The arrays and where the sequences lie in them; `offsets` must outlive the parameters.
template <class X>
AttentionParams<X> packed_params(const py::array& query, const py::array& key,
                                 const py::array& value, const PackedOffsets& offsets,
                                 std::string_view function) {
  const std::int64_t batch = offsets.batch();
  AttentionParams<X> params{
      .query = packed_view(input_view<X, 3>(query, {function, "query"}), batch),
      .key = packed_view(input_view<X, 3>(key, {function, "key"}), batch),
      .value = packed_view(input_view<X, 3>(value, {function, "value"}), batch),
      .batch = batch,
      .query_offsets = offsets.rows.data(),
      .key_offsets = offsets.keys.data(),
  };
  for (std::size_t b = 1; b < offsets.keys.size(); ++b) {
    params.keys = std::max(params.keys, offsets.keys[b] - offsets.keys[b - 1]);
  }
  return params;
}

}  // namespace pyattn::python

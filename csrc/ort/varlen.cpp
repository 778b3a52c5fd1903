// Scaled dot-product attention of packed sequences, (N, H, D).
#include <algorithm>

#include "core/attention.h"
#include "ort/call.h"

namespace pyattn::ort {
namespace {

void check(const Call& call) {
  const auto all = {Role::query, Role::key, Role::value};
  call.require_axes(3);
  const auto& q = call.tensor(Role::query).shape;
  const auto& k = call.tensor(Role::key).shape;
  const auto& v = call.tensor(Role::value).shape;
  call.require(k[0] == v[0], "key and value must share M", all);
  call.require(k[1] == v[1], "key and value must share G", all);
  call.require(q[2] == k[2], "query and key must share D", all);
  call.require_groups();
}

// Where each sequence starts and the last one ends: 0, ..., total.
std::vector<std::int64_t> offsets(const Call& call, Role role, std::int64_t total) {
  const Tensor& given = call.tensor(role);
  call.require(given.rank == 1 && given.shape[0] >= 1, "offsets must be (B + 1,)", {role});
  auto found = call.integers(role, given.shape[0], 0, total);
  if (!std::is_sorted(found.begin(), found.end()) || found.front() != 0 || found.back() != total) {
    throw std::invalid_argument(std::string(role_name(role)) + " must rise from 0 to " +
                                std::to_string(total));
  }
  return found;
}

// (N, H, D) as (B, H, N, D) whose sequences all start at the same place.
template <class X>
View<X, 4> packed(const View<X, 3>& view, std::int64_t batch) {
  return {.data = view.data,
          .shape = {batch, view.shape[1], view.shape[0], view.shape[2]},
          .stride = {0, view.stride[1], view.stride[0], view.stride[2]}};
}

}  // namespace

template <class X>
void compute_varlen(const Call& call) {
  using T = Compute<X>;
  check(call);
  const Variant& variant = call.variant();
  const Tensor& query = call.tensor(Role::query);
  const Tensor& key = call.tensor(Role::key);
  const auto rows = offsets(call, Role::query_offsets, query.shape[0]);
  const auto keys = offsets(call, Role::key_offsets, key.shape[0]);
  call.require(rows.size() == keys.size(), "cu_seqlens_q and cu_seqlens_k must have one length",
               {Role::query_offsets, Role::key_offsets});
  const auto batch = static_cast<std::int64_t>(rows.size()) - 1;
  AttentionParams<X> params{
      .query = packed(view_of<const X, 3>(query), batch),
      .key = packed(view_of<const X, 3>(key), batch),
      .value = packed(view_of<const X, 3>(call.tensor(Role::value)), batch),
      .batch = batch,
      .query_offsets = rows.data(),
      .key_offsets = keys.data(),
      .left = variant.left,
      .right = variant.right,
      .scale = static_cast<T>(call.scale()),
      .softcap = static_cast<T>(variant.softcap),
      .slopes = call.of_heads<T>(Role::slopes),
      .sinks = call.of_heads<T>(Role::sinks),
  };
  std::vector<std::int64_t> starts;
  for (std::size_t b = 0; b + 1 < rows.size(); ++b) {
    const std::int64_t length = keys[b + 1] - keys[b];
    params.keys = std::max(params.keys, length);
    starts.push_back(length - (rows[b + 1] - rows[b]));
  }
  if (variant.bottom_right) params.query_starts = starts.data();
  for (std::size_t i = 0; i < call.results(); ++i) {
    const Tensor tensor = call.result(i);
    if (tensor.data == nullptr) continue;
    if (call.output(i) == Output::out) {
      params.out = packed(view_of<X, 3>(tensor), batch);
    } else {  // (H, N)
      const auto view = view_of<T, 2>(tensor);
      params.lse = {.data = view.data,
                    .shape = {batch, view.shape[0], view.shape[1]},
                    .stride = {0, view.stride[0], view.stride[1]}};
    }
  }
  run_mechanism(params);
}

template void compute_varlen<float>(const Call&);
template void compute_varlen<double>(const Call&);
template void compute_varlen<Half>(const Call&);
template void compute_varlen<BFloat16>(const Call&);

}  // namespace pyattn::ort

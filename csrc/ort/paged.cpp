// Scaled dot-product attention against keys and values in pages, (N, G, page, D).
#include "core/attention.h"
#include "ort/call.h"

namespace pyattn::ort {
namespace {

void check(const Call& call) {
  const auto all = {Role::query, Role::key, Role::value};
  call.require_axes(4);
  const auto& q = call.tensor(Role::query).shape;
  const auto& k = call.tensor(Role::key).shape;
  const auto& v = call.tensor(Role::value).shape;
  call.require(k[0] == v[0] && k[1] == v[1] && k[2] == v[2],
               "pages of keys and values must share N, G and page", all);
  call.require(k[2] > 0, "pages must hold a key", all);
  call.require(q[3] == k[3], "query and key must share D", all);
  call.require_groups();
  const Tensor& table = call.tensor(Role::table);
  call.require(table.rank == 2 && table.shape[0] == q[0], "block_table must be (B, pages)",
               {Role::query, Role::table});
}

// The pages that hold a valid key are checked; the others are never looked at.
void check_table(const Call& call, const std::vector<std::int64_t>& lengths) {
  const Tensor& table = call.tensor(Role::table);
  const Tensor& pages = call.tensor(Role::key);
  const auto* names = static_cast<const std::int32_t*>(table.data);
  for (std::size_t b = 0; b < lengths.size(); ++b) {
    const std::int64_t used = (lengths[b] + pages.shape[2] - 1) / pages.shape[2];
    for (std::int64_t i = 0; i < used; ++i) {
      const std::int32_t name = names[static_cast<std::int64_t>(b) * table.shape[1] + i];
      if (name >= 0 && name < pages.shape[0]) continue;
      throw std::invalid_argument(
          "block_table must name pages 0.." + std::to_string(pages.shape[0] - 1) + "; got " +
          std::to_string(name) + " at (" + std::to_string(b) + ", " + std::to_string(i) + ")");
    }
  }
}

}  // namespace

template <class X>
void compute_paged(const Call& call) {
  using T = Compute<X>;
  check(call);
  const Variant& variant = call.variant();
  const Tensor& query = call.tensor(Role::query);
  const Tensor& key = call.tensor(Role::key);
  const Tensor& table = call.tensor(Role::table);
  const std::int64_t keys = table.shape[1] * key.shape[2];
  const auto lengths = call.integers(Role::lengths, query.shape[0], 0, keys);
  check_table(call, lengths);
  std::vector<std::int64_t> starts;
  for (const std::int64_t length : lengths) starts.push_back(length - query.shape[2]);
  const Tensor out = call.result(0);
  if (out.data == nullptr) return;
  run_mechanism(AttentionParams<X>{
      .query = view_of<const X, 4>(query),
      .key = view_of<const X, 4>(key),
      .value = view_of<const X, 4>(call.tensor(Role::value)),
      .batch = query.shape[0],
      .keys = keys,
      .kv_lengths = lengths.data(),
      .pages = {.table = static_cast<const std::int32_t*>(table.data),
                .stride = table.shape[1],
                .size = key.shape[2]},
      .query_starts = variant.bottom_right ? starts.data() : nullptr,
      .left = variant.left,
      .right = variant.right,
      .scale = static_cast<T>(call.scale()),
      .softcap = static_cast<T>(variant.softcap),
      .slopes = call.of_heads<T>(Role::slopes),
      .sinks = call.of_heads<T>(Role::sinks),
      .out = view_of<X, 4>(out),
  });
}

template void compute_paged<float>(const Call&);
template void compute_paged<double>(const Call&);
template void compute_paged<Half>(const Call&);
template void compute_paged<BFloat16>(const Call&);

}  // namespace pyattn::ort

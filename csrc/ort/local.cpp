// Luong's local alignment around a real centre, (B, T, D).
#include "core/local.h"

#include "ort/call.h"

namespace pyattn::ort {
namespace {

void check(const Call& call) {
  const auto all = {Role::query, Role::key, Role::value};
  call.require_axes(3);
  const auto& q = call.tensor(Role::query).shape;
  const auto& k = call.tensor(Role::key).shape;
  const auto& v = call.tensor(Role::value).shape;
  call.require(q[0] == k[0] && q[0] == v[0], "query, key and value must share B", all);
  call.require(k[1] == v[1], "key and value must share S", all);
  call.require(q[2] == k[2], "query and key must share D", all);
  const Tensor& centre = call.tensor(Role::centre);
  call.require(centre.rank == 2 && centre.shape[0] == q[0] && centre.shape[1] == q[1],
               "centre must be (B, T)", {Role::query, Role::centre});
  const Tensor* direction = call.find(Role::v);
  if (direction == nullptr) return;
  call.require(direction->rank == 1 && direction->shape[0] == q[2], "v must be (D,)",
               {Role::query, Role::v});
}

}  // namespace

template <class X>
void compute_local(const Call& call) {
  using T = Compute<X>;
  check(call);
  const Variant& variant = call.variant();
  const Tensor& query = call.tensor(Role::query);
  const std::int64_t keys = call.tensor(Role::key).shape[1];
  LocalParams<X> params{
      .query = view_of<const X, 3>(query),
      .key = view_of<const X, 3>(call.tensor(Role::key)),
      .value = view_of<const X, 3>(call.tensor(Role::value)),
      .centre = view_of<const T, 2>(call.tensor(Role::centre)),
      .keys = keys,
      .half_width = variant.half_width,
      .renormalize = variant.renormalize,
  };
  params.mask = mask_of<X>(call, {query.shape[0], query.shape[1], keys}, params.keys);
  const auto lengths = call.integers(Role::lengths, query.shape[0], 0, keys);
  if (call.find(Role::lengths) != nullptr) params.kv_lengths = lengths.data();
  // The score is told by this address, which an empty tensor has not.
  static constexpr T kNone = 0;
  if (const Tensor* direction = call.find(Role::v)) {
    params.v = direction->count() == 0 ? &kNone : static_cast<const T*>(direction->data);
  }
  for (std::size_t i = 0; i < call.results(); ++i) {
    const Tensor tensor = call.result(i);
    if (tensor.data == nullptr) continue;
    switch (call.output(i)) {
      case Output::weights:
        params.weights = view_of<X, 3>(tensor);
        break;
      case Output::window_weights:
        params.window_weights = view_of<X, 3>(tensor);
        break;
      case Output::lse:
        params.lse = view_of<T, 2>(tensor);
        break;
      default:
        params.out = view_of<X, 3>(tensor);
    }
  }
  run_local(params);
}

template void compute_local<float>(const Call&);
template void compute_local<double>(const Call&);
template void compute_local<Half>(const Call&);
template void compute_local<BFloat16>(const Call&);

}  // namespace pyattn::ort

// Rotary position embedding, (B, H, T, D) or (B, T, H * D).
#include "core/rotary.h"

#include "ort/call.h"

namespace pyattn::ort {
namespace {

// (B, H, T, D), of either form.
template <class X>
View<X, 4> heads_of(const Tensor& x, std::int64_t heads) {
  return heads == 0 ? view_of<X, 4>(x) : split_heads(view_of<X, 3>(x), heads);
}

// (B, positions, pairs): a table that is looked up by position serves the whole batch.
template <class X>
View<const X, 3> cache_of(const Tensor& cache, std::int64_t batch) {
  if (cache.rank == 3) return view_of<const X, 3>(cache);
  const auto table = view_of<const X, 2>(cache);
  return {.data = table.data,
          .shape = {batch, table.shape[0], table.shape[1]},
          .stride = {0, table.stride[0], table.stride[1]}};
}

void check_input(const Call& call) {
  const Tensor& x = call.tensor(Role::x);
  const std::int64_t heads = call.variant().heads;
  if (heads == 0) {
    call.require(x.rank == 4, "x must be (B, H, T, D)", {Role::x});
  } else {
    call.require(x.rank == 3 && x.shape[2] % heads == 0, "x must be (B, T, H * D)", {Role::x});
  }
}

void check_caches(const Call& call, const std::int64_t (&x)[4]) {
  const auto all = {Role::x, Role::cosine, Role::sine};
  const Tensor& cosine = call.tensor(Role::cosine);
  const Tensor& sine = call.tensor(Role::sine);
  call.require(cosine.rank == sine.rank && cosine.shape == sine.shape,
               "cos_cache and sin_cache must have one shape", all);
  if (call.variant().positions) {
    call.require(cosine.rank == 2, "the caches must be (positions, pairs)", all);
  } else {
    call.require(cosine.rank == 3 && cosine.shape[0] == x[0] && cosine.shape[1] == x[2],
                 "the caches must be (B, T, pairs)", all);
  }
  call.require(cosine.shape[cosine.rank - 1] <= x[3] / 2, "pairs must be at most D / 2", all);
}

}  // namespace

template <class X>
void compute_rotary(const Call& call) {
  const Variant& variant = call.variant();
  check_input(call);
  RotaryParams<X> params{.input = heads_of<const X>(call.tensor(Role::x), variant.heads),
                         .interleaved = variant.interleaved};
  const auto& shape = params.input.shape;
  check_caches(call, shape);
  params.cosine = cache_of<X>(call.tensor(Role::cosine), shape[0]);
  params.sine = cache_of<X>(call.tensor(Role::sine), shape[0]);
  const auto positions =
      call.integers(Role::positions, {shape[0], shape[2]}, 0, params.cosine.shape[1] - 1);
  if (variant.positions) params.positions = positions.data();
  const Tensor result = call.result(0);
  if (result.data == nullptr) return;
  params.output = heads_of<X>(result, variant.heads);
  run_rotary(params);
}

template void compute_rotary<float>(const Call&);
template void compute_rotary<double>(const Call&);
template void compute_rotary<Half>(const Call&);
template void compute_rotary<BFloat16>(const Call&);

}  // namespace pyattn::ort

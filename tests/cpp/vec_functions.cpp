// Compiled once per instruction set, with its flags and PYATTN_TEST_<ISA>; see vec_functions.h.
#include "vec_functions.h"

#include "cpu/elementwise.inl"
#include "cpu/math.inl"
#include "cpu/random.inl"
#if defined(PYATTN_TEST_AVX2)
#include "cpu/vec_avx2.h"
#include "cpu/vec_avx2_double.h"
#elif defined(PYATTN_TEST_AVX512)
#include "cpu/vec_avx512.h"
#include "cpu/vec_avx512_double.h"
#elif defined(PYATTN_TEST_NEON)
#include "cpu/vec_neon.h"
#include "cpu/vec_neon_double.h"
#endif

namespace pyattn {
namespace {

template <class V, class T = typename V::Scalar>
constexpr testing::VecFunctions<T> vec_functions() {
  return {
      .lanes = V::kLanes,
      .exp_fast = [](const T* x, T* y,
                     std::int64_t n) { map<V>(x, y, n, [](V v) { return exp_fast(v); }); },
      .exp_accurate = [](const T* x, T* y,
                         std::int64_t n) { map<V>(x, y, n, [](V v) { return exp_accurate(v); }); },
      .tanh_accurate =
          [](const T* x, T* y, std::int64_t n) {
            map<V>(x, y, n, [](V v) { return tanh_accurate(v); });
          },
      .reciprocal = [](const T* x, T* y,
                       std::int64_t n) { map<V>(x, y, n, [](V v) { return V::reciprocal(v); }); },
      .copy = [](const T* x, T* y, std::int64_t n) { map<V>(x, y, n, [](V v) { return v; }); },
      .max = [](const T* a, const T* b, T* y) { V::max(V::load(a), V::load(b)).store(y); },
      .min = [](const T* a, const T* b, T* y) { V::min(V::load(a), V::load(b)).store(y); },
      .less = [](const T* a, const T* b) -> std::uint64_t {
        return V::to_bits(V::less(V::load(a), V::load(b)));
      },
      .equal = [](const T* a, const T* b) -> std::uint64_t {
        return V::to_bits(V::equal(V::load(a), V::load(b)));
      },
      .fma = [](const T* a, const T* b, const T* c,
                T* y) { V::fma(V::load(a), V::load(b), V::load(c)).store(y); },
      .fnma = [](const T* a, const T* b, const T* c,
                 T* y) { V::fnma(V::load(a), V::load(b), V::load(c)).store(y); },
      .mask_bits = [](std::uint64_t bits) -> std::uint64_t {
        return V::to_bits(V::from_bits(bits));
      },
      .select = [](std::uint64_t bits, const T* yes, const T* no,
                   T* y) { V::select(V::from_bits(bits), V::load(yes), V::load(no)).store(y); },
      .transpose =
          [](T* square) {
            V rows[V::kLanes];
            for (int i = 0; i < V::kLanes; ++i) rows[i] = V::load(square + i * V::kLanes);
            V::transpose(rows);
            for (int i = 0; i < V::kLanes; ++i) rows[i].store(square + i * V::kLanes);
          },
      .sum_each =
          [](const T* square, T* sums) {
            V rows[V::kLanes];
            for (int i = 0; i < V::kLanes; ++i) rows[i] = V::load(square + i * V::kLanes);
            pyattn::sum_each(rows).store(sums);
          },
      .sum_lanes = [](const T* a) -> T { return pyattn::sum_lanes(V::load(a)); },
      .max_lanes = [](const T* a) -> T { return pyattn::max_lanes(V::load(a)); },
  };
}

template <class V, class X>
constexpr testing::StorageFunctions<X> storage_functions() {
  return {
      .load =
          [](const X* x, float* y, std::int64_t n) {
            for (std::int64_t i = 0; i < n; i += V::kLanes) {
              store_left(load_left<V>(x + i, n - i), y + i, n - i);
            }
          },
      .store =
          [](const float* x, X* y, std::int64_t n) {
            for (std::int64_t i = 0; i < n; i += V::kLanes) {
              store_left(load_left<V>(x + i, n - i), y + i, n - i);
            }
          },
  };
}

template <class VecFloat, class VecDouble>
constexpr testing::IsaFunctions isa_functions(const char* name) {
  return {
      .name = name,
      .f32 = vec_functions<VecFloat>(),
      .f64 = vec_functions<VecDouble>(),
      .f16 = storage_functions<VecFloat, Half>(),
      .bf16 = storage_functions<VecFloat, BFloat16>(),
      .philox = [](std::uint64_t seed, std::int64_t batch, std::int64_t head, std::int64_t row,
                   std::int64_t first,
                   std::uint64_t (&words)[4][16]) { philox(seed, batch, head, row, first, words); },
      .kept_keys =
          [](std::uint64_t seed, std::int64_t batch, std::int64_t head, std::int64_t row,
             std::int64_t first, std::uint64_t threshold) {
            return kept_keys(seed, batch, head, row, first, threshold);
          },
  };
}

}  // namespace

namespace testing {

#if defined(PYATTN_TEST_AVX2)
constinit const IsaFunctions avx2_functions = isa_functions<Avx2, Avx2Double>("avx2");
#elif defined(PYATTN_TEST_AVX512)
constinit const IsaFunctions avx512_functions = isa_functions<Avx512, Avx512Double>("avx512");
#elif defined(PYATTN_TEST_NEON)
constinit const IsaFunctions neon_functions = isa_functions<Neon, NeonDouble>("neon");
#else
constinit const IsaFunctions scalar_functions =
    isa_functions<Lanes<float, 4>, Lanes<double, 2> >("scalar");
#endif

}  // namespace testing
}  // namespace pyattn

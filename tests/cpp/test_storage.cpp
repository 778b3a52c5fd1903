// float16 and bfloat16 on every instruction set against their definition.
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "storage_format.h"
#include "tested_isas.h"

namespace pyattn::testing {
namespace {

template <class X>
const StorageFunctions<X>& storage(const IsaFunctions& isa) {
  if constexpr (std::is_same_v<X, Half>) {
    return isa.f16;
  } else {
    return isa.bf16;
  }
}

template <class Body>
void for_each_storage(Body body) {
  for (const IsaFunctions* isa : functions()) {
    check::context = std::string(isa->name) + " float16";
    body(storage<Half>(*isa));
    check::context = std::string(isa->name) + " bfloat16";
    body(storage<BFloat16>(*isa));
  }
}

template <class X>
std::vector<X> every_value() {
  std::vector<X> all(1 << 16);
  for (std::size_t i = 0; i < all.size(); ++i) all[i].bits = static_cast<std::uint16_t>(i);
  return all;
}

TEST(every_value_widens_exactly_and_comes_back) {
  for_each_storage([]<class X>(const StorageFunctions<X>& f) {
    const std::vector<X> all = every_value<X>();
    std::vector<float> wide(all.size());
    std::vector<X> back(all.size());
    f.load(all.data(), wide.data(), static_cast<std::int64_t>(all.size()));
    f.store(wide.data(), back.data(), static_cast<std::int64_t>(all.size()));
    for (std::size_t i = 0; i < all.size(); ++i) {
      const double want = value_of<X>(all[i].bits);
      const auto got = static_cast<double>(wide[i]);
      if (std::isnan(want)) {
        const int quiet = 1 << (kFormat<X>.mantissa - 1);
        CHECK(std::isnan(got) && back[i].bits == (all[i].bits | quiet));
      } else {
        CHECK(got == want && std::signbit(got) == std::signbit(want));
        CHECK(back[i].bits == all[i].bits);
      }
    }
  });
}

// Every number that is or neighbours a value or the middle between two values, then random bits.
template <class X>
std::vector<float> hard_cases() {
  std::vector<float> x;
  for (int bits = 0; bits < kInfinityBits<X>; ++bits) {
    const double low = value_of<X>(static_cast<std::uint16_t>(bits));
    const double step = bits + 1 < kInfinityBits<X>
                            ? value_of<X>(static_cast<std::uint16_t>(bits + 1)) - low
                            : low - value_of<X>(static_cast<std::uint16_t>(bits - 1));
    for (const double at : {low, low + step / 2}) {
      const auto middle = static_cast<float>(at);
      for (const float value :
           {middle, std::nextafterf(middle, -1), std::nextafterf(middle, HUGE_VALF)}) {
        x.push_back(value);
        x.push_back(-value);
      }
    }
  }
  std::mt19937 random(3);
  for (int i = 0; i < 200000; ++i)
    x.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(random())));
  for (const float value : {65519.0F, 65519.996F, 65520.0F, 65536.0F, 3e38F, HUGE_VALF, 1e-45F}) {
    x.push_back(value);
    x.push_back(-value);
  }
  return x;
}

TEST(narrowing_rounds_to_nearest_even) {
  for_each_storage([]<class X>(const StorageFunctions<X>& f) {
    const std::vector<float> x = hard_cases<X>();
    std::vector<X> got(x.size());
    f.store(x.data(), got.data(), static_cast<std::int64_t>(x.size()));
    for (std::size_t i = 0; i < x.size(); ++i) {
      if (std::isnan(x[i])) {
        const std::uint16_t quiet =
            kInfinityBits<X> | static_cast<std::uint16_t>(1 << (kFormat<X>.mantissa - 1));
        CHECK((got[i].bits & quiet) == quiet);
        CHECK((got[i].bits >> 15 != 0) == std::signbit(x[i]));
      } else {
        CHECK(got[i].bits == nearest<X>(x[i]));
      }
    }
  });
}

// A NaN whose payload lies in the bits that are cut off must not become an infinity.
TEST(a_nan_with_a_small_payload_stays_one) {
  for_each_storage([]<class X>(const StorageFunctions<X>& f) {
    for (const std::uint32_t bits : {0x7f800001U, 0xff800001U, 0x7fffffffU, 0xffffffffU}) {
      const std::vector<float> x(1, std::bit_cast<float>(bits));
      std::vector<X> got(1);
      f.store(x.data(), got.data(), 1);
      CHECK((got[0].bits & 0x7fff) > kInfinityBits<X>);
    }
  });
}

// A count reads and writes nothing behind it, and the lanes left over are 0.
TEST(counts) {
  for_each_storage([]<class X>(const StorageFunctions<X>& f) {
    for (std::size_t count = 0; count <= 40; ++count) {
      std::vector<X> from;  // the sanitizer sees its end
      for (std::size_t i = 0; i < count; ++i) {
        from.push_back({static_cast<std::uint16_t>(0x3c00 + 64 * i)});
      }
      std::vector<float> wide(count + 1, 7.0F);
      f.load(from.data(), wide.data(), static_cast<std::int64_t>(count));
      std::vector<X> back(count + 1, X{7});
      f.store(wide.data(), back.data(), static_cast<std::int64_t>(count));
      CHECK(wide[count] == 7.0F && back[count].bits == 7);
      for (std::size_t i = 0; i < count; ++i) {
        CHECK(static_cast<double>(wide[i]) == value_of<X>(from[i].bits));
        CHECK(back[i].bits == from[i].bits);
      }
    }
  });
}

}  // namespace
}  // namespace pyattn::testing

TEST_MAIN

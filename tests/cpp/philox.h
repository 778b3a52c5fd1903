// Philox4x32-10 by its definition (Salmon, Moraes, Dror, Shaw 2011, DOI 10.1145/2063384.2063405).
#pragma once

#include <cstdint>

namespace pyattn::testing {

struct Four {
  std::uint32_t word[4];
  bool operator==(const Four&) const = default;
};

// One counter, as in section 3.3 of the paper.
inline Four one_counter(Four counter, std::uint32_t key0, std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const auto [c0, c1, c2, c3] = counter.word;
    const std::uint64_t a = std::uint64_t{0xd2511f53} * c0;
    const std::uint64_t b = std::uint64_t{0xcd9e8d57} * c2;
    counter = {{static_cast<std::uint32_t>(b >> 32) ^ c1 ^ key0, static_cast<std::uint32_t>(b),
                static_cast<std::uint32_t>(a >> 32) ^ c3 ^ key1, static_cast<std::uint32_t>(a)}};
    key0 += 0x9e3779b9;
    key1 += 0xbb67ae85;
  }
  return counter;
}

}  // namespace pyattn::testing

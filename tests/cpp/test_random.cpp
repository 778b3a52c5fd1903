// The generator behind dropout on every instruction set.
#include <bit>
#include <cstdint>
#include <vector>

#include "check.h"
#include "philox.h"
#include "tested_isas.h"

namespace pyattn::testing {
namespace {

struct KnownAnswer {
  Four counter;
  std::uint32_t key0, key1;
  Four answer;
};

// The philox4x32-10 lines of kat_vectors in Random123 1.14.
const KnownAnswer kKnownAnswers[] = {
    {{{0, 0, 0, 0}}, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
    {{{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}},
     0xffffffff,
     0xffffffff,
     {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
    {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
     0xa4093822,
     0x299f31d0,
     {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
};

std::uint64_t seed_of(std::uint32_t key0, std::uint32_t key1) {
  return std::uint64_t{key1} << 32 | key0;
}

TEST(known_answers) {
  for (const KnownAnswer& known : kKnownAnswers) {
    CHECK(one_counter(known.counter, known.key0, known.key1) == known.answer);
    for (const IsaFunctions* isa : functions()) {
      check::context = isa->name;
      const auto& c = known.counter.word;
      std::uint64_t words[4][16];
      isa->philox(seed_of(known.key0, known.key1), c[3], c[2], c[1], c[0], words);
      for (int k = 0; k < 4; ++k) {
        CHECK(static_cast<std::uint32_t>(words[k][0]) == known.answer.word[k]);
      }
    }
  }
}

TEST(each_counter_of_a_tile) {
  for (const IsaFunctions* isa : functions()) {
    check::context = isa->name;
    const std::uint64_t seed = 0x0123456789abcdef;
    for (const std::uint32_t first : {0U, 16U, 4096U, 0x7ffffff0U}) {
      std::uint64_t words[4][16];
      isa->philox(seed, 3, 31, 2047, first, words);
      for (std::uint32_t i = 0; i < 16; ++i) {
        const Four want = one_counter({{first + i, 2047, 31, 3}}, 0x89abcdef, 0x01234567);
        for (int k = 0; k < 4; ++k) CHECK(static_cast<std::uint32_t>(words[k][i]) == want.word[k]);
      }
    }
  }
}

// Bit j is weight (b, h, i, first + j), kept from the threshold on.
TEST(kept_keys) {
  const std::uint64_t seed = 0xfedcba9876543210;
  for (const IsaFunctions* isa : functions()) {
    check::context = isa->name;
    for (std::uint32_t row = 0; row < 50; ++row) {
      const std::uint32_t first = 64 * (row % 7);
      std::vector<std::uint32_t> words;
      for (std::uint32_t i = 0; i < 16; ++i) {
        const Four four = one_counter({{first / 4 + i, row, 5, 2}}, 0x76543210, 0xfedcba98);
        words.insert(words.end(), four.word, four.word + 4);
      }
      const std::uint64_t equal_to_one = words[row];  // u == threshold is kept
      for (const std::uint64_t threshold :
           {std::uint64_t{0}, std::uint64_t{1} << 30, equal_to_one, equal_to_one + 1,
            std::uint64_t{0xffffffff}, std::uint64_t{1} << 32}) {
        std::uint64_t want = 0;
        for (std::size_t j = 0; j < 64; ++j) {
          want |= static_cast<std::uint64_t>(words[j] >= threshold) << j;
        }
        CHECK(isa->kept_keys(seed, 2, 5, row, first, threshold) == want);
      }
    }
  }
}

// 4.1 million draws at p = 0.1: five standard deviations are 0.00074.
TEST(the_share_that_is_kept) {
  for (const IsaFunctions* isa : functions()) {
    check::context = isa->name;
    std::int64_t kept = 0;
    for (std::int64_t row = 0; row < 64000; ++row) {
      kept += std::popcount(isa->kept_keys(77, 0, row % 8, row / 8, 64 * (row % 3), 429496729));
    }
    CHECK(std::abs(static_cast<double>(kept) / (64000.0 * 64.0) - 0.9) < 0.00075);
  }
}

}  // namespace
}  // namespace pyattn::testing

TEST_MAIN

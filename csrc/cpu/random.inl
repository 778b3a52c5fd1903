// Which weights dropout keeps: Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011,
// DOI 10.1145/2063384.2063405), a generator without a state. Ten rounds mix a counter of four
// 32-bit words under a key of two; here the key is the seed and the counter (j / 4, row, head,
// batch), so every pass over the scores draws the same numbers in whatever order it comes by.
//
// A word has a 64-bit lane to itself, because that is where the 32 x 32 -> 64 bit multiplication of
// x86 and Arm takes its factors from and leaves its product; what lies above the 32 bits is rubbish
// that the next multiplication does not see. So a round of 8 counters is two multiplications, two
// shifts and two three-way exclusive-ors with AVX-512. Zen 5, for a tile of 64 x 64: 6200 cycles
// with AVX-512, 12000 with AVX2, 26000 without either. Loops that the compiler was left to
// vectorise took 8000 with AVX-512, where it chose full 64-bit products, and 29000 with AVX2.
#pragma once

#include <cstdint>

#include "core/params.h"
#include "cpu/math.inl"
#include "cpu/vec_words.h"

namespace pyattn {
namespace {

constexpr int kCounters = kTileKeys / 4;

// words[k][i] = word k for the counter (first + i, row, head, batch), in its lower half.
PYATTN_INLINE void philox(std::uint64_t seed, std::int64_t batch, std::int64_t head,
                          std::int64_t row, std::int64_t first,
                          std::uint64_t (&words)[4][kCounters]) {
  constexpr int kWays = Words::kLanes >= 4 ? 2 : 4;  // independent chains hide the latency
  const Words factor0 = Words::broadcast(0xd2511f53U);
  const Words factor2 = Words::broadcast(0xcd9e8d57U);
  const Words step0 = Words::broadcast(0x9e3779b9U);
  const Words step1 = Words::broadcast(0xbb67ae85U);
  for (int at = 0; at < kCounters; at += kWays * Words::kLanes) {
    Words w[4][kWays];
    PYATTN_UNROLL
    for (int i = 0; i < kWays; ++i) {
      w[0][i] = Words::counting(static_cast<std::uint64_t>(first + at + i * Words::kLanes));
      w[1][i] = Words::broadcast(static_cast<std::uint64_t>(row));
      w[2][i] = Words::broadcast(static_cast<std::uint64_t>(head));
      w[3][i] = Words::broadcast(static_cast<std::uint64_t>(batch));
    }
    Words key0 = Words::broadcast(seed);
    Words key1 = Words::broadcast(seed >> 32);
    PYATTN_UNROLL
    for (int round = 0; round < 10; ++round) {
      PYATTN_UNROLL
      for (int i = 0; i < kWays; ++i) {
        const Words a = Words::multiply(w[0][i], factor0);
        const Words b = Words::multiply(w[2][i], factor2);
        w[0][i] = Words::upper(b) ^ w[1][i] ^ key0;
        w[2][i] = Words::upper(a) ^ w[3][i] ^ key1;
        w[1][i] = b;
        w[3][i] = a;
      }
      key0 = key0 + step0;
      key1 = key1 + step1;
    }
    PYATTN_UNROLL
    for (int i = 0; i < kWays; ++i) {
      for (int k = 0; k < 4; ++k) w[k][i].store(words[k] + at + i * Words::kLanes);
    }
  }
}

// Bit k: weight (batch, head, row, first + k) is kept, its number being at least the threshold,
// which is 0 .. 2^32. `first` is a multiple of 64.
inline std::uint64_t kept_keys(std::uint64_t seed, std::int64_t batch, std::int64_t head,
                               std::int64_t row, std::int64_t first, std::uint64_t threshold) {
  std::uint64_t words[4][kCounters];
  philox(seed, batch, head, row, first / 4, words);
  // u >= threshold where u + (2^32 - threshold) carries into bit 32.
  const std::uint64_t rest = (std::uint64_t{1} << 32) - threshold;
  std::uint64_t kept = 0;
  PYATTN_LOOP
  for (int i = 0; i < kCounters; ++i) {
    std::uint64_t four = 0;
    PYATTN_UNROLL
    for (int k = 0; k < 4; ++k) {
      four |= ((words[k][i] & 0xffffffff) + rest) >> 32 << k;
    }
    kept |= four << (4 * i);
  }
  return kept;
}

}  // namespace
}  // namespace pyattn

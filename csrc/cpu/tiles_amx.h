// The eight tile registers of AMX: AMX-TILE, AMX-BF16. Each holds 16 rows of 64 bytes, whatever is
// multiplied; what amx.inl expects of such a type is what this one has.
//
// By assembly: GCC's intrinsics are macros that paste the text of their arguments, so that the
// number of a register could not be a template parameter, and its loads do not tell the compiler
// that they read memory, which may then move a store behind them.
#pragma once

#include <cstdint>

#include "cpu/math.inl"

namespace pyattn {
namespace {

// The operand of ldtilecfg.
struct TileConfiguration {
  std::uint8_t palette;
  std::uint8_t start_row;
  std::uint8_t reserved[14];
  std::uint16_t row_bytes[16];
  std::uint8_t rows[16];
};
static_assert(sizeof(TileConfiguration) == 64);

struct AmxTiles {
  // Until release() the registers belong to the thread and are saved when it is interrupted. What a
  // kernel calls in between, memcpy or log, leaves their shapes alone.
  static void configure() {
    alignas(64) static constexpr TileConfiguration kWhole = {
        .palette = 1,
        .start_row = 0,
        .reserved = {},
        .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
        .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    asm volatile("ldtilecfg %0" ::"m"(kWhole));
  }
  static void release() { asm volatile("tilerelease"); }

  template <int N>
  static PYATTN_INLINE void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(N));
  }
  // Rows that lie `stride` bytes apart.
  template <int N>
  static PYATTN_INLINE void load(const void* rows, std::int64_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(N), "r"(rows), "r"(stride) : "memory");
  }
  template <int N>
  static PYATTN_INLINE void store(void* rows, std::int64_t stride) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(N), "r"(rows), "r"(stride) : "memory");
  }
  // sum[m][n] += a[m][k] b[k][n] for pairs of bfloat16 numbers a and b and floats in sum.
  template <int kSum, int kA, int kB>
  static PYATTN_INLINE void multiply_add() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kA), "i"(kB));
  }
};

}  // namespace
}  // namespace pyattn

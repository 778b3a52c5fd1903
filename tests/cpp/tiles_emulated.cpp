// Compiled with the flags of the kernels, and so without anything of the standard library that
// could be an inline function of another test.
#include "tiles_emulated.h"

#include "cpu/amx.inl"
#include "cpu/vec_avx512bf16.h"
#include "tile_emulation.h"

namespace pyattn::testing {
namespace {

thread_local TileRegisters registers;

void expect(TileFault fault) {
  if (fault != TileFault::none) __builtin_trap();
}

struct EmulatedTiles {
  static void configure() {
    std::uint8_t bytes[64] = {1};
    for (int n = 0; n < 8; ++n) {
      bytes[16 + 2 * n] = 64;
      bytes[48 + n] = 16;
    }
    expect(load_configuration(registers, bytes));
    std::memset(registers.data, 0xff, sizeof registers.data);  // whoever forgets to clear gets NaN
  }
  static void release() { registers = {}; }

  template <int N>
  static void zero() {
    expect(zero_tile(registers, N));
  }
  template <int N>
  static void load(const void* rows, std::int64_t stride) {
    expect(load_tile_register(registers, N, static_cast<const std::uint8_t*>(rows), stride));
  }
  template <int N>
  static void store(void* rows, std::int64_t stride) {
    expect(store_tile_register(registers, N, static_cast<std::uint8_t*>(rows), stride));
  }
  template <int kSum, int kA, int kB>
  static void multiply_add() {
    expect(multiply_tiles(registers, kSum, kA, kB));
  }
};

}  // namespace

constinit const AttentionKernels<BFloat16>::Run sdpa_emulated_tiles =
    sdpa_tiles<Avx512, EmulatedTiles>;

}  // namespace pyattn::testing

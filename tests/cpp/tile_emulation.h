// The instructions of AMX on tile registers in plain C++, after the operation that Intel's
// Software Developer's Manual gives for each. A register of palette 1 is 16 rows of 64 bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace pyattn::testing {
namespace {

struct TileRegisters {
  bool configured;
  std::uint8_t palette;
  std::uint16_t row_bytes[8];
  std::uint8_t rows[8];
  std::uint8_t data[8][16][64];
};

// What the processor would answer by an exception; the caller says how.
enum class TileFault : std::uint8_t { none, refused };

inline TileFault load_configuration(TileRegisters& registers, const std::uint8_t (&bytes)[64]) {
  registers = {};
  if (bytes[0] == 0) return TileFault::none;  // the initial state
  if (bytes[0] != 1 || bytes[1] != 0) return TileFault::refused;
  for (int i = 2; i < 16; ++i) {
    if (bytes[i] != 0) return TileFault::refused;
  }
  for (int n = 0; n < 16; ++n) {
    std::uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * n, sizeof row_bytes);
    const std::uint8_t rows = bytes[48 + n];
    const bool unused = row_bytes == 0 && rows == 0;
    if (n >= 8 ? !unused : row_bytes > 64 || rows > 16 || (row_bytes == 0) != (rows == 0)) {
      registers = {};
      return TileFault::refused;
    }
    if (n >= 8) continue;
    registers.row_bytes[n] = row_bytes;
    registers.rows[n] = rows;
  }
  registers.configured = true;
  registers.palette = 1;
  return TileFault::none;
}

inline bool is_usable(const TileRegisters& registers, int n) {
  return registers.configured && n < 8 && registers.rows[n] != 0;
}

inline TileFault zero_tile(TileRegisters& registers, int n) {
  if (!is_usable(registers, n)) return TileFault::refused;
  std::memset(registers.data[n], 0, sizeof registers.data[n]);
  return TileFault::none;
}

// Rows and bytes beyond the shape of the register become 0.
inline TileFault load_tile_register(TileRegisters& registers, int n, const std::uint8_t* start,
                                    std::int64_t stride) {
  if (!is_usable(registers, n)) return TileFault::refused;
  std::memset(registers.data[n], 0, sizeof registers.data[n]);
  for (int r = 0; r < registers.rows[n]; ++r) {
    std::memcpy(registers.data[n][r], start + r * stride, registers.row_bytes[n]);
  }
  return TileFault::none;
}

inline TileFault store_tile_register(const TileRegisters& registers, int n, std::uint8_t* start,
                                     std::int64_t stride) {
  if (!is_usable(registers, n)) return TileFault::refused;
  for (int r = 0; r < registers.rows[n]; ++r) {
    std::memcpy(start + r * stride, registers.data[n][r], registers.row_bytes[n]);
  }
  return TileFault::none;
}

// A subnormal number is a zero of its sign, read or written.
inline float without_subnormal(float x) {
  return __builtin_fabsf(x) < 0x1p-126F ? __builtin_copysignf(0.0F, x) : x;
}

// Member 0 or 1 of a pair of bfloat16 numbers.
inline float member(const std::uint8_t* pair, int which) {
  std::uint16_t upper;
  std::memcpy(&upper, pair + 2 * which, sizeof upper);
  const std::uint32_t bits = std::uint32_t{upper} << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return without_subnormal(x);
}

// One row of TDPBF16PS: fused multiply-adds of the even members and of the odd ones, apart, each
// rounded to nearest even; then their sum; then that sum to the row.
inline void add_products(std::uint8_t* sums, const std::uint8_t* a, const std::uint8_t (*b)[64],
                         int pairs, int columns) {
  float apart[2][16] = {};
  for (int k = 0; k < pairs; ++k) {
    for (int which = 0; which < 2; ++which) {
      const float factor = member(a + 4 * k, which);
      for (int n = 0; n < columns; ++n) {
        float& sum = apart[which][n];
        sum = without_subnormal(__builtin_fmaf(factor, member(b[k] + 4 * n, which), sum));
      }
    }
  }
  for (int n = 0; n < columns; ++n) {
    float before;
    std::memcpy(&before, sums + 4 * n, sizeof before);
    const float added = without_subnormal(apart[0][n] + apart[1][n]);
    const float after = without_subnormal(without_subnormal(before) + added);
    std::memcpy(sums + 4 * n, &after, sizeof after);
  }
}

inline TileFault multiply_tiles(TileRegisters& registers, int sum, int a, int b) {
  const bool distinct = sum != a && sum != b && a != b;
  if (!distinct || !is_usable(registers, sum) || !is_usable(registers, a) ||
      !is_usable(registers, b)) {
    return TileFault::refused;
  }
  const auto& bytes = registers.row_bytes;
  const bool whole = bytes[sum] % 4 == 0 && bytes[a] % 4 == 0 && bytes[b] % 4 == 0;
  const bool fitting = registers.rows[sum] == registers.rows[a] && bytes[sum] == bytes[b] &&
                       bytes[a] / 4 == registers.rows[b];
  if (!whole || !fitting) return TileFault::refused;
  for (int m = 0; m < registers.rows[sum]; ++m) {
    add_products(registers.data[sum][m], registers.data[a][m], registers.data[b], bytes[a] / 4,
                 bytes[sum] / 4);
  }
  return TileFault::none;
}

}  // namespace
}  // namespace pyattn::testing

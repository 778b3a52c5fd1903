// A processor without AMX raises an illegal-instruction exception at each instruction on tile
// registers. The handler reads the instruction, carries it out in plain C++ and goes on behind it.
//
// All of them are VEX-encoded: C4, a byte with the inverted upper bits of the register numbers and
// the opcode map (0F 38), a byte with W, the inverted second source, the vector length and the
// prefix, the opcode, ModRM and what follows from it.
#include <csignal>
#include <cstdlib>

#include <sys/ucontext.h>

#include "tile_emulation.h"
#include "tiles_emulated.h"

namespace pyattn::testing {
namespace {

thread_local TileRegisters registers;
thread_local std::int64_t instructions = 0;

enum Prefix : std::uint8_t { kNone, k66, kF3, kF2 };

struct Instruction {
  Prefix prefix;
  std::uint8_t opcode;
  int mod;
  int reg;     // operand 1
  int rm;      // operand 2, where it is a register
  int second;  // source
  std::uint8_t* address;
  std::int64_t index;  // of a memory operand with a row stride
  int length;
};

// A general register by the number that instructions give it.
std::int64_t general(const mcontext_t& context, int number) {
  constexpr int kPlace[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                            REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return context.gregs[kPlace[number]];
}

// The memory operand of ModRM, whose displacement may follow.
void read_address(const mcontext_t& context, const std::uint8_t* code, int base_bit, int index_bit,
                  Instruction& to) {
  const bool has_sib = to.rm == 4;
  const std::uint8_t sib = has_sib ? code[to.length++] : std::uint8_t{0};
  const int low = has_sib ? sib & 7 : to.rm;
  std::int64_t address = 0;
  const bool bare = to.mod == 0 && low == 5;  // no base: relative to the next instruction, or none
  if (!bare) address = general(context, low | base_bit);
  const int index = (sib >> 3 & 7) | index_bit;
  if (has_sib && index != 4) to.index = general(context, index) * (1 << (sib >> 6));
  if (to.mod == 1) {
    address += static_cast<std::int8_t>(code[to.length++]);
  } else if (to.mod == 2 || bare) {
    std::int32_t displacement;
    std::memcpy(&displacement, code + to.length, sizeof displacement);
    to.length += 4;
    address += displacement;
    if (bare && !has_sib) address += context.gregs[REG_RIP] + to.length;
  }
  to.address = reinterpret_cast<std::uint8_t*>(address);
}

bool read(const mcontext_t& context, Instruction& to) {
  const auto* code = reinterpret_cast<const std::uint8_t*>(context.gregs[REG_RIP]);
  const bool map_0f38 = (code[1] & 0x1f) == 2;
  const bool w0_l0 = (code[2] & 0x84) == 0;
  if (code[0] != 0xc4 || !map_0f38 || !w0_l0) return false;
  to = {};
  to.prefix = static_cast<Prefix>(code[2] & 3);
  to.second = (code[2] >> 3 & 15) ^ 15;
  to.opcode = code[3];
  to.mod = code[4] >> 6;
  to.reg = (code[4] >> 3 & 7) | ((code[1] & 0x80) == 0 ? 8 : 0);
  to.rm = code[4] & 7;
  to.length = 5;
  const int base_bit = (code[1] & 0x20) == 0 ? 8 : 0;
  const int index_bit = (code[1] & 0x40) == 0 ? 8 : 0;
  if (to.mod != 3) {
    read_address(context, code, base_bit, index_bit, to);
  } else {
    to.rm |= base_bit;
  }
  return true;
}

// Opcode 49: configuration, release, zero.
TileFault control(const Instruction& i) {
  if (i.prefix == kNone && i.mod != 3 && i.reg == 0) {
    std::uint8_t bytes[64];
    std::memcpy(bytes, i.address, sizeof bytes);
    return load_configuration(registers, bytes);
  }
  if (i.prefix == kNone && i.mod == 3 && i.reg == 0 && i.rm == 0) {
    registers = {};
    return TileFault::none;
  }
  if (i.prefix == kF2 && i.mod == 3 && i.rm == 0) return zero_tile(registers, i.reg);
  return TileFault::refused;
}

TileFault carry_out(const Instruction& i) {
  if (i.opcode == 0x49 && i.second == 0) return control(i);
  if (i.opcode == 0x4b && i.second == 0 && i.mod != 3) {
    if (i.prefix == kF2) return load_tile_register(registers, i.reg, i.address, i.index);
    if (i.prefix == kF3) return store_tile_register(registers, i.reg, i.address, i.index);
  }
  if (i.opcode == 0x5c && i.prefix == kF3 && i.mod == 3) {
    return multiply_tiles(registers, i.reg, i.rm, i.second);
  }
  return TileFault::refused;
}

void handle(int, siginfo_t*, void* user_context) {
  auto& context = static_cast<ucontext_t*>(user_context)->uc_mcontext;
  Instruction instruction;
  if (!read(context, instruction) || carry_out(instruction) != TileFault::none) std::abort();
  ++instructions;
  context.gregs[REG_RIP] += instruction.length;
}

}  // namespace

bool trap_tile_instructions() {
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO;
  return sigaction(SIGILL, &action, nullptr) == 0;
}

std::int64_t trapped_instructions() { return instructions; }

}  // namespace pyattn::testing

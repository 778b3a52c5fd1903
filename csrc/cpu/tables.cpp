// The list of instruction sets, best first, and how to tell whether this processor has one.
#include "cpu/tables.h"

#include "core/isa.h"

#if defined(PYATTN_X86) && !defined(__GNUC__)
#include <immintrin.h>
#include <intrin.h>
#endif
#ifdef PYATTN_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pyattn {
namespace {

#if defined(PYATTN_X86) && defined(__GNUC__)
// The compiler's builtin also asks whether the operating system saves the registers.
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#elif defined(PYATTN_X86)
struct Features {
  bool avx2 = false;
  bool avx512 = false;
  bool avx512bf16 = false;
};

Features features() {
  int one[4];
  int seven[4];
  __cpuid(one, 1);
  const bool saves_registers = (one[2] >> 27 & 1) != 0;
  if (!saves_registers) return {};
  const unsigned long long saved = _xgetbv(0);
  __cpuidex(seven, 7, 0);
  const bool fma = (one[2] >> 12 & 1) != 0;
  const bool f16c = (one[2] >> 29 & 1) != 0;
  const bool avx2 = (saved & 0x6) == 0x6 && fma && f16c && (seven[1] >> 5 & 1) != 0;
  const unsigned wanted = 1U << 16 | 1U << 17 | 1U << 30 | 1U << 31;  // F, DQ, BW, VL
  const bool avx512 = (static_cast<unsigned>(seven[1]) & wanted) == wanted;
  const bool all = avx2 && avx512 && (saved & 0xe6) == 0xe6;
  int more[4] = {};
  if (seven[0] >= 1) __cpuidex(more, 7, 1);
  return {avx2, all, all && (more[0] >> 5 & 1) != 0};
}
bool has_avx2() { return features().avx2; }
bool has_avx512() { return features().avx512; }
bool has_avx512bf16() { return features().avx512bf16; }
#endif

#ifdef PYATTN_AMX
// Linux lets a process use the tile registers after it has asked; from then on the frames of its
// signal handlers have room for them. A kernel that does not know them refuses.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}

// Not by the compiler's builtin: not every compiler's knows the names.
bool has_avx512amx() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  if (!has_avx512bf16() || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  const bool tiles = (d >> 24 & 1) != 0;
  const bool products = (d >> 22 & 1) != 0;
  return tiles && products && may_use_tiles();
}
#endif

#ifdef PYATTN_X86
KernelTable replaced(const char* name, const BFloat16Table& bf16) {
  KernelTable changed = avx512_table;
  changed.name = name;
  changed.flags = bf16.flags;
  changed.attention_bf16.sdpa = bf16.sdpa;
  return changed;
}
const KernelTable& with_bf16() {
  static const KernelTable table = replaced("avx512bf16", avx512bf16_table);
  return table;
}
#endif
#ifdef PYATTN_AMX
const KernelTable& with_amx() {
  static const KernelTable table = replaced("avx512amx", avx512amx_table);
  return table;
}
#endif

bool always() { return true; }

}  // namespace

std::vector<IsaEntry> built_isas() {
  return {
#ifdef PYATTN_AMX
      {&with_amx(), has_avx512amx},
#endif
#ifdef PYATTN_X86
      {&with_bf16(), has_avx512bf16}, {&avx512_table, has_avx512}, {&avx2_table, has_avx2},
#endif
#ifdef PYATTN_NEON
      {&neon_table, always},  // part of every 64-bit Arm processor
#endif
      {&scalar_table, always},
  };
}

}  // namespace pyattn

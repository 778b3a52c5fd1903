// The one symbol of every ISA object.
#pragma once

#include "core/kernels.h"

namespace pyattn {

extern const KernelTable scalar_table;
extern const KernelTable avx2_table;
extern const KernelTable avx512_table;
extern const KernelTable neon_table;

// What avx512bf16 and avx512amx replace in the table of avx512.
struct BFloat16Table {
  const char* flags;
  AttentionKernels<BFloat16>::Run sdpa;
};
extern const BFloat16Table avx512bf16_table;
extern const BFloat16Table avx512amx_table;

}  // namespace pyattn

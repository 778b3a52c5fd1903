// The one symbol of every ISA object.
#pragma once

#include "core/kernels.h"

namespace pyattn {

extern const KernelTable scalar_table;
extern const KernelTable avx2_table;
extern const KernelTable avx512_table;
extern const KernelTable neon_table;

}  // namespace pyattn

// What test_amx.cpp calls.
#pragma once

#include <cstdint>

#include "core/kernels.h"

namespace pyattn::testing {

// The kernel of csrc/cpu/amx.inl with its operations on tile registers in plain C++. The rest of it
// needs AVX512_BF16.
extern const AttentionKernels<BFloat16>::Run sdpa_emulated_tiles;

// From here on the instructions of this process on tile registers, which this processor lacks, are
// carried out in plain C++: the kernel as it is compiled. False where that is not possible.
bool trap_tile_instructions();
std::int64_t trapped_instructions();  // of this thread

}  // namespace pyattn::testing

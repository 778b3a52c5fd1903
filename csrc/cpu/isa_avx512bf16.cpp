#include "cpu/pairs.inl"
#include "cpu/tables.h"
#include "cpu/vec_avx512bf16.h"

namespace pyattn {

constinit const BFloat16Table avx512bf16_table = {.flags = PYATTN_ISA_FLAGS,
                                                  .sdpa = sdpa_pairs<Avx512>};

}  // namespace pyattn

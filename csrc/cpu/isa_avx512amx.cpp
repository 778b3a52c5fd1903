#include "cpu/amx.inl"
#include "cpu/tables.h"
#include "cpu/tiles_amx.h"
#include "cpu/vec_avx512bf16.h"

namespace pyattn {

constinit const BFloat16Table avx512amx_table = {.flags = PYATTN_ISA_FLAGS,
                                                 .sdpa = sdpa_tiles<Avx512, AmxTiles>};

}  // namespace pyattn

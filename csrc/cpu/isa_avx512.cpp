#include "cpu/table.inl"
#include "cpu/tables.h"
#include "cpu/vec_avx512.h"

namespace pyattn {

constinit const KernelTable avx512_table = make_table<Avx512, Lanes<double, 8>>("avx512");

}  // namespace pyattn

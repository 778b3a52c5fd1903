#include "cpu/table.inl"
#include "cpu/tables.h"
#include "cpu/vec_avx512.h"
#include "cpu/vec_avx512_double.h"

namespace pyattn {

constinit const KernelTable avx512_table = make_table<Avx512, Avx512Double>("avx512");

}  // namespace pyattn

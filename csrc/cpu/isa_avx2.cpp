#include "cpu/table.inl"
#include "cpu/tables.h"
#include "cpu/vec_avx2.h"
#include "cpu/vec_avx2_double.h"

namespace pyattn {

constinit const KernelTable avx2_table = make_table<Avx2, Avx2Double>("avx2");

}  // namespace pyattn

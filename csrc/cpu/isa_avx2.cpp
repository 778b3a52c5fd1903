#include "cpu/table.inl"
#include "cpu/tables.h"
#include "cpu/vec_avx2.h"

namespace pyattn {

constinit const KernelTable avx2_table = make_table<Avx2, Lanes<double, 4>>("avx2");

}  // namespace pyattn

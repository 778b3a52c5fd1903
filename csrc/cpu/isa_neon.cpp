#include "cpu/table.inl"
#include "cpu/tables.h"
#include "cpu/vec_neon.h"
#include "cpu/vec_neon_double.h"

namespace pyattn {

constinit const KernelTable neon_table = make_table<Neon, NeonDouble>("neon");

}  // namespace pyattn

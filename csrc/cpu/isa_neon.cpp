#include "cpu/table.inl"
#include "cpu/tables.h"
#include "cpu/vec_neon.h"

namespace pyattn {

constinit const KernelTable neon_table = make_table<Neon, Lanes<double, 2>>("neon");

}  // namespace pyattn

#include "cpu/tables.h"

#include "cpu/table.inl"

namespace pyattn {

constinit const KernelTable scalar_table = make_table<Lanes<float, 4>, Lanes<double, 2>>("scalar");

}  // namespace pyattn

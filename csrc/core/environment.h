// What the environment of the process asks for.
#pragma once

namespace pyattn {

// Heeds PYATTN_ISA and PYATTN_THREADS; throws std::runtime_error for a value that cannot be.
void read_environment();

}  // namespace pyattn

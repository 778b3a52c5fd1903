// The positions that Luong's local-p alignment predicts.
#pragma once

#include "core/position_params.h"

namespace pyattn {

// `packed` is provided here. Throws std::bad_alloc.
template <class T>
void run_positions(PositionParams<T> params);

}  // namespace pyattn

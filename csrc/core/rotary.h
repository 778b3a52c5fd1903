// Rotary position embedding over the heads and rows of a batch.
#pragma once

#include "core/params.h"

namespace pyattn {

// Every position is within the caches; the views agree in their shapes.
template <class T>
void run_rotary(const RotaryParams<T>& params);

}  // namespace pyattn

// Attention within a window around a real centre, cut into tasks: time and memory grow with the
// width of the windows, not with S.
#pragma once

#include "core/kernels.h"

namespace pyattn {

// The integers s with |s - centre| <= half_width, and of them those in 0..keys - 1: the bounds are
// whole numbers, so nothing is rounded.
LocalWindow local_window(double centre, std::int64_t half_width, std::int64_t keys);

// `windows` of the parameters is found here.
template <class X>
void run_local(LocalParams<X> params);

template <class X>
void run_local_gradient(LocalGradientParams<X> params);

}  // namespace pyattn

// How many processors this process may use: the affinity mask and the control group's quota. A
// container given two processors of sixty-four must not start sixty-four threads.
#pragma once

namespace pyattn {

int usable_processors();

}  // namespace pyattn

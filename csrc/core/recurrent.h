// The steps of a recurrent layer, one behind the other, each shared by the threads.
#pragma once

#include "core/kernels.h"

namespace pyattn {

// `packed`, `packed_input` and `block` are provided here, and `gates` if there are none. Without a
// step nothing is done. Throws std::bad_alloc.
template <class T>
void run_recurrent(RecurrentParams<T> params, typename Kernels<T>::Recurrent kernel,
                   std::int64_t gates);

// Fills `output` with 0 where an entry has ended, and `last` (B, H) with the state after the last
// step of each, which is h0 where there is none.
template <class T>
void finish_recurrent(const RecurrentParams<T>& params, T* last);

}  // namespace pyattn

// Matrix products on our own threads.
#pragma once

#include "core/product_params.h"

namespace pyattn {

// `packed` is provided here. Throws std::bad_alloc.
template <class T>
void run_product(ProductParams<T> params);

}  // namespace pyattn

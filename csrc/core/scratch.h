// Memory that lives from call to call, one piece per calling thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pyattn {

// At least `bytes` bytes aligned to 64, kept by the calling thread and valid until its next call
// here. Contents are unspecified. Throws std::bad_alloc.
std::byte* thread_scratch(std::size_t bytes);

}  // namespace pyattn

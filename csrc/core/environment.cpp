#include "core/environment.h"

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "core/isa.h"
#include "core/parallel.h"

namespace pyattn {

// A wrong value is an error: silence would look like a slow machine.
void read_environment() {
  if (const char* name = std::getenv("PYATTN_ISA"); name != nullptr && *name != '\0') {
    try {
      set_isa(name);
    } catch (const std::invalid_argument& error) {
      throw std::runtime_error(std::string("PYATTN_ISA: ") + error.what());
    }
  }
  if (const char* text = std::getenv("PYATTN_THREADS"); text != nullptr && *text != '\0') {
    std::int64_t count = 0;
    const char* end = text + std::strlen(text);
    const auto parsed = std::from_chars(text, end, count);
    if (parsed.ec != std::errc() || parsed.ptr != end || count < 1 || count > kMaxThreads) {
      throw std::runtime_error("PYATTN_THREADS: must be a whole number from 1 to " +
                               std::to_string(kMaxThreads) + ", got '" + text + "'");
    }
    set_threads(count);
  }
}

}  // namespace pyattn

#include "core/scratch.h"

#include <memory>
#include <new>

namespace pyattn {
namespace {

constexpr std::size_t kAlignment = 64;
// More than this is given back as soon as a smaller request comes.
constexpr std::size_t kKeep = std::size_t{64} << 20;

struct Release {
  void operator()(std::byte* memory) const {
    ::operator delete(memory, std::align_val_t{kAlignment});
  }
};

struct Scratch {
  std::unique_ptr<std::byte, Release> memory;
  std::size_t bytes = 0;
};

thread_local Scratch scratch;

}  // namespace

std::byte* thread_scratch(std::size_t bytes) {
  const bool oversized = scratch.bytes > kKeep && bytes <= kKeep;
  if (bytes > scratch.bytes || oversized || !scratch.memory) {
    scratch.memory.reset();
    scratch.bytes = 0;
    scratch.memory.reset(
        static_cast<std::byte*>(::operator new(bytes, std::align_val_t{kAlignment})));
    scratch.bytes = bytes;
  }
  return scratch.memory.get();
}

}  // namespace pyattn

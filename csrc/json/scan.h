#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace pyattn::json {

// Why a text is refused, and where. `reason` is null when it is not.
struct Fault {
  const char* reason = nullptr;
  std::size_t position = 0;
};

// Bytes [begin, end) of the text.
struct Span {
  std::size_t begin;
  std::size_t end;
};

// An infer request taken apart. In `envelope`, the text without white space, the n-th value of a
// "data" member of an element of "inputs" is the number n; `data` tells where that value stands.
struct Parts {
  std::string envelope;
  std::vector<Span> data;
};

struct SplitLimits {
  int depth;
  std::size_t envelope;  // bytes
};

// Checks that `text` is JSON (RFC 8259) in UTF-8, to the last byte of the values that are set apart
// too, and fills `parts`. Recursion goes as deep as `limits.depth`.
Fault split(std::string_view text, const SplitLimits& limits, Parts& parts);

// Returns the end of the value that begins at `position` of a text that `split` has accepted.
std::size_t end_of_value(std::string_view text, std::size_t position);

inline bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

}  // namespace pyattn::json

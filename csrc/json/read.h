#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "json/scan.h"

namespace pyattn::json {

enum class Outcome {
  kDone,
  kNoList,        // the value is no list
  kNesting,       // nested otherwise than the shape says
  kCount,         // another number of elements than the shape says
  kType,          // an element of another type
  kRange,         // an integer that the type cannot hold
  kTooLarge,      // a number that rounds to an infinity of the type
  kBeyondDouble,  // a number that rounds to an infinity in double precision
};

struct Reading {
  Outcome outcome;
  std::int64_t count;    // of elements in a flat list
  std::int64_t element;  // the first one at fault
  Span token;            // its text
};

// Reads the value at `span` of a text that `split` has accepted into `out`: a flat list of the
// elements in row-major order, or lists nested as `shape` says. `T` is bool, an integer, float or
// double. Numbers become floating point by way of double precision, each step rounded to nearest.
// `out` may be null when a flat list is to be counted only.
template <class T>
Reading read(std::string_view text, const Span& span, std::span<const std::int64_t> shape, T* out);

}  // namespace pyattn::json

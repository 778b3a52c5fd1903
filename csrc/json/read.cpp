#include "json/read.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <type_traits>

namespace pyattn::json {
namespace {

bool begins_number(char c) { return c == '-' || (c >= '0' && c <= '9'); }

// Whether a number that `from_chars` found out of range is too large; else it is too small.
bool is_large(std::string_view token) {
  const std::size_t e = token.find_first_of("eE");
  const std::string_view digits = token.substr(0, e);
  std::int64_t exponent = 0;
  if (e != token.npos) {
    const bool minus = token[e + 1] == '-';
    const char* first = token.data() + e + (minus || token[e + 1] == '+' ? 2 : 1);
    // An exponent beyond 64 bits is longer than any number of digits can make up for.
    if (std::from_chars(first, token.data() + token.size(), exponent).ec != std::errc()) {
      return !minus;
    }
    if (minus) exponent = -exponent;
  }
  const std::size_t lead = digits.find_first_of("123456789");
  if (lead == digits.npos) return false;
  const std::size_t point = std::min(digits.find('.'), digits.size());
  const auto place = static_cast<std::int64_t>(point) - static_cast<std::int64_t>(lead);
  return exponent > -place;
}

// Each `parse` reads the token at `p`, moves `p` behind it and stores its value.
Outcome parse_double(const char*& p, const char* end, double& value) {
  if (!begins_number(*p)) return Outcome::kType;
  const char* from = p;
  const auto [after, error] = std::from_chars(p, end, value);
  p = after;
  if (error == std::errc()) return Outcome::kDone;
  if (is_large({from, static_cast<std::size_t>(after - from)})) return Outcome::kBeyondDouble;
  value = *from == '-' ? -0.0 : 0.0;
  return Outcome::kDone;
}

template <class T>
  requires std::is_floating_point_v<T>
Outcome parse(const char*& p, const char* end, T& slot) {
  double value = 0;
  const Outcome outcome = parse_double(p, end, value);
  if (outcome != Outcome::kDone) return outcome;
  slot = static_cast<T>(value);
  return std::isfinite(slot) ? Outcome::kDone : Outcome::kTooLarge;
}

template <class T>
  requires std::is_same_v<T, bool>
Outcome parse(const char*& p, const char*, T& slot) {
  if (*p != 't' && *p != 'f') return Outcome::kType;
  slot = *p == 't';
  p += slot ? 4 : 5;
  return Outcome::kDone;
}

// Whether the integer at `p` lies within 64 bits, with or without a sign: one beyond is a number of
// double precision to every reader of JSON, and so of another type.
bool within_64_bits(const char* p, const char* end) {
  std::int64_t whole = 0;
  std::uint64_t natural = 0;
  return std::from_chars(p, end, whole).ec == std::errc() ||
         std::from_chars(p, end, natural).ec == std::errc();
}

template <class T>
  requires(std::is_integral_v<T> && !std::is_same_v<T, bool>)
Outcome parse(const char*& p, const char* end, T& slot) {
  if (!begins_number(*p)) return Outcome::kType;
  const char* from = p;
  // Unsigned types are read with a sign too: -0 is theirs, and -1 is out of range and no other
  // type.
  const bool minus = std::is_unsigned_v<T> && *p == '-';
  const auto [after, error] = std::from_chars(p + minus, end, slot);
  p = after;
  if (p != end && (*p == '.' || *p == 'e' || *p == 'E')) return Outcome::kType;
  if (error == std::errc() && !(minus && slot != 0)) return Outcome::kDone;
  return within_64_bits(from, end) ? Outcome::kRange : Outcome::kType;
}

template <class T>
class Reader {
 public:
  Reader(std::string_view text, const Span& span, std::span<const std::int64_t> shape, T* out)
      : text_(text),
        begin_(text.data()),
        p_(begin_ + span.begin),
        end_(begin_ + span.end),
        shape_(shape),
        out_(out) {}

  Reading run() {
    if (*p_ != '[') return {Outcome::kNoList, 0, 0, here()};
    if (shape_.size() > 1 && first_is_list()) {
      if (!nested(0)) return {Outcome::kNesting, 0, 0, here()};
    } else {
      std::int64_t size = 1;
      for (const std::int64_t length : shape_) size *= length;
      if (elements(size) != size) return {Outcome::kCount, done_, 0, here()};
    }
    fault_.count = done_;
    return fault_;
  }

 private:
  Span here() const {
    const auto position = static_cast<std::size_t>(p_ - begin_);
    return {position, position};
  }

  void skip_space() {
    while (is_space(*p_)) ++p_;
  }

  bool first_is_list() const {
    const char* p = p_ + 1;
    while (is_space(*p)) ++p;
    return *p == '[';
  }

  // Reads the elements of the list at `p_`, stores at most `room` of them and returns how many
  // there are. A wrong one is noted and passed.
  std::int64_t elements(std::int64_t room) {
    std::int64_t count = 0;
    ++p_;
    for (skip_space(); *p_ != ']'; skip_space()) {
      const char* from = p_;
      Outcome outcome = Outcome::kCount;
      if (out_ != nullptr && count < room) outcome = parse<T>(p_, end_, out_[done_]);
      if (outcome != Outcome::kDone) {
        const Span token{static_cast<std::size_t>(from - begin_),
                         end_of_value(text_, static_cast<std::size_t>(from - begin_))};
        p_ = begin_ + token.end;
        // A wrong type goes before a wrong value.
        const bool first = fault_.outcome == Outcome::kDone ||
                           (outcome == Outcome::kType && fault_.outcome != Outcome::kType);
        if (outcome != Outcome::kCount && first) fault_ = {outcome, 0, done_, token};
      }
      ++done_;
      ++count;
      skip_space();
      if (*p_ == ',') ++p_;
    }
    ++p_;
    return count;
  }

  // Reads the list at `p_`, whose elements belong to `axis`; returns whether its nesting is right.
  bool nested(std::size_t axis) {
    if (*p_ != '[') return false;
    const std::int64_t length = shape_[axis];
    if (axis + 1 == shape_.size()) return elements(length) == length;
    std::int64_t count = 0;
    ++p_;
    for (skip_space(); *p_ != ']'; skip_space()) {
      if (count++ == length || !nested(axis + 1)) return false;
      skip_space();
      if (*p_ == ',') ++p_;
    }
    ++p_;
    return count == length;
  }

  std::string_view text_;
  const char* begin_;
  const char* p_;
  const char* end_;
  std::span<const std::int64_t> shape_;
  T* out_;
  std::int64_t done_ = 0;
  Reading fault_{Outcome::kDone, 0, 0, {0, 0}};
};

}  // namespace

template <class T>
Reading read(std::string_view text, const Span& span, std::span<const std::int64_t> shape, T* out) {
  return Reader<T>(text, span, shape, out).run();
}

#define PYATTN_JSON_READ(T) \
  template Reading read<T>(std::string_view, const Span&, std::span<const std::int64_t>, T*);
PYATTN_JSON_READ(bool)
PYATTN_JSON_READ(std::int8_t)
PYATTN_JSON_READ(std::int16_t)
PYATTN_JSON_READ(std::int32_t)
PYATTN_JSON_READ(std::int64_t)
PYATTN_JSON_READ(std::uint8_t)
PYATTN_JSON_READ(std::uint16_t)
PYATTN_JSON_READ(std::uint32_t)
PYATTN_JSON_READ(std::uint64_t)
PYATTN_JSON_READ(float)
PYATTN_JSON_READ(double)
#undef PYATTN_JSON_READ

}  // namespace pyattn::json

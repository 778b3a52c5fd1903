#include "json/scan.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace pyattn::json {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Returns the value of a hexadecimal digit, or -1.
int hex_digit(char c) {
  if (is_digit(c)) return c - '0';
  const char lower = static_cast<char>(c | 0x20);
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

// Whether a literal, between its quotes and already checked, stands for `name`, which is ASCII.
bool names(std::string_view literal, std::string_view name) {
  if (literal == name) return true;
  if (literal.find('\\') == literal.npos) return false;
  std::size_t position = 0;
  for (const char c : name) {
    if (position >= literal.size()) return false;
    if (literal[position] != '\\') {
      if (literal[position++] != c) return false;
      continue;
    }
    if (literal[position + 1] != 'u') return false;  // the short escapes are not letters
    int code = 0;
    for (std::size_t i = 2; i < 6; ++i) code = 16 * code + hex_digit(literal[position + i]);
    if (code != c) return false;
    position += 6;
  }
  return position == literal.size();
}

// Recursive descent over the text, which checks it. What it passes goes into the envelope, unless
// that is switched off.
class Scanner {
 public:
  Scanner(std::string_view text, const SplitLimits& limits, Parts& parts)
      : begin_(text.data()),
        p_(begin_),
        end_(begin_ + text.size()),
        limits_(limits),
        parts_(parts) {}

  Fault run() {
    skip_space();
    if (p_ == end_) {
      fail("the text is empty");
    } else if (value(Place::kRoot, 0)) {
      skip_space();
      if (p_ != end_) fail("more text after the end");
    }
    return fault_;
  }

 private:
  // Where a value stands, as far as that matters for finding the data.
  enum class Place { kRoot, kInputs, kInput, kElsewhere };

  bool fail(const char* reason) { return fail_at(reason, p_); }

  bool fail_at(const char* reason, const char* where) {
    if (fault_.reason == nullptr) fault_ = {reason, static_cast<std::size_t>(where - begin_)};
    return false;
  }

  void skip_space() {
    while (p_ != end_ && is_space(*p_)) ++p_;
  }

  bool keep(const char* from) {
    if (!keeping_) return true;
    const auto size = static_cast<std::size_t>(p_ - from);
    if (size > limits_.envelope - parts_.envelope.size()) {
      return fail_at("too much besides 'data'", from);
    }
    parts_.envelope.append(from, size);
    return true;
  }

  // Passes one character of punctuation.
  bool mark() {
    const char* from = p_++;
    return keep(from);
  }

  bool value(Place place, int depth) {
    if (p_ == end_) return fail("unexpected end");
    const char* from = p_;
    switch (*p_) {
      case '{':
        return object(place, depth + 1);
      case '[':
        return array(place, depth + 1);
      case '"':
        return string() && keep(from);
      case 't':
        return word("true") && keep(from);
      case 'f':
        return word("false") && keep(from);
      case 'n':
        return word("null") && keep(from);
      default:
        return number() && keep(from);
    }
  }

  bool word(std::string_view expected) {
    const auto left = static_cast<std::size_t>(end_ - p_);
    if (std::string_view(p_, std::min(left, expected.size())) != expected) {
      return fail("not a value");
    }
    p_ += expected.size();
    return true;
  }

  bool digits() {
    if (p_ == end_ || !is_digit(*p_)) return fail(p_ == end_ ? "unexpected end" : "not a value");
    while (p_ != end_ && is_digit(*p_)) ++p_;
    return true;
  }

  bool number() {
    if (*p_ == '-') ++p_;
    if (p_ != end_ && *p_ == '0') {
      ++p_;
      if (p_ != end_ && is_digit(*p_)) return fail("a number with a leading zero");
    } else if (!digits()) {
      return false;
    }
    if (p_ != end_ && *p_ == '.') {
      ++p_;
      if (!digits()) return false;
    }
    if (p_ != end_ && (*p_ == 'e' || *p_ == 'E')) {
      ++p_;
      if (p_ != end_ && (*p_ == '+' || *p_ == '-')) ++p_;
      return digits();
    }
    return true;
  }

  bool array(Place place, int depth) {
    if (depth > limits_.depth) return fail("nested too deep");
    const Place inner = place == Place::kInputs ? Place::kInput : Place::kElsewhere;
    if (!mark()) return false;
    skip_space();
    if (p_ != end_ && *p_ == ']') return mark();
    for (;;) {
      if (!value(inner, depth)) return false;
      skip_space();
      if (p_ == end_) return fail("unexpected end");
      if (*p_ == ']') return mark();
      if (*p_ != ',') return fail("',' or ']' expected");
      if (!mark()) return false;
      skip_space();
    }
  }

  bool object(Place place, int depth) {
    if (depth > limits_.depth) return fail("nested too deep");
    if (!mark()) return false;
    skip_space();
    if (p_ != end_ && *p_ == '}') return mark();
    for (;;) {
      if (!member(place, depth)) return false;
      skip_space();
      if (p_ == end_) return fail("unexpected end");
      if (*p_ == '}') return mark();
      if (*p_ != ',') return fail("',' or '}' expected");
      if (!mark()) return false;
      skip_space();
    }
  }

  bool member(Place place, int depth) {
    if (p_ == end_) return fail("unexpected end");
    if (*p_ != '"') return fail("a key expected");
    const char* from = p_;
    if (!string() || !keep(from)) return false;
    const std::string_view key(from + 1, static_cast<std::size_t>(p_ - from) - 2);
    skip_space();
    if (p_ == end_) return fail("unexpected end");
    if (*p_ != ':') return fail("':' expected");
    if (!mark()) return false;
    skip_space();
    if (place == Place::kInput && names(key, "data")) return data(depth);
    const bool inputs = place == Place::kRoot && names(key, "inputs");
    return value(inputs ? Place::kInputs : Place::kElsewhere, depth);
  }

  // A value that is set apart.
  bool data(int depth) {
    const char* from = p_;
    keeping_ = false;
    const bool good = value(Place::kElsewhere, depth);
    keeping_ = true;
    if (!good) return false;
    const std::string number = std::to_string(parts_.data.size());
    if (number.size() > limits_.envelope - parts_.envelope.size()) {
      return fail_at("too much besides 'data'", from);
    }
    parts_.data.push_back(
        {static_cast<std::size_t>(from - begin_), static_cast<std::size_t>(p_ - begin_)});
    parts_.envelope += number;
    return true;
  }

  bool string() {
    ++p_;
    while (p_ != end_) {
      const auto c = static_cast<unsigned char>(*p_);
      if (c == '"') {
        ++p_;
        return true;
      }
      if (c == '\\') {
        if (!escape()) return false;
      } else if (c < 0x20) {
        return fail("a control character in a string");
      } else if (c < 0x80) {
        ++p_;
      } else if (!character()) {
        return false;
      }
    }
    return fail("unexpected end");
  }

  bool escape() {
    const char* from = p_;
    if (++p_ == end_) return fail("unexpected end");
    if (*p_ != 'u') {
      if (*p_ == '\0' || std::strchr("\"\\/bfnrt", *p_) == nullptr) {
        return fail_at("an unknown escape", from);
      }
      ++p_;
      return true;
    }
    ++p_;
    int code = 0;
    if (!code_unit(code)) return false;
    if (code >= 0xDC00 && code < 0xE000) return fail_at("half a surrogate pair", from);
    if (code < 0xD800 || code >= 0xDC00) return true;
    if (end_ - p_ < 2 || p_[0] != '\\' || p_[1] != 'u') {
      return fail_at("half a surrogate pair", from);
    }
    p_ += 2;
    if (!code_unit(code)) return false;
    return code >= 0xDC00 && code < 0xE000 ? true : fail_at("half a surrogate pair", from);
  }

  // Four hexadecimal digits.
  bool code_unit(int& code) {
    if (end_ - p_ < 4) return fail("unexpected end");
    code = 0;
    for (int i = 0; i < 4; ++i, ++p_) {
      const int digit = hex_digit(*p_);
      if (digit < 0) return fail("not four hexadecimal digits");
      code = 16 * code + digit;
    }
    return true;
  }

  // One character of two to four bytes in UTF-8: the shortest form, no surrogate, at most U+10FFFF.
  bool character() {
    const char* from = p_;
    const auto first = static_cast<unsigned char>(*p_++);
    const int more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : 1;
    std::uint32_t code = first & (0x3FU >> more);
    bool good = first >= 0xC2 && first <= 0xF4 && end_ - p_ >= more;
    for (int i = 0; good && i < more; ++i) {
      const auto next = static_cast<unsigned char>(*p_++);
      good = (next & 0xC0) == 0x80;
      code = code << 6 | (next & 0x3FU);
    }
    constexpr std::uint32_t kLeast[] = {0x80, 0x800, 0x10000};
    if (!good || code < kLeast[more - 1] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) {
      return fail_at("not UTF-8", from);
    }
    return true;
  }

  const char* begin_;
  const char* p_;
  const char* end_;
  const SplitLimits& limits_;
  Parts& parts_;
  Fault fault_;
  bool keeping_ = true;
};

std::size_t end_of_string(std::string_view text, std::size_t position) {
  for (++position; text[position] != '"'; ++position) {
    if (text[position] == '\\') ++position;
  }
  return position + 1;
}

}  // namespace

Fault split(std::string_view text, const SplitLimits& limits, Parts& parts) {
  return Scanner(text, limits, parts).run();
}

std::size_t end_of_value(std::string_view text, std::size_t position) {
  int depth = 0;
  do {
    switch (text[position]) {
      case '"':
        position = end_of_string(text, position);
        break;
      case '[':
      case '{':
        ++depth;
        ++position;
        break;
      case ']':
      case '}':
        --depth;
        ++position;
        break;
      case ',':
      case ':':
      case ' ':
      case '\n':
      case '\t':
      case '\r':
        ++position;
        break;
      default:
        position = text.find_first_of(",]} \n\t\r", position);
        if (position == text.npos) return text.size();
    }
  } while (depth > 0);
  return position;
}

}  // namespace pyattn::json

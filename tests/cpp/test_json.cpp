// The reader of JSON on texts that end where their memory ends, whole and mutilated: under the
// address sanitizer this finds every byte read too far. What is accepted is tested from Python.
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "json/read.h"
#include "json/scan.h"

namespace {

using namespace pyattn::json;

const std::string kText =
    R"( {"id":"7","inputs" : [{"name":"a","data":[[1,-2.5e-3,true],["\u00e9\ud83d\ude00 é☃",null]]},)"
    R"({"d\u0061ta":[18446744073709551615,1e400],"shape":[2]}, {"data":-0}],"outputs":[{}]} )";

// Splits a copy without a byte behind it and reads every array as every type.
bool split_and_read(const std::string& text, const std::vector<std::int64_t>& shape) {
  const std::unique_ptr<char[]> copy(new char[text.size()]);
  std::copy(text.begin(), text.end(), copy.get());
  const std::string_view view(copy.get(), text.size());
  Parts parts;
  if (split(view, {20, 200}, parts).reason != nullptr) return false;
  std::int64_t size = 1;
  for (const std::int64_t length : shape) size *= length;
  for (const Span& span : parts.data) {
    CHECK(end_of_value(view, span.begin) == span.end);
    const auto count = static_cast<std::size_t>(size);
    std::vector<double> doubles(count);
    std::vector<std::uint64_t> naturals(count);
    const std::unique_ptr<bool[]> flags(new bool[count]);
    read<double>(view, span, shape, doubles.data());
    read<std::uint64_t>(view, span, shape, naturals.data());
    read<bool>(view, span, shape, flags.get());
    read<float>(view, span, shape, nullptr);
  }
  return true;
}

std::string mutilated(std::mt19937& random) {
  static const std::string kBytes = "[]{}\",:\\0-9.eEtfnu \xC3\xF0\xED\x80";
  std::string text = kText;
  const auto draw = [&](std::size_t below) { return random() % below; };
  for (std::size_t i = 1 + draw(4); i > 0 && !text.empty(); --i) {
    const std::size_t position = draw(text.size());
    const char byte = kBytes[draw(kBytes.size())];
    switch (draw(4)) {
      case 0:
        text[position] = byte;
        break;
      case 1:
        text.insert(position, 1, byte);
        break;
      case 2:
        text.erase(position, 1 + draw(3));
        break;
      default:
        if (position > 0) text.resize(position);
    }
  }
  return text;
}

TEST(every_beginning) {
  for (std::size_t size = 0; size < kText.size() - 1; ++size) {
    CHECK(!split_and_read(kText.substr(0, size), {2}));
  }
  CHECK(split_and_read(kText, {2, 3}));
}

TEST(numbers_that_end_the_text) {
  for (const char* text : {"1", "-0", "0.5", "1e5", "1E+5", "true", "null", "\"\"", "[]"}) {
    CHECK(split_and_read(text, {}));
  }
  for (const char* text : {"-", "1.", "1e", "1e+", "tru", "\"", "\"\\", "\"\\u00", "[", "[1,"}) {
    CHECK(!split_and_read(text, {}));
  }
}

TEST(mutilated_texts) {
  std::mt19937 random(7);
  int accepted = 0;
  for (int i = 0; i < 100000; ++i) {
    accepted += split_and_read(mutilated(random), i % 2 == 0 ? std::vector<std::int64_t>{2, 3}
                                                             : std::vector<std::int64_t>{2});
  }
  CHECK(accepted > 1000);
}

}  // namespace

TEST_MAIN

// The choice of instruction set, and that it changes results by rounding only.
#include "core/isa.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "check.h"

namespace pyattn {
namespace {

TEST(the_best_is_chosen_and_scalar_is_always_there) {
  const auto names = available_isas();
  CHECK(!names.empty() && names.back() == "scalar");
  CHECK(kernels().name == names.front());
}

TEST(every_available_one_can_be_forced) {
  for (const std::string& name : available_isas()) {
    set_isa(name);
    CHECK(kernels().name == name);
  }
}

TEST(an_unknown_name_lists_the_available_ones) {
  const std::string before = kernels().name;
  try {
    set_isa("sse9");
    CHECK(false);
  } catch (const std::invalid_argument& error) {
    const std::string text = error.what();
    CHECK(text.find("sse9") != std::string::npos);
    for (const std::string& name : available_isas()) CHECK(text.find(name) != std::string::npos);
  }
  CHECK(kernels().name == before);
}

TEST(names_are_unique) {
  std::vector<std::string> names;
  for (const IsaEntry& entry : built_isas()) names.emplace_back(entry.table->name);
  std::sort(names.begin(), names.end());
  CHECK(std::adjacent_find(names.begin(), names.end()) == names.end());
}

}  // namespace
}  // namespace pyattn

TEST_MAIN

#include "ort/variant.h"

#include <charconv>
#include <cstdlib>
#include <string>
#include <utility>

namespace pyattn::ort {
namespace {

// Takes a name apart from its front.
class Words {
 public:
  explicit Words(std::string_view text) : rest_(text) {}

  bool take(std::string_view word) {
    if (!rest_.starts_with(word)) return false;
    rest_.remove_prefix(word.size());
    return true;
  }
  bool at_end() const { return rest_.empty(); }

  // "12" or "Minus12".
  bool integer(std::int64_t& value) {
    const bool minus = take("Minus");
    const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), value);
    if (error != std::errc() || rest_.starts_with('-')) return false;
    rest_.remove_prefix(static_cast<std::size_t>(end - rest_.data()));
    if (minus) value = -value;
    return true;
  }

  // A number of Python with p for the point: "30p0", "1eMinus05".
  bool real(double& value) {
    std::string digits;
    while (!rest_.empty()) {
      const char c = rest_.front();
      if ((c >= '0' && c <= '9') || c == 'e') {
        digits += c;
      } else if (c == 'p') {
        digits += '.';
      } else if (rest_.starts_with("Minus")) {
        digits += '-';
        rest_.remove_prefix(4);
      } else {
        break;
      }
      rest_.remove_prefix(1);
    }
    char* end = nullptr;
    value = std::strtod(digits.c_str(), &end);
    return !digits.empty() && *end == '\0';
  }

  void letters(std::string_view any) {
    while (!rest_.empty() && any.find(rest_.front()) != std::string_view::npos) {
      rest_.remove_prefix(1);
    }
  }

 private:
  std::string_view rest_;
};

constexpr std::pair<std::string_view, Mechanism> kMechanisms[] = {
    {"ScaledDotProductAttention", Mechanism::sdpa},
    {"AdditiveAttention", Mechanism::additive},
    {"VarlenAttention", Mechanism::varlen},
    {"PagedAttention", Mechanism::paged},
    {"LuongLocal", Mechanism::local},
    {"UpdateCache", Mechanism::cache},
    {"RotaryEmbedding", Mechanism::rotary},
};

constexpr std::pair<std::string_view, Output> kOutputs[] = {
    {"Weights", Output::weights},
    {"WindowWeights", Output::window_weights},
    {"Lse", Output::lse},
    {"Max", Output::max},
    {"Entropy", Output::entropy},
    {"ColumnMass", Output::column_mass},
    {"Scores", Output::scores},
    {"CappedScores", Output::capped_scores},
    {"BiasedScores", Output::biased_scores},
};

void take_element(Words& words, Variant& variant) {
  if (words.take("Double")) variant.element = ElementType::float64;
  if (words.take("Half")) variant.element = ElementType::float16;
  if (words.take("BFloat16")) variant.element = ElementType::bfloat16;
}

void take_mask(Words& words, Variant& variant) {
  if (words.take("BoolMask")) variant.mask = MaskKind::boolean;
  if (words.take("FloatMask")) variant.mask = MaskKind::additive;
}

bool take_side(Words& words, std::int64_t& side) {
  return words.take("Any") || (words.integer(side) && side >= 0);
}

bool take_positions(Words& words, Variant& variant) {
  if (words.take("Causal")) variant.right = 0;
  if (words.take("Window")) {
    if (!take_side(words, variant.left) || !words.take("To")) return false;
    if (!take_side(words, variant.right)) return false;
  }
  variant.bottom_right = words.take("BottomRight");
  variant.starts = words.take("Starts");
  return !words.take("From") || words.integer(variant.start);
}

void take_outputs(Words& words, Variant& variant) {
  for (bool found = true; found;) {
    found = false;
    for (const auto& [word, output] : kOutputs) {
      if (!words.take(word)) continue;
      variant.outputs.push_back(output);
      found = true;
    }
  }
}

bool take_rest_of_local(Words& words, Variant& variant) {
  variant.concat = words.take("Concat");
  if (!words.take("Within") || !words.integer(variant.half_width)) return false;
  variant.renormalize = words.take("Renormalized");
  take_mask(words, variant);
  if (variant.mask != MaskKind::none) {
    if (!words.take("Mask")) return false;
    words.letters("BTS");  // the axes that it has: its shape tells them
  }
  variant.lengths = words.take("Lengths");
  take_outputs(words, variant);
  return variant.half_width >= 1;
}

bool take_rest_of_rotary(Words& words, Variant& variant) {
  variant.interleaved = words.take("Interleaved");
  variant.positions = words.take("Positions");
  std::int64_t size = 0;  // the shapes tell them
  if (!words.take("Pairs") || !words.integer(size) || !words.take("Of") || !words.integer(size)) {
    return false;
  }
  return !words.take("Heads") || (words.integer(variant.heads) && variant.heads >= 1);
}

bool take_rest(Words& words, Variant& variant) {
  take_mask(words, variant);
  variant.lengths = words.take("Lengths");
  if (!take_positions(words, variant)) return false;
  if (words.take("Softcap") && !words.real(variant.softcap)) return false;
  variant.slopes = words.take("Alibi");
  variant.sinks = words.take("Sinks");
  take_outputs(words, variant);
  std::int64_t heads = 0;  // the shapes tell them
  if (words.take("Heads") && !(words.integer(heads) && words.take("Of") && words.integer(heads))) {
    return false;
  }
  words.take("NegativeScale");
  return true;
}

bool take_rest_of(Words& words, Variant& variant) {
  switch (variant.mechanism) {
    case Mechanism::cache:
      return true;
    case Mechanism::local:
      return take_rest_of_local(words, variant);
    case Mechanism::rotary:
      return take_rest_of_rotary(words, variant);
    default:
      return take_rest(words, variant);
  }
}

// Whether the kernel of the mechanism computes all outputs.
bool computes(const Variant& variant) {
  const auto has = [](Mechanism mechanism, Output output) {
    switch (output) {
      case Output::out:
        return true;
      case Output::lse:
        return mechanism != Mechanism::paged;
      case Output::weights:
        return mechanism != Mechanism::varlen && mechanism != Mechanism::paged;
      case Output::window_weights:
        return mechanism == Mechanism::local;
      case Output::column_mass:
        return mechanism == Mechanism::sdpa;
      default:
        return mechanism == Mechanism::sdpa || mechanism == Mechanism::additive;
    }
  };
  for (const Output output : variant.outputs) {
    if (!has(variant.mechanism, output)) return false;
  }
  return true;
}

}  // namespace

std::optional<Variant> parse_name(std::string_view name) {
  Words words(name);
  Variant variant;
  bool known = false;
  for (const auto& [word, mechanism] : kMechanisms) {
    if (known || !words.take(word)) continue;
    variant.mechanism = mechanism;
    known = true;
  }
  if (!known) return std::nullopt;
  take_element(words, variant);
  if (!take_rest_of(words, variant) || !words.at_end() || !computes(variant)) return std::nullopt;
  return variant;
}

}  // namespace pyattn::ort

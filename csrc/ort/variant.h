// Which attention an operator computes: told by its name alone, which is that of the model-local
// function that it stands for. pyattn/attention writes the names (`function` of each operation).
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "core/params.h"
#include "ort/abi.h"

namespace pyattn::ort {

enum class Mechanism : std::uint8_t { sdpa, additive, varlen, paged, local, cache, rotary };

enum class Output : std::uint8_t {
  out,
  weights,
  window_weights,
  lse,
  max,
  entropy,
  column_mass,
  scores,
  capped_scores,
  biased_scores,
};

struct Variant {
  Mechanism mechanism = Mechanism::sdpa;
  ElementType element = ElementType::float32;
  MaskKind mask = MaskKind::none;
  bool lengths = false;
  std::int64_t left = kUnbounded;
  std::int64_t right = kUnbounded;
  bool bottom_right = false;
  bool starts = false;
  std::int64_t start = 0;
  double softcap = 0;
  bool slopes = false;
  bool sinks = false;
  bool concat = false;  // local only, as the two below
  bool renormalize = false;
  std::int64_t half_width = 0;
  bool interleaved = false;  // rotary only, as the two below
  bool positions = false;
  std::int64_t heads = 0;  // that the last axis holds; 0: they have an axis of their own
  std::vector<Output> outputs = {Output::out};  // in order
};

// Nothing for a name that is not one of pyattn's functions, or of a form that has no kernel.
std::optional<Variant> parse_name(std::string_view name);

}  // namespace pyattn::ort

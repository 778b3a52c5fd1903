#include "python/sdpa_call.h"

namespace pyattn::python {

SdpaOptions sdpa_options(const py::object& dictionary, double scale, std::int64_t right,
                         std::string_view function) {
  SdpaOptions options;
  options.scale = scale;
  options.right = right < 0 ? kUnbounded : right;
  if (dictionary.is_none()) return options;
  for (const auto& [key, value] : dictionary.cast<py::dict>()) {
    const auto name = key.cast<std::string>();
    const auto object = py::reinterpret_borrow<py::object>(value);
    if (name == "softcap") {
      options.softcap = value.cast<double>();
    } else if (name == "left") {
      const auto left = value.cast<std::int64_t>();
      options.left = left < 0 ? kUnbounded : left;
    } else if (name == "dropout") {
      options.dropout = value.cast<double>();
    } else if (name == "seed") {
      options.seed = value.cast<std::uint64_t>();
    } else if (name == "top_k") {
      options.top_k = value.cast<std::int64_t>();
    } else if (name == "kv_lengths") {
      options.kv_lengths = object;
    } else if (name == "query_starts") {
      options.query_starts = object;
    } else if (name == "alibi_slopes") {
      options.slopes = object;
    } else if (name == "rotary") {
      options.rotary = object;
    } else if (name == "sinks") {
      options.sinks = object;
    } else if (name == "rows") {
      options.rows = object;
    } else if (name == "lse") {
      options.lse = object;
    } else if (name == "out") {
      options.out = object;
    } else {
      throw py::type_error(std::string(function) + ": unknown option " + name);
    }
  }
  return options;
}

}  // namespace pyattn::python

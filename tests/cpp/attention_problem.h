// An attention problem with its own memory: random inputs in any storage type.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/attention.h"
#include "storage_format.h"

namespace pyattn::testing {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();
inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

enum class Mechanism { sdpa, additive };
enum class MaskUse { none, boolean, additive, keys_only };

struct Shape {
  std::int64_t batch = 1, heads = 1, groups = 1, rows = 1, keys = 1, depth = 1, columns = 1;

  std::string text() const {
    return "B=" + std::to_string(batch) + " H=" + std::to_string(heads) +
           " G=" + std::to_string(groups) + " T=" + std::to_string(rows) +
           " S=" + std::to_string(keys) + " D=" + std::to_string(depth) +
           " E=" + std::to_string(columns);
  }
};

// What is asked of a problem beside its shape.
struct Variant {
  MaskUse mask = MaskUse::none;
  std::int64_t left = kUnbounded;
  std::int64_t right = kUnbounded;
  bool starts = false;        // queries stand somewhere among the keys, before or behind them
  bool lengths = false;       // valid keys of each entry
  std::int64_t short_by = 0;  // keys at the end that the mask does not reach
  double softcap = 0;
  bool slopes = false;
  bool sinks = false;
  double dropout = 0;
  double size = 1;  // of queries and keys

  std::string text() const {
    return "mask " + std::to_string(static_cast<int>(mask)) + " left " + std::to_string(left) +
           " right " + std::to_string(right) + (starts ? " starts" : "") +
           (lengths ? " lengths" : "") + " short by " + std::to_string(short_by) + " softcap " +
           std::to_string(softcap) + (slopes ? " slopes" : "") + (sinks ? " sinks" : "") +
           " dropout " + std::to_string(dropout);
  }
};

inline constexpr Variant kCausal{.right = 0};
// Something of everything.
inline constexpr Variant kRich{.mask = MaskUse::boolean,
                               .left = 450,
                               .right = 40,
                               .starts = true,
                               .softcap = 20,
                               .slopes = true,
                               .sinks = true,
                               .dropout = 0.2};

// Four dimensions, with a gap behind each row that nothing may read or write. Memory is never null:
// a null output is one that is not wanted.
template <class X>
struct Array {
  static constexpr std::int64_t kGap = 3;

  std::vector<X> data;
  std::int64_t shape[4] = {};
  std::int64_t stride[4] = {};

  Array() = default;
  Array(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d, X inside, X gap)
      : shape{a, b, c, d}, stride{b * c * (d + kGap), c * (d + kGap), d + kGap, 1} {
    // The memory checker guards what is behind the last row.
    const std::int64_t count = std::max<std::int64_t>(1, a * stride[0] - kGap);
    data.assign(static_cast<std::size_t>(count), gap);
    for_each([&](X& x) { x = inside; });
  }

  std::int64_t offset(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d) const {
    return a * stride[0] + b * stride[1] + c * stride[2] + d;
  }
  X& at(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d) {
    return data.data()[offset(a, b, c, d)];
  }
  const X& at(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d) const {
    return data.data()[offset(a, b, c, d)];
  }
  X* row(std::int64_t a, std::int64_t b, std::int64_t c) {
    return data.data() + offset(a, b, c, 0);
  }
  const X* row(std::int64_t a, std::int64_t b, std::int64_t c) const {
    return data.data() + offset(a, b, c, 0);
  }

  template <class Body>
  void for_each(Body body) {
    for (std::int64_t r = 0; r < shape[0] * shape[1] * shape[2]; ++r) {
      for (std::int64_t d = 0; d < shape[3]; ++d) body(data.data()[r * stride[2] + d]);
    }
  }

  View<X, 4> view() { return view_of<X>(data.data()); }
  View<const X, 4> view() const { return view_of<const X>(data.data()); }
  // Of an array whose first dimension is 1.
  View<X, 3> view_3() {
    return {.data = data.data(),
            .shape = {shape[1], shape[2], shape[3]},
            .stride = {stride[1], stride[2], stride[3]}};
  }

 private:
  template <class U>
  View<U, 4> view_of(U* at) const {
    return {.data = at,
            .shape = {shape[0], shape[1], shape[2], shape[3]},
            .stride = {stride[0], stride[1], stride[2], stride[3]}};
  }
};

template <class X>
Array<double> numbers(const Array<X>& array) {
  Array<double> wide(array.shape[0], array.shape[1], array.shape[2], array.shape[3], 0, 0);
  std::transform(array.data.begin(), array.data.end(), wide.data.begin(), number<X>);
  return wide;
}

template <class X>
struct Problem {
  using T = Compute<X>;

  Mechanism mechanism;
  Shape shape;
  Variant variant;
  Array<X> query, key, value;
  Array<X> bias;                // (1, H, T, S)
  Array<std::uint8_t> boolean;  // the same
  std::vector<T> v, slopes, sinks;
  std::vector<std::int64_t> lengths, starts;
  std::vector<std::int64_t> rows;  // asked for, where not all are
  T scale = T(1);

  Problem(Mechanism mechanism_, const Shape& s, const Variant& variant_, std::mt19937& random)
      : mechanism(mechanism_), shape(s), variant(variant_) {
    query = normal(s.batch, s.heads, s.rows, s.depth, variant.size, random);
    key = normal(s.batch, s.groups, s.keys, s.depth, variant.size, random);
    value = normal(s.batch, s.groups, s.keys, s.columns, 1, random);
    v = normal(s.heads * s.depth, 0.3, random);
    slopes = normal(s.heads, 0.05, random);
    sinks = normal(s.heads, 2, random);
    add_masks(random);
    add_positions(random);
    scale = static_cast<T>(1 / std::sqrt(std::max<double>(1, static_cast<double>(s.depth))));
  }

  std::int64_t row_count() const {
    return rows.empty() ? shape.rows : static_cast<std::int64_t>(rows.size());
  }
  std::int64_t source(std::int64_t i) const { return rows.empty() ? i : rows.data()[i]; }
  std::int64_t group(std::int64_t h) const { return h / (shape.heads / shape.groups); }
  // Of row i, or of the row of the query that it stands for.
  std::int64_t position(std::int64_t b, std::int64_t i) const {
    return source(i) + (variant.starts ? starts.data()[b] : 0);
  }

  bool allowed(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    const std::int64_t p = position(b, i);
    if (variant.right < kUnbounded && j > p + variant.right) return false;
    if (variant.left < kUnbounded && j < p - variant.left) return false;
    if (j >= shape.keys - variant.short_by) return false;
    if (variant.lengths && j >= lengths.data()[b]) return false;
    if (variant.mask == MaskUse::boolean) return boolean.at(0, h, source(i), j) != 0;
    if (variant.mask == MaskUse::keys_only) return boolean.at(0, 0, 0, j) != 0;
    if (variant.mask != MaskUse::additive) return true;
    return number(bias.at(0, h, source(i), j)) != -kInfinity;
  }

  AttentionParams<X> params() const {
    AttentionParams<X> p;
    p.query = query.view();
    p.query.shape[2] = row_count();
    p.key = key.view();
    p.value = value.view();
    p.batch = shape.batch;
    p.keys = shape.keys - variant.short_by;
    if (variant.lengths) p.kv_lengths = lengths.data();
    if (variant.starts) p.query_starts = starts.data();
    if (!rows.empty()) p.rows = rows.data();
    p.left = variant.left;
    p.right = variant.right;
    p.scale = scale;
    p.softcap = static_cast<T>(variant.softcap);
    if (variant.slopes) p.slopes = slopes.data();
    if (variant.sinks) p.sinks = sinks.data();
    p.v = v.data();
    p.dropout = {.on = variant.dropout > 0,
                 .threshold = threshold(),
                 .seed = kSeed,
                 .factor = static_cast<T>(1 / (1 - variant.dropout))};
    p.mask = mask();
    return p;
  }

  static constexpr std::uint64_t kSeed = 0x0123456789abcdef;
  std::uint32_t threshold() const {
    return static_cast<std::uint32_t>(std::floor(variant.dropout * 4294967296.0));
  }

 private:
  static std::vector<T> normal(std::int64_t count, double size, std::mt19937& random) {
    std::normal_distribution<double> distribution;
    std::vector<T> numbers(static_cast<std::size_t>(count));
    for (T& x : numbers) x = static_cast<T>(size * distribution(random));
    return numbers;
  }
  static Array<X> normal(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d,
                         double size, std::mt19937& random) {
    std::normal_distribution<double> distribution;
    Array<X> array(a, b, c, d, X{}, stored<X>(kNan));
    array.for_each([&](X& x) { x = stored<X>(size * distribution(random)); });
    return array;
  }

  void add_masks(std::mt19937& random) {
    bias = normal(1, shape.heads, shape.rows, shape.keys, 2, random);
    boolean = {1, shape.heads, shape.rows, shape.keys, 0, 1};
    boolean.for_each([&](std::uint8_t& byte) {
      byte = random() % 3 != 0 ? static_cast<std::uint8_t>(1 + random() % 255) : std::uint8_t{0};
    });
    bias.for_each([&](X& x) {
      if (random() % 4 == 0) x = stored<X>(-kInfinity);
    });
  }

  void add_positions(std::mt19937& random) {
    const std::int64_t span = shape.keys + shape.rows + 1;
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      lengths.push_back(static_cast<std::int64_t>(random()) % (shape.keys + 1));
      starts.push_back(static_cast<std::int64_t>(random()) % (span + span / 4) - shape.rows -
                       span / 8);
    }
  }

  Mask mask() const {
    if (variant.mask == MaskUse::none) return {};
    const auto masked = [](auto& array, MaskKind kind) {
      return Mask{.kind = kind,
                  .data = array.data.data(),
                  .stride = {0, array.stride[1], array.stride[2], 1}};
    };
    if (variant.mask == MaskUse::additive) return masked(bias, MaskKind::additive);
    Mask mask = masked(boolean, MaskKind::boolean);
    if (variant.mask == MaskUse::keys_only) mask.stride[1] = mask.stride[2] = 0;
    return mask;
  }
};

template <class X>
Problem<X> rich_problem(const Shape& shape, unsigned seed) {
  std::mt19937 random(seed);
  Problem<X> problem(Mechanism::sdpa, shape, kRich, random);
  for (std::int64_t& start : problem.starts) start = std::abs(start) % shape.keys;
  return problem;
}

}  // namespace pyattn::testing

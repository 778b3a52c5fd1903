// The operators: what goes in and what comes out, as ONNX Runtime asks for it.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "ort/api.h"
#include "ort/variant.h"

namespace pyattn::ort {

// What an input means. The number of a role is its place in the arrays of a call.
enum class Role : std::uint8_t {
  query,
  key,
  value,
  v,
  centre,
  mask,
  lengths,
  starts,
  slopes,
  sinks,
  query_offsets,
  key_offsets,
  table,
  cache,
  update,
  write_indices,
  x,
  cosine,
  sine,
  positions,
};
inline constexpr std::size_t kRoles = 20;

const char* role_name(Role role);

struct Input {
  Role role;
  ElementType type;  // any: int32 or int64
  bool present;
};

// The length of an axis of a result: that of an axis of an input, or fixed.
struct Axis {
  Role input = Role::query;
  std::size_t axis = 0;
  std::int64_t fixed = -1;
};

struct Result {
  Output output;
  ElementType type;
  std::vector<Axis> shape;
};

class Call;

// What is known of the ONNX Runtime that registers the operators.
struct Host {
  Api api;
  int threads;            // of the session, that a kernel uses at most
  bool infers_optionals;  // see infer_shapes
};

class Operator : public OrtCustomOp {
 public:
  Operator(const Host& host, std::string name, const Variant& variant);
  Operator(const Operator&) = delete;
  Operator& operator=(const Operator&) = delete;

  const Api& api() const { return host_.api; }
  const std::string& name() const { return name_; }
  const Variant& variant() const { return variant_; }
  const std::vector<Input>& inputs() const { return inputs_; }
  const std::vector<Result>& results() const { return results_; }
  int threads() const { return host_.threads; }

  void run(const Call& call) const { compute_(call); }

 private:
  Host host_;
  std::string name_;
  Variant variant_;
  std::vector<Input> inputs_;
  std::vector<Result> results_;
  void (*compute_)(const Call&);
};

// What Operator chooses among: one of each per element type, instantiated beside its definition.
template <class X>
void compute_attention(const Call& call);
template <class X>
void compute_varlen(const Call& call);
template <class X>
void compute_paged(const Call& call);
template <class X>
void compute_local(const Call& call);
template <class X>
void compute_cache(const Call& call);
template <class X>
void compute_rotary(const Call& call);

}  // namespace pyattn::ort

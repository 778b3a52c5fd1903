#include "ort/operator.h"

#include <algorithm>
#include <utility>

#include "ort/call.h"

namespace pyattn::ort {
namespace {

ElementType arithmetic_of(ElementType element) {
  return element == ElementType::float64 ? ElementType::float64 : ElementType::float32;
}

std::vector<Input> inputs_of(const Variant& variant) {
  const ElementType own = variant.element;
  const ElementType wide = arithmetic_of(own);
  const ElementType integer = ElementType::any;
  const ElementType mask = variant.mask == MaskKind::boolean ? ElementType::boolean : own;
  const bool masked = variant.mask != MaskKind::none;
  if (variant.mechanism == Mechanism::cache) {
    return {
        {Role::cache, own, true}, {Role::update, own, true}, {Role::write_indices, integer, true}};
  }
  if (variant.mechanism == Mechanism::rotary) {
    std::vector<Input> rotary = {
        {Role::x, own, true}, {Role::cosine, own, true}, {Role::sine, own, true}};
    if (variant.positions) rotary.push_back({Role::positions, integer, true});
    return rotary;
  }
  std::vector<Input> inputs = {
      {Role::query, own, true}, {Role::key, own, true}, {Role::value, own, true}};
  const auto add = [&](std::initializer_list<Input> more) { inputs.insert(inputs.end(), more); };
  switch (variant.mechanism) {
    case Mechanism::sdpa:
      add({{Role::mask, mask, masked}, {Role::lengths, integer, variant.lengths}});
      add({{Role::starts, integer, variant.starts}, {Role::slopes, wide, variant.slopes}});
      add({{Role::sinks, wide, variant.sinks}});
      break;
    case Mechanism::additive:
      add({{Role::v, own, true}, {Role::mask, mask, masked}});
      add({{Role::lengths, integer, variant.lengths}, {Role::starts, integer, variant.starts}});
      break;
    case Mechanism::varlen:
      add({{Role::query_offsets, integer, true}, {Role::key_offsets, integer, true}});
      add({{Role::slopes, wide, variant.slopes}, {Role::sinks, wide, variant.sinks}});
      break;
    case Mechanism::paged:
      add({{Role::table, ElementType::int32, true}, {Role::lengths, integer, true}});
      add({{Role::slopes, wide, variant.slopes}, {Role::sinks, wide, variant.sinks}});
      break;
    case Mechanism::local:
      add({{Role::centre, wide, true}, {Role::v, wide, variant.concat}});
      add({{Role::mask, mask, masked}, {Role::lengths, integer, variant.lengths}});
      break;
    case Mechanism::cache:
    case Mechanism::rotary:
      break;
  }
  while (!inputs.back().present) inputs.pop_back();  // as the exporter does
  return inputs;
}

Result result_of(const Variant& variant, Output output) {
  const ElementType own = variant.element;
  const ElementType wide = arithmetic_of(own);
  const Axis b{Role::query, 0};
  if (variant.mechanism == Mechanism::cache) {
    return {output, own, {{Role::cache, 0}, {Role::cache, 1}, {Role::cache, 2}, {Role::cache, 3}}};
  }
  if (variant.mechanism == Mechanism::varlen) {
    const Axis n{Role::query, 0};
    const Axis h{Role::query, 1};
    if (output == Output::lse) return {output, wide, {h, n}};
    return {output, own, {n, h, {Role::value, 2}}};
  }
  if (variant.mechanism == Mechanism::rotary) {
    std::vector<Axis> shape = {{Role::x, 0}, {Role::x, 1}, {Role::x, 2}};
    if (variant.heads == 0) shape.push_back({Role::x, 3});
    return {output, own, shape};
  }
  std::vector<Axis> rows = {b, {Role::query, 1}};
  const bool heads = variant.mechanism != Mechanism::local;
  if (heads) rows.push_back({Role::query, 2});
  const std::size_t sequence = heads ? 2 : 1;
  const auto with = [&](Axis last) {
    std::vector<Axis> shape = rows;
    shape.push_back(last);
    return shape;
  };
  switch (output) {
    case Output::lse:
    case Output::max:
    case Output::entropy:
      return {output, wide, rows};
    case Output::column_mass:
      return {output, wide, {b, {Role::query, 1}, {Role::key, 2}}};
    case Output::out:
      return {output, own, with({Role::value, sequence + 1})};
    case Output::window_weights:
      return {output, own, with({.fixed = 2 * variant.half_width + 1})};
    default:
      return {output, own, with({Role::key, sequence})};
  }
}

template <class X>
auto compute_of(Mechanism mechanism) {
  switch (mechanism) {
    case Mechanism::varlen:
      return &compute_varlen<X>;
    case Mechanism::paged:
      return &compute_paged<X>;
    case Mechanism::local:
      return &compute_local<X>;
    case Mechanism::cache:
      return &compute_cache<X>;
    case Mechanism::rotary:
      return &compute_rotary<X>;
    default:
      return &compute_attention<X>;
  }
}

auto compute_of(const Variant& variant) {
  switch (variant.element) {
    case ElementType::float64:
      return compute_of<double>(variant.mechanism);
    case ElementType::float16:
      return compute_of<Half>(variant.mechanism);
    case ElementType::bfloat16:
      return compute_of<BFloat16>(variant.mechanism);
    default:
      return compute_of<float>(variant.mechanism);
  }
}

const Operator& of(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }

Presence presence_of(const OrtCustomOp* op, std::size_t i) {
  return of(op).inputs()[i].present ? Presence::required : Presence::optional;
}

OrtStatus* create_kernel(const OrtCustomOp* op, OrtApi*, const OrtKernelInfo* info, void** kernel) {
  *kernel = nullptr;
  return of(op).api().guarded(of(op).name(), [&] { *kernel = new Kernel(of(op), info); });
}

OrtStatus* compute(void* kernel, OrtKernelContext* context) {
  const auto& own = *static_cast<const Kernel*>(kernel);
  return own.op.api().guarded(own.op.name(), [&] { own.compute(context); });
}

}  // namespace

const char* role_name(Role role) {
  constexpr const char* kNames[kRoles] = {"query",
                                          "key",
                                          "value",
                                          "v",
                                          "centre",
                                          "attn_mask",
                                          "kv_lengths",
                                          "query_start",
                                          "alibi_slopes",
                                          "sinks",
                                          "cu_seqlens_q",
                                          "cu_seqlens_k",
                                          "block_table",
                                          "cache",
                                          "update",
                                          "write_indices",
                                          "x",
                                          "cos_cache",
                                          "sin_cache",
                                          "position_ids"};
  return kNames[static_cast<std::size_t>(role)];
}

Operator::Operator(const Host& host, std::string name, const Variant& variant)
    : OrtCustomOp{},
      host_(host),
      name_(std::move(name)),
      variant_(variant),
      inputs_(inputs_of(variant)),
      compute_(compute_of(variant)) {
  for (const Output output : variant.outputs) results_.push_back(result_of(variant, output));
  version = kInterface;
  get_name = [](const OrtCustomOp* op) { return of(op).name().c_str(); };
  get_execution_provider_type = [](const OrtCustomOp*) -> const char* { return nullptr; };
  get_input_type = [](const OrtCustomOp* op, std::size_t i) { return of(op).inputs()[i].type; };
  get_input_type_count = [](const OrtCustomOp* op) { return of(op).inputs().size(); };
  get_input_characteristic = presence_of;
  get_input_memory_type = [](const OrtCustomOp*, std::size_t) { return 0; };  // the processor's
  get_output_type = [](const OrtCustomOp* op, std::size_t i) { return of(op).results()[i].type; };
  get_output_type_count = [](const OrtCustomOp* op) { return of(op).results().size(); };
  get_output_characteristic = [](const OrtCustomOp*, std::size_t i) {
    return i == 0 ? Presence::required : Presence::optional;
  };
  get_variadic_input_min_arity =
      get_variadic_output_min_arity = [](const OrtCustomOp*) { return 1; };
  get_variadic_input_homogeneity =
      get_variadic_output_homogeneity = [](const OrtCustomOp*) { return 0; };
  create_kernel_v2 = ort::create_kernel;
  kernel_compute_v2 = ort::compute;
  kernel_destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  const bool complete =
      std::all_of(inputs_.begin(), inputs_.end(), [](const Input& input) { return input.present; });
  if (complete || host.infers_optionals) infer_output_shape = infer_shapes;
  get_start_version = [](const OrtCustomOp*) { return 1; };
  get_end_version = [](const OrtCustomOp*) { return 0x7fffffff; };
}

}  // namespace pyattn::ort

#include "ort/call.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/attention.h"
#include "core/parallel.h"

namespace pyattn::ort {
namespace {

// The threads of the session that runs the node.
struct SessionThreads {
  const Api& api;
  const OrtKernelContext* context;

  static void run(void* owner, int lanes, Executor::Lane lane, void* task) noexcept {
    struct Loop {
      Executor::Lane lane;
      void* task;
    } loop{lane, task};
    const auto& own = *static_cast<const SessionThreads*>(owner);
    const auto begin = [](void* given, std::size_t index) {
      const auto& [each, context] = *static_cast<const Loop*>(given);
      each(context, static_cast<int>(index));
    };
    const auto count = static_cast<std::size_t>(lanes);
    // Where it fails, the caller's thread does what is left.
    own.api.succeeds(entry::kernel_context_parallel_for, own.context, begin, count, count,
                     static_cast<void*>(&loop));
  }
};

// IEEE 754 binary16; core/params.h keeps the bits only.
float widen(Half half) {
  const std::uint32_t sign = (half.bits & 0x8000U) << 16;
  const std::uint32_t exponent = (half.bits >> 10) & 0x1fU;
  const std::uint32_t fraction = half.bits & 0x3ffU;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000U | fraction << 13);
  if (exponent == 0) {
    const float magnitude = std::ldexp(static_cast<float>(fraction), -24);
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}
float widen(BFloat16 number) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(number.bits) << 16);
}

}  // namespace

Kernel::Kernel(const Operator& that, const OrtKernelInfo* info) : op(that) {
  const Variant& variant = op.variant();
  const auto without = {Mechanism::additive, Mechanism::local, Mechanism::cache, Mechanism::rotary};
  if (std::find(without.begin(), without.end(), variant.mechanism) != without.end()) return;
  scale = read_attribute(op.api(), info, "scale", variant.element == ElementType::float64);
  if (!std::isfinite(scale)) {
    throw std::invalid_argument("scale must be finite; got " + std::to_string(scale));
  }
}

void Kernel::compute(OrtKernelContext* context) const {
  SessionThreads owner{op.api(), context};
  const Executor executor{.run = SessionThreads::run, .owner = &owner, .lanes = op.threads()};
  const ExecutorScope scope(executor);
  op.run(Call(*this, context));
}

Call::Call(const Kernel& kernel, OrtKernelContext* context) : kernel_(kernel), context_(context) {
  const auto& inputs = kernel.op.inputs();
  std::size_t count = 0;
  api().call(entry::kernel_context_get_input_count, context, &count);
  for (std::size_t i = 0; i < inputs.size() && i < count; ++i) {
    const OrtValue* value = nullptr;
    api().call(entry::kernel_context_get_input, context, i, &value);
    const auto place = static_cast<std::size_t>(inputs[i].role);
    present_[place] = value != nullptr;
    if (value != nullptr) {
      tensors_[place] = read_tensor(api(), value, role_name(inputs[i].role));
    }
  }
  for (const Input& input : inputs) {
    if (present_[static_cast<std::size_t>(input.role)] == input.present) continue;
    throw std::invalid_argument(std::string(role_name(input.role)) +
                                (input.present ? " is missing" : " is not known here"));
  }
}

Tensor Call::result(std::size_t index) const {
  const Result& result = kernel_.op.results()[index];
  Tensor tensor{.type = result.type, .rank = result.shape.size()};
  for (std::size_t i = 0; i < tensor.rank; ++i) {
    const Axis& axis = result.shape[i];
    tensor.shape[i] = axis.fixed >= 0 ? axis.fixed : this->tensor(axis.input).shape[axis.axis];
  }
  std::size_t count = 0;
  api().call(entry::kernel_context_get_output_count, context_, &count);
  if (index >= count) return tensor;
  OrtValue* value = nullptr;
  api().call(entry::kernel_context_get_output, context_, index,
             static_cast<const std::int64_t*>(tensor.shape.data()), tensor.rank, &value);
  if (value != nullptr) api().call(entry::get_tensor_mutable_data, value, &tensor.data);
  return tensor;
}

std::string Call::got(std::initializer_list<Role> roles) const {
  std::string text;
  for (const Role role : roles) {
    text += (text.empty() ? "; got " : ", ") + std::string(role_name(role)) + " " +
            shape_text(tensor(role));
  }
  return text;
}

void Call::require(bool holds, const char* rule, std::initializer_list<Role> roles) const {
  if (!holds) throw std::invalid_argument(rule + got(roles));
}

void Call::require_axes(std::size_t count) const {
  const auto all = {Role::query, Role::key, Role::value};
  const std::string rule = "query, key and value must have " + std::to_string(count) + " axes";
  for (const Role role : all) require(tensor(role).rank == count, rule.c_str(), all);
}

void Call::require_groups() const {
  const std::int64_t heads = tensor(Role::query).shape[1];
  const std::int64_t groups = tensor(Role::key).shape[1];
  require(groups == 0 ? heads == 0 : heads % groups == 0, "H must be a multiple of G",
          {Role::query, Role::key, Role::value});
}

std::vector<std::int64_t> Call::integers(Role role, const std::vector<std::int64_t>& shape,
                                         std::int64_t least, std::int64_t most) const {
  const Tensor* found = find(role);
  if (found == nullptr) return {};
  const std::string name = role_name(role);
  if (found->type != ElementType::int32 && found->type != ElementType::int64) {
    throw std::invalid_argument(name + " must be int32 or int64; got " + type_text(found->type));
  }
  if (found->rank != shape.size() ||
      !std::equal(shape.begin(), shape.end(), found->shape.begin())) {
    throw std::invalid_argument(name + " must have shape " +
                                shape_text(shape.data(), shape.size()) + got({role}));
  }
  std::vector<std::int64_t> copy;
  copy.reserve(static_cast<std::size_t>(found->count()));
  for (std::int64_t i = 0; i < found->count(); ++i) {
    copy.push_back(found->type == ElementType::int32
                       ? static_cast<const std::int32_t*>(found->data)[i]
                       : static_cast<const std::int64_t*>(found->data)[i]);
    if (copy.back() >= least && copy.back() <= most) continue;
    throw std::invalid_argument(name + " must lie in " + std::to_string(least) + ".." +
                                std::to_string(most) + "; got " + std::to_string(copy.back()) +
                                " at index " + std::to_string(i));
  }
  return copy;
}

template <class X>
Mask mask_of(const Call& call, const std::vector<std::int64_t>& target, std::int64_t& keys) {
  Mask mask;
  const Tensor* given = call.find(Role::mask);
  if (given == nullptr) return mask;
  mask.kind = call.variant().mask;
  mask.data = given->data;
  const std::vector<std::int64_t> shape(given->shape.begin(),
                                        given->shape.begin() + static_cast<int>(given->rank));
  std::vector<std::int64_t> stride(shape.size());
  std::int64_t next = 1;
  for (std::size_t i = shape.size(); i-- > 0;) {
    stride[i] = next;
    next *= shape[i];
  }
  if (!broadcast_mask(shape, stride, target, mask, keys)) {
    throw std::invalid_argument("attn_mask must broadcast to " +
                                shape_text(target.data(), target.size()) + "; got " +
                                shape_text(*given));
  }
  return mask;
}

template <class X>
const Compute<X>* widened(const Tensor& tensor, std::vector<Compute<X>>& storage) {
  if constexpr (std::is_same_v<X, Compute<X>>) {
    return static_cast<const X*>(tensor.data);
  } else {
    const auto* data = static_cast<const X*>(tensor.data);
    for (std::int64_t i = 0; i < tensor.count(); ++i) storage.push_back(widen(data[i]));
    return storage.data();
  }
}

#define PYATTN_INSTANTIATE(X)                                                             \
  template Mask mask_of<X>(const Call&, const std::vector<std::int64_t>&, std::int64_t&); \
  template const Compute<X>* widened<X>(const Tensor&, std::vector<Compute<X>>&);
PYATTN_INSTANTIATE(float)
PYATTN_INSTANTIATE(double)
PYATTN_INSTANTIATE(Half)
PYATTN_INSTANTIATE(BFloat16)
#undef PYATTN_INSTANTIATE

}  // namespace pyattn::ort

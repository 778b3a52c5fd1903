// One node of a graph, and one run of it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/params.h"
#include "ort/operator.h"

namespace pyattn::ort {

// What ONNX Runtime keeps for a node.
struct Kernel {
  Kernel(const Operator& that, const OrtKernelInfo* info);

  void compute(OrtKernelContext* context) const;

  const Operator& op;
  double scale = 1;
};

// The tensors of one run. Errors are std::invalid_argument.
class Call {
 public:
  Call(const Kernel& kernel, OrtKernelContext* context);

  const Variant& variant() const { return kernel_.op.variant(); }
  double scale() const { return kernel_.scale; }

  // Null where the node has no such input.
  const Tensor* find(Role role) const {
    return present_[static_cast<std::size_t>(role)] ? &tensor(role) : nullptr;
  }
  const Tensor& tensor(Role role) const { return tensors_[static_cast<std::size_t>(role)]; }

  // Without data where nobody reads the result.
  Tensor result(std::size_t index) const;
  std::size_t results() const { return kernel_.op.results().size(); }
  Output output(std::size_t index) const { return kernel_.op.results()[index].output; }

  // "; got query (2, 3), key (2, 4)": the shapes of the inputs named.
  std::string got(std::initializer_list<Role> roles) const;
  // Raises with `rule` and those shapes unless `holds`.
  void require(bool holds, const char* rule, std::initializer_list<Role> roles) const;

  // (H,) in the type of the arithmetic, H being axis 1 of the query; null where the input is
  // absent.
  template <class T>
  const T* of_heads(Role role) const {
    const Tensor* vector = find(role);
    if (vector == nullptr) return nullptr;
    require(vector->rank == 1 && vector->shape[0] == tensor(Role::query).shape[1],
            "alibi_slopes and sinks must be (H,)", {Role::query, role});
    return static_cast<const T*>(vector->data);
  }

  // query, key and value have so many axes.
  void require_axes(std::size_t count) const;
  // The heads, axis 1, of the query are a multiple of those of the key.
  void require_groups() const;

  // Integers in least..most, or nothing where the input is absent; a vector of `length`, or of a
  // shape.
  std::vector<std::int64_t> integers(Role role, std::int64_t length, std::int64_t least,
                                     std::int64_t most) const {
    return integers(role, std::vector<std::int64_t>{length}, least, most);
  }
  std::vector<std::int64_t> integers(Role role, const std::vector<std::int64_t>& shape,
                                     std::int64_t least, std::int64_t most) const;

 private:
  const Api& api() const { return kernel_.op.api(); }

  const Kernel& kernel_;
  OrtKernelContext* context_;
  std::array<Tensor, kRoles> tensors_;
  std::array<bool, kRoles> present_ = {};
};

// The shapes of the results from those of the inputs, where names stand for dynamic sizes. ONNX
// Runtime before 1.24 dereferences a null pointer on the way here if an input is left out.
OrtStatus* infer_shapes(const OrtCustomOp* op, OrtShapeInferContext* context);

// Dense, as ONNX Runtime's tensors are.
template <class X, int Rank>
View<X, Rank> view_of(const Tensor& tensor) {
  View<X, Rank> view;
  view.data = static_cast<X*>(tensor.data);
  std::int64_t stride = 1;
  for (int axis = Rank - 1; axis >= 0; --axis) {
    const auto at = static_cast<std::size_t>(axis);
    view.shape[axis] = tensor.shape[at];
    view.stride[axis] = stride;
    stride *= tensor.shape[at];
  }
  return view;
}

// A mask that broadcasts to `target`; shortens `keys` where it is short.
template <class X>
Mask mask_of(const Call& call, const std::vector<std::int64_t>& target, std::int64_t& keys);

// The tensor in the type of the arithmetic, which `storage` keeps where it is another.
template <class X>
const Compute<X>* widened(const Tensor& tensor, std::vector<Compute<X>>& storage);

}  // namespace pyattn::ort

// Shapes before anything runs: sizes that are known, and names of those that are not.
#include <string>

#include "ort/call.h"

namespace pyattn::ort {
namespace {

struct Shape {
  std::vector<std::int64_t> sizes;  // -1: dynamic
  std::vector<const char*> names;   // of dynamic sizes; "" for the others, or where there is none
};

// Nothing where the shape of the input is not known.
Shape input_shape(const Api& api, OrtShapeInferContext* context, std::size_t index) {
  OrtTensorTypeAndShapeInfo* info = nullptr;  // it belongs to the context
  Shape shape;
  std::size_t rank = 0;
  if (!api.succeeds(entry::shape_infer_context_get_input_type_shape, context, index, &info) ||
      info == nullptr || !api.succeeds(entry::get_dimensions_count, info, &rank)) {
    return shape;
  }
  shape.sizes.resize(rank);
  shape.names.resize(rank);
  api.call(entry::get_dimensions, info, shape.sizes.data(), rank);
  api.call(entry::get_symbolic_dimensions, info, shape.names.data(), rank);
  return shape;
}

// Whether all axes of the result are known by size or by name: ONNX Runtime would take an axis that
// is neither for one of size -1.
bool result_shape(const Operator& op, const Result& result, const std::vector<Shape>& inputs,
                  Shape& shape) {
  for (const Axis& axis : result.shape) {
    if (axis.fixed >= 0) {
      shape.sizes.push_back(axis.fixed);
      shape.names.push_back("");
      continue;
    }
    std::size_t place = 0;
    while (op.inputs()[place].role != axis.input) ++place;
    if (place >= inputs.size() || axis.axis >= inputs[place].sizes.size()) return false;
    const std::int64_t size = inputs[place].sizes[axis.axis];
    const char* name = inputs[place].names[axis.axis];
    if (size < 0 && *name == '\0') return false;
    shape.sizes.push_back(size);
    shape.names.push_back(name);
  }
  return true;
}

void set_result(const Api& api, OrtShapeInferContext* context, std::size_t index, ElementType type,
                Shape& shape) {
  Owned<OrtTensorTypeAndShapeInfo> info(api);
  api.call(entry::create_tensor_type_and_shape_info, info.place());
  api.call(entry::set_tensor_element_type, info.get(), type);
  const std::size_t rank = shape.sizes.size();
  api.call(entry::set_dimensions, info.get(), static_cast<const std::int64_t*>(shape.sizes.data()),
           rank);
  api.call(entry::set_symbolic_dimensions, info.get(), shape.names.data(), rank);
  api.call(entry::shape_infer_context_set_output_type_shape, context, index,
           static_cast<const OrtTensorTypeAndShapeInfo*>(info.get()));
}

}  // namespace

OrtStatus* infer_shapes(const OrtCustomOp* op, OrtShapeInferContext* context) {
  const auto& own = *static_cast<const Operator*>(op);
  const Api& api = own.api();
  return api.guarded(own.name(), [&] {
    std::size_t count = 0;
    api.call(entry::shape_infer_context_get_input_count, context, &count);
    std::vector<Shape> inputs;
    for (std::size_t i = 0; i < count; ++i) inputs.push_back(input_shape(api, context, i));
    for (std::size_t i = 0; i < own.results().size(); ++i) {
      Shape shape;
      if (!result_shape(own, own.results()[i], inputs, shape)) continue;
      set_result(api, context, i, own.results()[i].type, shape);
    }
  });
}

}  // namespace pyattn::ort

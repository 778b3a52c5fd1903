#include "ort/api.h"

namespace pyattn::ort {
std::string shape_text(const std::int64_t* shape, std::size_t rank) {
  std::string text = "(";
  for (std::size_t i = 0; i < rank; ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + (rank == 1 ? ",)" : ")");
}

const char* type_text(ElementType type) {
  switch (type) {
    case ElementType::float32:
      return "float32";
    case ElementType::float64:
      return "float64";
    case ElementType::float16:
      return "float16";
    case ElementType::bfloat16:
      return "bfloat16";
    case ElementType::boolean:
      return "bool";
    case ElementType::int32:
      return "int32";
    case ElementType::int64:
      return "int64";
    default:
      return "another type";
  }
}

Tensor read_tensor(const Api& api, const OrtValue* value, const char* name) {
  Owned<OrtTensorTypeAndShapeInfo> info(api);
  api.call(entry::get_tensor_type_and_shape, value, info.place());
  Tensor tensor;
  api.call(entry::get_tensor_element_type, info.get(), &tensor.type);
  api.call(entry::get_dimensions_count, info.get(), &tensor.rank);
  if (tensor.rank > Tensor::kMostAxes) {
    throw std::invalid_argument(std::string(name) + " must have 4 axes or fewer; got " +
                                std::to_string(tensor.rank));
  }
  api.call(entry::get_dimensions, info.get(), tensor.shape.data(), tensor.rank);
  api.call(entry::get_tensor_mutable_data, const_cast<OrtValue*>(value), &tensor.data);
  return tensor;
}

double read_attribute(const Api& api, const OrtKernelInfo* info, const char* name, bool wide) {
  if (!wide) {
    float number = 0;
    api.call(entry::kernel_info_get_attribute_float, info, name, &number);
    return static_cast<double>(number);
  }
  OrtAllocator* allocator = nullptr;  // it belongs to ONNX Runtime
  api.call(entry::get_allocator_with_default_options, &allocator);
  Owned<OrtValue> value(api);
  api.call(entry::kernel_info_get_attribute_tensor, info, name, allocator, value.place());
  const Tensor tensor = read_tensor(api, value.get(), name);
  if (tensor.type != ElementType::float64 || tensor.count() != 1) {
    throw std::invalid_argument(std::string(name) + " must be one float64 number; got " +
                                type_text(tensor.type) + " " + shape_text(tensor));
  }
  return *static_cast<const double*>(tensor.data);
}

std::string session_entry(const Api& api, const OrtSessionOptions* options, const char* key) {
  int there = 0;
  api.call(entry::has_session_config_entry, options, key, &there);
  if (there == 0) return "";
  std::size_t size = 0;  // with the null behind it
  api.call(entry::get_session_config_entry, options, key, static_cast<char*>(nullptr), &size);
  std::string text(size, '\0');
  api.call(entry::get_session_config_entry, options, key, text.data(), &size);
  text.resize(size > 0 ? size - 1 : 0);
  return text;
}

}  // namespace pyattn::ort

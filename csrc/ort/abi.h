// The binary interface of ONNX Runtime, as far as this library uses it. ONNX Runtime appends to its
// tables and never moves an entry, and no package of it carries a C header: the entries are taken
// by their place, with the version of the interface that has them all. 64-bit only.
//
// Source of the places: include/onnxruntime/core/session/onnxruntime_c_api.h of ONNX Runtime.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pyattn::ort {

static_assert(sizeof(void*) == 8, "the interface is known for 64-bit systems");

inline constexpr std::uint32_t kInterface = 17;  // has ParallelFor and shape inference

struct OrtStatus;  // null: success
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtTensorTypeAndShapeInfo;
struct OrtAllocator;
struct OrtValue;
struct OrtCustomOp;

enum class ErrorCode : int { fail = 1, invalid_argument = 2 };

enum class ElementType : int {
  any = 0,
  float32 = 1,
  int32 = 6,
  int64 = 7,
  boolean = 9,
  float16 = 10,
  float64 = 11,
  bfloat16 = 16,
};

enum class Presence : int { required = 0, optional = 1 };

// An entry of OrtApi: its place in the table and its type.
template <class Signature>
struct Entry {
  std::size_t place;
};

namespace entry {

using Info = OrtTensorTypeAndShapeInfo;
using Lane = void (*)(void*, std::size_t);

inline constexpr Entry<OrtStatus*(ErrorCode, const char*)> create_status{0};
inline constexpr Entry<OrtStatus*(const char*, OrtCustomOpDomain**)> create_custom_op_domain{26};
inline constexpr Entry<OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*)> custom_op_domain_add{27};
inline constexpr Entry<OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)> add_custom_op_domain{28};
inline constexpr Entry<OrtStatus*(OrtValue*, void**)> get_tensor_mutable_data{51};
inline constexpr Entry<OrtStatus*(Info**)> create_tensor_type_and_shape_info{57};
inline constexpr Entry<OrtStatus*(Info*, ElementType)> set_tensor_element_type{58};
inline constexpr Entry<OrtStatus*(Info*, const std::int64_t*, std::size_t)> set_dimensions{59};
inline constexpr Entry<OrtStatus*(const Info*, ElementType*)> get_tensor_element_type{60};
inline constexpr Entry<OrtStatus*(const Info*, std::size_t*)> get_dimensions_count{61};
inline constexpr Entry<OrtStatus*(const Info*, std::int64_t*, std::size_t)> get_dimensions{62};
inline constexpr Entry<OrtStatus*(const Info*, const char**, std::size_t)> get_symbolic_dimensions{
    63};
inline constexpr Entry<OrtStatus*(const OrtValue*, Info**)> get_tensor_type_and_shape{65};
inline constexpr Entry<OrtStatus*(OrtAllocator**)> get_allocator_with_default_options{78};
inline constexpr Entry<OrtStatus*(const OrtKernelInfo*, const char*, float*)>
    kernel_info_get_attribute_float{85};
inline constexpr Entry<OrtStatus*(const OrtKernelContext*, std::size_t*)>
    kernel_context_get_input_count{88};
inline constexpr Entry<OrtStatus*(const OrtKernelContext*, std::size_t*)>
    kernel_context_get_output_count{89};
inline constexpr Entry<OrtStatus*(const OrtKernelContext*, std::size_t, const OrtValue**)>
    kernel_context_get_input{90};
inline constexpr Entry<OrtStatus*(OrtKernelContext*, std::size_t, const std::int64_t*, std::size_t,
                                  OrtValue**)>
    kernel_context_get_output{91};
inline constexpr Entry<void(OrtStatus*)> release_status{93};
inline constexpr Entry<void(OrtValue*)> release_value{96};
inline constexpr Entry<void(Info*)> release_tensor_type_and_shape_info{99};
inline constexpr Entry<OrtStatus*(const OrtKernelInfo*, const char*, OrtAllocator*, OrtValue**)>
    kernel_info_get_attribute_tensor{236};
inline constexpr Entry<OrtStatus*(const OrtSessionOptions*, const char*, int*)>
    has_session_config_entry{237};
inline constexpr Entry<OrtStatus*(const OrtSessionOptions*, const char*, char*, std::size_t*)>
    get_session_config_entry{238};
inline constexpr Entry<OrtStatus*(const OrtShapeInferContext*, std::size_t*)>
    shape_infer_context_get_input_count{267};
inline constexpr Entry<OrtStatus*(const OrtShapeInferContext*, std::size_t, Info**)>
    shape_infer_context_get_input_type_shape{268};
inline constexpr Entry<OrtStatus*(OrtShapeInferContext*, std::size_t, const Info*)>
    shape_infer_context_set_output_type_shape{270};
inline constexpr Entry<OrtStatus*(Info*, const char**, std::size_t)> set_symbolic_dimensions{271};
inline constexpr Entry<OrtStatus*(const OrtKernelContext*, Lane, std::size_t, std::size_t, void*)>
    kernel_context_parallel_for{274};

}  // namespace entry

using OrtApi = const void* const;  // the first of the entries

struct OrtApiBase {
  OrtApi* (*get_api)(std::uint32_t version) noexcept;
  const char* (*get_version_string)() noexcept;
};

// Up to the last field of version 17. Null stands for what an operator does without.
struct OrtCustomOp {
  std::uint32_t version;
  void* (*create_kernel)(const OrtCustomOp*, OrtApi*, const OrtKernelInfo*);
  const char* (*get_name)(const OrtCustomOp*);
  const char* (*get_execution_provider_type)(const OrtCustomOp*);
  ElementType (*get_input_type)(const OrtCustomOp*, std::size_t);
  std::size_t (*get_input_type_count)(const OrtCustomOp*);
  ElementType (*get_output_type)(const OrtCustomOp*, std::size_t);
  std::size_t (*get_output_type_count)(const OrtCustomOp*);
  void (*kernel_compute)(void*, OrtKernelContext*);
  void (*kernel_destroy)(void*);
  Presence (*get_input_characteristic)(const OrtCustomOp*, std::size_t);
  Presence (*get_output_characteristic)(const OrtCustomOp*, std::size_t);
  int (*get_input_memory_type)(const OrtCustomOp*, std::size_t);
  int (*get_variadic_input_min_arity)(const OrtCustomOp*);
  int (*get_variadic_input_homogeneity)(const OrtCustomOp*);
  int (*get_variadic_output_min_arity)(const OrtCustomOp*);
  int (*get_variadic_output_homogeneity)(const OrtCustomOp*);
  OrtStatus* (*create_kernel_v2)(const OrtCustomOp*, OrtApi*, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*kernel_compute_v2)(void*, OrtKernelContext*);
  OrtStatus* (*infer_output_shape)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*get_start_version)(const OrtCustomOp*);
  int (*get_end_version)(const OrtCustomOp*);
};
static_assert(offsetof(OrtCustomOp, get_name) == 2 * sizeof(void*));
static_assert(offsetof(OrtCustomOp, kernel_compute) == 8 * sizeof(void*));
static_assert(offsetof(OrtCustomOp, get_input_characteristic) == 10 * sizeof(void*));
static_assert(offsetof(OrtCustomOp, create_kernel_v2) == 17 * sizeof(void*));
static_assert(offsetof(OrtCustomOp, infer_output_shape) == 19 * sizeof(void*));
static_assert(sizeof(OrtCustomOp) == 22 * sizeof(void*));

}  // namespace pyattn::ort

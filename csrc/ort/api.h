// Typed calls of ONNX Runtime. A failed one throws the status that it returned; `guarded` turns
// what is thrown into a status again at the border, so that nothing crosses it.
#pragma once

#include <array>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort/abi.h"

namespace pyattn::ort {

struct Failure {
  OrtStatus* status;
};

class Api {
 public:
  explicit Api(OrtApi* entries) : entries_(entries) {}

  template <class... Parameters, class... Arguments>
  void call(Entry<OrtStatus*(Parameters...)> entry, Arguments... arguments) const {
    if (OrtStatus* status = at(entry)(arguments...)) throw Failure{status};
  }
  // The same where a failure is to be expected; returns whether it succeeded.
  template <class... Parameters, class... Arguments>
  bool succeeds(Entry<OrtStatus*(Parameters...)> entry, Arguments... arguments) const {
    OrtStatus* status = at(entry)(arguments...);
    if (status != nullptr) release(status);
    return status == nullptr;
  }

  void release(OrtStatus* status) const { at(entry::release_status)(status); }
  void release(OrtValue* value) const { at(entry::release_value)(value); }
  void release(OrtTensorTypeAndShapeInfo* info) const {
    at(entry::release_tensor_type_and_shape_info)(info);
  }

  // Runs `body`; returns null or, where it threw, a status whose message begins with `where`.
  template <class Body>
  OrtStatus* guarded(const std::string& where, const Body& body) const noexcept {
    try {
      body();
      return nullptr;
    } catch (const Failure& failure) {
      return failure.status;
    } catch (const std::invalid_argument& error) {
      return report(ErrorCode::invalid_argument, where, error.what());
    } catch (const std::bad_alloc&) {
      return report(ErrorCode::fail, where, "out of memory");
    } catch (const std::exception& error) {
      return report(ErrorCode::fail, where, error.what());
    }
  }

  OrtApi* entries() const { return entries_; }

 private:
  template <class Signature>
  Signature* at(Entry<Signature> entry) const {
    return reinterpret_cast<Signature*>(const_cast<void*>(entries_[entry.place]));
  }
  OrtStatus* report(ErrorCode code, const std::string& where, const char* what) const noexcept {
    try {
      return at(entry::create_status)(code, (where + ": " + what).c_str());
    } catch (const std::bad_alloc&) {
      return at(entry::create_status)(code, what);
    }
  }

  OrtApi* entries_;
};

// Anything that ONNX Runtime wants back.
template <class T>
class Owned {
 public:
  explicit Owned(const Api& api) : api_(api) {}
  ~Owned() {
    if (held_ != nullptr) api_.release(held_);
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;

  T** place() { return &held_; }
  T* get() const { return held_; }

 private:
  const Api& api_;
  T* held_ = nullptr;
};

// A dense tensor. The masks of attention have four axes, and nothing has more.
struct Tensor {
  static constexpr std::size_t kMostAxes = 4;

  ElementType type = ElementType::any;
  std::size_t rank = 0;
  std::array<std::int64_t, kMostAxes> shape = {};
  void* data = nullptr;

  std::int64_t count() const {
    std::int64_t product = 1;
    for (std::size_t i = 0; i < rank; ++i) product *= shape[i];
    return product;
  }
};

std::string shape_text(const std::int64_t* shape, std::size_t rank);
inline std::string shape_text(const Tensor& tensor) {
  return shape_text(tensor.shape.data(), tensor.rank);
}
const char* type_text(ElementType type);

// Throws std::invalid_argument, with `name`, for a tensor with more axes than Tensor has.
Tensor read_tensor(const Api& api, const OrtValue* value, const char* name);

// The number behind a float attribute or, for the arithmetic of float64, a tensor of one number.
double read_attribute(const Api& api, const OrtKernelInfo* info, const char* name, bool wide);

// "" where there is none.
std::string session_entry(const Api& api, const OrtSessionOptions* options, const char* key);

}  // namespace pyattn::ort

// What ONNX Runtime calls when the library is registered with a session's options.
//
// Each operator costs a session a tenth of a millisecond, and there is no end of variants: names
// with the width of a window or the number of heads. Without more ado the usual ones are
// registered. The entry "pyattn.operators" of the session's options, names with commas between
// them, asks for others instead; names that have no kernel here are passed over, and their
// functions run. "pyattn.threads" bounds the threads that a kernel asks the session for.
#include <algorithm>
#include <cstdlib>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>

#include "core/environment.h"
#include "core/parallel.h"
#include "ort/operator.h"

#if defined(_WIN32)
#define PYATTN_EXPORT __declspec(dllexport)
#else
#define PYATTN_EXPORT __attribute__((visibility("default")))
#endif

namespace pyattn::ort {
namespace {

constexpr const char* kDomain = "pyattn";

std::vector<std::string> usual_operators() {
  std::vector<std::string> names;
  for (const char* mask : {"", "BoolMask", "FloatMask"}) {
    for (const char* lengths : {"", "Lengths"}) {
      for (const char* weights : {"", "Weights"}) {
        const std::string before = std::string(mask) + lengths;
        for (const char* causal : {"", "Causal"}) {
          names.push_back("ScaledDotProductAttention" + before + causal + weights);
        }
        names.push_back("AdditiveAttention" + before + weights);
      }
    }
  }
  return names;
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

int threads_of(const std::string& text) {
  if (text.empty()) return threads();
  std::size_t end = 0;
  int count = 0;
  try {
    count = std::stoi(text, &end);
  } catch (const std::logic_error&) {
    end = 0;
  }
  if (end != text.size() || count < 1 || count > kMaxThreads) {
    throw std::invalid_argument("pyattn.threads must be 1 to " + std::to_string(kMaxThreads) +
                                "; got \"" + text + "\"");
  }
  return count;
}

// Of a version 1.minor.patch; what comes behind 1 has every minor version.
int minor_version(const std::string& version) {
  if (!version.starts_with("1.")) return std::numeric_limits<int>::max();
  return std::atoi(version.c_str() + 2);
}

// A domain and its operators must outlive the sessions that they are registered with, and nobody
// says when those end. Sessions that ask for the same share them.
class Domain {
 public:
  Domain(const Host& host, const std::vector<std::string>& names) {
    const Api& api = host.api;
    api.call(entry::create_custom_op_domain, kDomain, &handle_);
    for (const std::string& name : names) {
      const auto variant = parse_name(name);
      if (!variant) continue;
      operators_.push_back(std::make_unique<Operator>(host, name, *variant));
      api.call(entry::custom_op_domain_add, handle_,
               static_cast<const OrtCustomOp*>(operators_.back().get()));
    }
  }

  OrtCustomOpDomain* handle() const { return handle_; }

 private:
  OrtCustomOpDomain* handle_ = nullptr;
  std::vector<std::unique_ptr<Operator>> operators_;
};

OrtCustomOpDomain* domain_for(const Host& host, const std::string& names) {
  using Key = std::tuple<OrtApi*, std::string, int>;
  static std::mutex mutex;
  static auto& domains = *new std::map<Key, std::unique_ptr<Domain>>;
  const std::scoped_lock lock(mutex);
  auto& domain = domains[{host.api.entries(), names, host.threads}];
  if (!domain) {
    const auto wanted = names.empty() ? usual_operators() : split(names);
    domain = std::make_unique<Domain>(host, wanted);
  }
  return domain->handle();
}

}  // namespace
}  // namespace pyattn::ort

extern "C" PYATTN_EXPORT pyattn::ort::OrtStatus* RegisterCustomOps(
    pyattn::ort::OrtSessionOptions* options, const pyattn::ort::OrtApiBase* base) {
  using namespace pyattn::ort;
  OrtApi* entries = base->get_api(kInterface);
  // Older than the interface: there is nothing to make a status with. ONNX Runtime keeps running
  // the functions.
  if (entries == nullptr) return nullptr;
  const Api api(entries);
  return api.guarded("pyattn", [&] {
    static const bool once = (pyattn::read_environment(), true);
    static_cast<void>(once);
    const Host host{.api = api,
                    .threads = threads_of(session_entry(api, options, "pyattn.threads")),
                    .infers_optionals = minor_version(base->get_version_string()) >= 24};
    const std::string names = session_entry(api, options, "pyattn.operators");
    api.call(entry::add_custom_op_domain, options, domain_for(host, names));
  });
}

// Whether there is a kernel for a function of the domain.
extern "C" PYATTN_EXPORT bool pyattn_has_operator(const char* name) {
  return pyattn::ort::parse_name(name).has_value();
}

#include "core/isa.h"

#include <atomic>
#include <stdexcept>

namespace pyattn {
namespace {

std::atomic<const KernelTable*> chosen{nullptr};

const KernelTable* best() {
  for (const IsaEntry& entry : built_isas()) {
    if (entry.supported()) return entry.table;
  }
  throw std::runtime_error("pyattn: no instruction set of this build runs on this processor");
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const IsaEntry& entry : built_isas()) {
    if (entry.supported()) names.emplace_back(entry.table->name);
  }
  return names;
}

const KernelTable& kernels() {
  const KernelTable* table = chosen.load(std::memory_order_acquire);
  if (table == nullptr) {
    const KernelTable* none = nullptr;
    chosen.compare_exchange_strong(none, best(), std::memory_order_acq_rel);
    table = chosen.load(std::memory_order_acquire);
  }
  return *table;
}

void set_isa(std::string_view name) {
  std::string names;
  for (const IsaEntry& entry : built_isas()) {
    if (!entry.supported()) continue;
    if (name == entry.table->name) {
      chosen.store(entry.table, std::memory_order_release);
      return;
    }
    names += names.empty() ? "" : ", ";
    names += entry.table->name;
  }
  throw std::invalid_argument("set_isa: '" + std::string(name) +
                              "' is not available; this machine has " + names);
}

}  // namespace pyattn

#include "core/cpu_quota.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>
#include <thread>

#ifdef __linux__
#include <sched.h>
#endif

namespace pyattn {
namespace {

constexpr double kNoLimit = 1e9;

#ifdef __linux__
int affinity_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  // Fails on machines with more processors than cpu_set_t holds; the hardware count is then used.
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
}

double version2_quota(const std::string& group) {
  std::ifstream file("/sys/fs/cgroup" + group + "/cpu.max");
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return kNoLimit;
  return std::strtod(quota.c_str(), nullptr) / period;
}

double version1_quota(const std::string& group) {
  const std::string folder = "/sys/fs/cgroup/cpu" + group;
  std::ifstream quota_file(folder + "/cpu.cfs_quota_us");
  std::ifstream period_file(folder + "/cpu.cfs_period_us");
  double quota = 0;
  double period = 0;
  if (!(quota_file >> quota) || !(period_file >> period) || quota <= 0 || period <= 0) {
    return kNoLimit;
  }
  return quota / period;
}

// A limit set on any enclosing group counts, so walk up to the root of the hierarchy.
template <class Quota>
double smallest_up_to_root(std::string group, Quota quota) {
  double smallest = kNoLimit;
  while (true) {
    while (!group.empty() && group.back() == '/') group.pop_back();
    smallest = std::min(smallest, quota(group));
    if (group.empty()) return smallest;
    group.resize(group.rfind('/') == std::string::npos ? 0 : group.rfind('/'));
  }
}

double group_quota() {
  // Lines are "id:controllers:path"; version 2 has an empty list of controllers.
  std::ifstream file("/proc/self/cgroup");
  double smallest = kNoLimit;
  for (std::string line; std::getline(file, line);) {
    const auto first = line.find(':');
    const auto second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    // With the colons around it, so that a name can be looked for with its separators.
    std::string controllers = line.substr(first, second - first + 1);
    std::replace(controllers.begin(), controllers.end(), ':', ',');
    const std::string group = line.substr(second + 1);
    if (controllers == ",,") {
      smallest = std::min(smallest, smallest_up_to_root(group, version2_quota));
    } else if (controllers.find(",cpu,") != std::string::npos) {
      smallest = std::min(smallest, smallest_up_to_root(group, version1_quota));
    }
  }
  return smallest;
}
#else
int affinity_processors() { return 0; }
double group_quota() { return kNoLimit; }
#endif

}  // namespace

int usable_processors() {
  int count = affinity_processors();
  if (count <= 0) count = static_cast<int>(std::thread::hardware_concurrency());
  count = std::max(count, 1);
  const double quota = std::ceil(group_quota());
  return quota < count ? std::max(1, static_cast<int>(quota)) : count;
}

}  // namespace pyattn

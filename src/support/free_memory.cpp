#include "support/free_memory.h"

#include <algorithm>
#include <fstream>
#include <string>

namespace hcsmoe {
namespace {

uint64_t number_in(const std::string& file) {
  std::ifstream in(file);
  uint64_t number = 0;
  return in >> number ? number : UINT64_MAX;  // "max", or there is no such file
}

}  // namespace

uint64_t free_memory() {
  uint64_t free = uint64_t{4} << 30;
  std::ifstream info("/proc/meminfo");
  for (std::string word; info >> word;) {
    if (word == "MemAvailable:" && info >> free) free <<= 10;
  }
  // In a container: what its limit leaves.
  const uint64_t limit = number_in("/sys/fs/cgroup/memory.max"), used = number_in("/sys/fs/cgroup/memory.current");
  return limit == UINT64_MAX || used == UINT64_MAX ? free : std::min(free, limit - std::min(limit, used));
}

}  // namespace hcsmoe

#pragma once
// Processor time of this process, in which other work on the machine counts for little.

#include <ctime>

namespace hcsmoe {

inline double processor_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace hcsmoe

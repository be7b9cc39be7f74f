#include "hcsmoe/device_link.h"

#include <thread>

#include "hcsmoe/error.h"

namespace hcsmoe {

void wait_for(DeviceLink& link, DeviceLink::Event& event, const std::string& what, std::chrono::milliseconds limit) {
  const auto start = std::chrono::steady_clock::now();
  try {
    for (int polls = 0; !event.done(); ++polls) {
      link.check();
      if (std::chrono::steady_clock::now() - start > limit) {
        throw Error(what + " has not come within " + std::to_string(limit.count() / 1000.0) + " s: another rank has ended, or hangs");
      }
      if (polls < 100) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(200));
      }
    }
    link.check();
  } catch (...) {
    link.abort();
    throw;
  }
}

}  // namespace hcsmoe

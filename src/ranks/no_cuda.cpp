// What stands for cuda_link.cpp in a build without CUDA.

#include "hcsmoe/device_link.h"
#include "hcsmoe/ranks.h"

namespace hcsmoe {

std::shared_ptr<DeviceLink> open_device(const Ranks& ranks) {
  ranks.on_root([] {
    throw UserError("device.type is cuda, but this program was built without CUDA",
                    "build it with CUDA: launch/build.sh --preset cuda; or set device.type: cpu");
  });
  return nullptr;
}

}  // namespace hcsmoe

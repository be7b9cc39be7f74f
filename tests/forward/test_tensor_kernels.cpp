#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include "forward/kernels.h"
#include "host_device.h"

namespace hcsmoe {
namespace {

TEST(HostDevice, Placeholder) {}

}  // namespace
}  // namespace hcsmoe

// What choose_kernels is in the programs that run on the test device: small blocks, so that tiny models have several.

#include "forward/kernels.h"
#include "host_device.h"

namespace hcsmoe {

void choose_kernels(Compute& compute) {
  compute.device = host_device;
  compute.kernels = &tensor_kernels();
  compute.row_block = 64;
  compute.routed_row_block = 32;
}

}  // namespace hcsmoe

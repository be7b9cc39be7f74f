#include "forward/kernels.h"

namespace hcsmoe {

void choose_kernels(Compute& compute) {
  if (compute.device.is_cpu()) return;  // the loops, and blocks that suit a core
  compute.kernels = &tensor_kernels();
  compute.row_block = 8192;  // large enough that a product fills a GPU
  compute.routed_row_block = 512;
}

}  // namespace hcsmoe

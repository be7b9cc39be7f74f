#include "forward/weights.h"

namespace hcsmoe {

at::Tensor Weights::get(const std::string& name, const std::string& slot, at::ScalarType dtype) {
  const at::Tensor stored = checkpoint_.tensor(name);
  if (stored.scalar_type() == dtype) return stored;
  at::Tensor converted = buffers_[slot].get(1, stored.numel(), dtype).view(stored.sizes());
  converted.copy_(stored);
  return converted;
}

}  // namespace hcsmoe

#include "forward/weights.h"

namespace hcsmoe {

at::Tensor Weights::convert(const at::Tensor& stored, const std::string& slot, at::ScalarType dtype) {
  if (stored.scalar_type() == dtype && stored.device() == device_) return stored;
  const Span span(trace_, Activity::copying, "weights to the type of computation");
  at::Tensor converted = buffers_[slot].get(1, stored.numel(), at::TensorOptions(dtype).device(device_)).view(stored.sizes());
  converted.copy_(stored);
  return converted;
}

}  // namespace hcsmoe

#pragma once
// A device for tests that need no hardware: a tensor on it is no CPU tensor, to libtorch and to us, though its memory is the host's. Taking
// its elements for host memory (support/host_data.h) is an error, and so is an operation on it and a tensor on the CPU, as on a GPU; so a
// run on it shows that no stage forgets where its tensors are. Operations run on the CPU, on views of the same memory.

#include <c10/core/Device.h>

namespace hcsmoe {

inline const c10::Device host_device{c10::DeviceType::PrivateUse1, 0};

}  // namespace hcsmoe

#pragma once
// The bytes in front of a safetensors file's data.

#include <string>
#include <vector>

#include "hcsmoe/assembly.h"

namespace hcsmoe {

/// Length and JSON, padded with blanks to a multiple of 8 bytes. The ranges of `tensors` are contiguous, wherever the first begins.
std::string safetensors_header(const std::vector<OutputTensor>& tensors);

}  // namespace hcsmoe

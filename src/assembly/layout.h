#pragma once
// The bytes in front of a safetensors file's data.

#include <string>
#include <vector>

#include "hcsmoe/assembly.h"

namespace hcsmoe {

/// Length and JSON, padded with blanks to a multiple of 8 bytes. The ranges of `tensors` are contiguous, wherever the first begins.
std::string safetensors_header(const std::vector<OutputTensor>& tensors);

/// Of the layers whose tensors an output with so many experts leaves out, "layer 61: why", ascending.
std::vector<std::string> left_out_layers(const Checkpoint&, const ModelDescription&, int64_t experts_kept);

}  // namespace hcsmoe

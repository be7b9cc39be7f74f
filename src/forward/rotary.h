#pragma once
// Rotary position embedding (arXiv 2104.09864), rotate-half form, with the scalings of families.h.

#include <ATen/core/Tensor.h>

#include "hcsmoe/families.h"

namespace hcsmoe {

/// cos and sin of position x frequency for positions 0 .. T-1, float32 [T, C/2] each. The arithmetic follows transformers' (float32
/// frequencies and angles), because at large positions the rounding of the angle is larger than what the logits may differ by.
struct RotaryTable {
  at::Tensor cos, sin;
};
RotaryTable rotary_table(const Rope& rope, int64_t head_size, int64_t positions);

/// Rotates one row of heads in place: x[h][c], x[h][c + C/2] for every head h, at one position.
void rotate(float* row, int64_t heads, int64_t head_size, const float* cos, const float* sin);

}  // namespace hcsmoe

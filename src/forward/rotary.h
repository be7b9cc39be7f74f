#pragma once
// Rotary position embedding (arXiv 2104.09864) with the scalings of families.h.

#include <ATen/core/Tensor.h>

#include "hcsmoe/families.h"

namespace hcsmoe {

/// cos and sin of position x frequency for positions 0 .. T-1, float32 [T, R/2] each, R the rotated channels of a head. The arithmetic
/// follows transformers' (float32 frequencies and angles), because at large positions the rounding of the angle is larger than what the
/// logits may differ by.
struct RotaryTable {
  at::Tensor cos, sin;
};
RotaryTable rotary_table(const Rope& rope, int64_t rotary_size, int64_t positions, at::Device device);

/// Rotates the first R channels of every head of one row in place, at one position: the pairs x[h][c], x[h][c + R/2], or, interleaved,
/// x[h][2c], x[h][2c + 1].
void rotate(float* row, int64_t heads, int64_t head_size, int64_t rotary_size, bool interleaved, const float* cos, const float* sin);

}  // namespace hcsmoe

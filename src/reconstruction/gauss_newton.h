#pragma once
// A step of an expert's gate and up projections towards what the block still misses: Gauss-Newton, with a few iterations of conjugate
// gradients on its normal equations. With V = [dG; dU] the changes of the two projections, gate value g, h = a(G x) * (U x) and a' the
// activation's derivative, the output changes by J V = D (g a'(G x) (U x) * (dG x) + g a(G x) * (dU x)). The preconditioner is the
// Kronecker product of S = [D^T D, repeated 2 x 2] * (q^T q), q = the two slopes side by side, and C = the second moment of x, both damped.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "hcsmoe/ranks.h"
#include "reconstruction/units.h"

namespace hcsmoe {

/// Units of which S is kept whole; more are cut into blocks, and S is block-diagonal.
inline constexpr int64_t most_units = 2048;

/// What the step is made of; all float32, training rows first. units must have slopes.
struct GaussNewtonTask {
  const Units& units;
  const at::Tensor& input;  // [rows padded, D]: of units.rows
  const at::Tensor& rest;   // [rows padded, D]: what the block misses of its target
  const at::Tensor& down;   // [D, F]
  double unit = 1;          // of squared outputs, a power of two: what is summed is divided by it
};

/// At most `iterations`. After each, try_step([2F, D] float32: dG above dU) says whether the step so far is better than the best until now;
/// it ends where it is not. Collective.
void gauss_newton(const GaussNewtonTask&, int iterations, const Ranks&, const std::function<bool(const at::Tensor& step)>& try_step);

}  // namespace hcsmoe

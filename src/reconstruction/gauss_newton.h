#pragma once
// A step of an expert's gate and up projections towards what the block still misses: one preconditioned Gauss-Newton step. With V = [dG;
// dU] the changes of the two projections, gate value g, h = a(G x) * (U x) and a' the activation's derivative, the output changes by J V =
// D (g a'(G x) (U x) * (dG x) + g a(G x) * (dU x)). The direction is S^-1 (J^T r) C^-1, where the Kronecker product of S = [D^T D, repeated
// 2 x 2] * (q^T q), q = the two slopes side by side, and C = sum g^2 x x^T / sum g^2 stands for J^T J, both damped. S, C and the step's
// length, the best there, are of a sample of the training tokens.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "hcsmoe/ranks.h"
#include "reconstruction/normal_equations.h"
#include "reconstruction/units.h"

namespace hcsmoe {

/// Units of which S is kept whole; more are cut into blocks, and S is block-diagonal.
inline constexpr int64_t most_units = 512;

/// Some training rows of an expert.
struct RowSample {
  std::vector<int32_t> rows;       // ascending
  std::vector<int64_t> group_end;  // of them
};

/// What is allocated for a step, kept from expert to expert.
struct StepBuffers {
  Buffer slopes, typed, rest, back, weighted, input, by_gate, by_up, change;
  GroupBuffers groups;
};

/// What the step is made of, training rows first. units must have slopes.
struct GaussNewtonTask {
  const Units& units;
  const at::Tensor& input;  // [rows padded, D], of units.rows, in the type of units.values
  const at::Tensor& rest;   // float32 [rows padded, D]: what the block misses of its target
  const at::Tensor& down;   // float32 [D, F]
  RowSample sample;         // of the training rows
  double unit = 1;          // of squared outputs, a power of two: what is summed is divided by it
};

/// float32 [2F, D], dG above dU; undefined where there is no step to make. Collective.
at::Tensor gauss_newton_step(const GaussNewtonTask&, StepBuffers&, const Ranks&);

}  // namespace hcsmoe

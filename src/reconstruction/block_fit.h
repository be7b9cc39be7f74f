#pragma once
// A compressed block while it is fitted: its experts and rows, and what they leave of the target on this rank's tokens.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "hcsmoe/reconstruction.h"
#include "reconstruction/gauss_newton.h"
#include "reconstruction/units.h"

namespace hcsmoe {

class BlockFit {
 public:
  /// rule: as the block's rows are routed (block_routing). The tokens and the ranks must outlive it. Collective, as all that follows.
  BlockFit(const BlockTokens&, const RoutingRule&, const SparseBlock&, const Compute&, const Ranks&);

  std::vector<ExpertWeights> experts;  // gate and up in the checkpoint's types
  std::vector<at::Tensor> down;        // float32 [D, F] each
  at::Tensor rows;                     // float32 [K, D], of values that the checkpoint's type can hold
  RoutingRule rule;                    // with the rows' correction biases, where the family has some
  double error = 0;                    // held-out |target - block|^2 / |target|^2

  /// Routes all tokens by these rows.
  void set_rows(const at::Tensor& rows);
  /// The same with these correction biases, if it lowers the held-out error. Returns the error that they give. Only held-out tokens are
  /// run.
  double try_rows(const at::Tensor& rows, const std::vector<float>& correction);
  /// Takes over what another fit of the same block has found, if it lowers the held-out error. Returns the error that it gives.
  double try_all(const BlockFit& other);

  /// One pass over the experts, each on what the others leave: a Gauss-Newton step for the gate and up projections, if asked for, then
  /// ridge least squares for the down projection. What does not lower the held-out error is undone.
  void fit_experts(bool gate_and_up);

 private:
  void set_unit();
  void set_residual();
  double held_out_error(const Routing&);
  double held_out_error(const at::Tensor& rest) const;  // of what is left on held_rows_
  void fit_expert(size_t k, bool gate_and_up);
  /// training: the expert's training tokens, of all ranks.
  bool fit_gate_up(size_t k, const Units& units, const at::Tensor& rest, int64_t training);
  void fit_down(size_t k, const Units& units, at::Tensor& rest);
  double held_out_square(const at::Tensor& rest, const at::Tensor& outputs) const;

  const BlockTokens& tokens_;
  const Ranks& ranks_;
  const at::ScalarType router_type_;
  Buffer typed_input_buffer_;
  const at::Tensor input_;  // [N, D] in the type of computation
  UnitsOfExperts units_of_, trial_units_of_;
  std::vector<int32_t> held_rows_;  // held-out tokens of this rank
  Routing routing_;
  at::Tensor residual_;  // float32 [N, D]: target - block; undefined where the routing has changed since
  Buffer rest_buffer_, input_buffer_, outputs_buffer_, step_buffer_, right_buffer_;
  StepBuffers step_buffers_;
  double unit_ = 1;             // a power of two near the largest |target|^2 of a token: what is summed is divided by it
  double held_out_target_ = 1;  // held-out |target|^2
};

}  // namespace hcsmoe

#pragma once
// Router rows of a compressed block: K rows that do what the members' E rows did.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "forward/products.h"
#include "hcsmoe/plan.h"
#include "hcsmoe/reconstruction.h"

namespace hcsmoe {

/// Block inputs that router rows are fitted on, in the groups of the training tokens.
struct RouterTokens {
  RouterTokens(const BlockTokens&);
  std::vector<int32_t> rows;       // training tokens, ascending
  std::vector<int64_t> group_end;  // of them
  at::Tensor input;                // float32 [padded, D]

 private:
  Buffer buffer_;
};

/// Rows [K, D] float64 by ridge least squares towards one logit a cluster, from `start` [K, D], which the ridge (1e-3 of the mean diagonal)
/// pulls to. Of softmax scores that is the log of the summed exponentials of the members' logits; of sigmoid scores the logit of
/// 1 - prod (1 - score), the probability that one member at least would fire. Experts in no cluster are left out. Collective.
at::Tensor rows_by_least_squares(const RouterTokens&, const at::Tensor& original, const LayerPlan&, const RoutingRule&,
                                 const at::Tensor& start, const Ranks&);

/// From `start`, L-BFGS on the cross entropy between the share of each cluster (the members' probabilities summed; where the routing rule
/// renormalises, their weights after top-k summed) and the softmax of the rows' logits, or their sigmoids over the sum of all sigmoids.
/// Sigmoid scores that are not renormalised have a binary cross entropy a cluster, from the probability of above. float64 [K, D].
/// Collective.
at::Tensor rows_by_cross_entropy(const RouterTokens&, const at::Tensor& original, const LayerPlan&, const RoutingRule&,
                                 const at::Tensor& start, const Ranks&);

/// Correction biases of K rows with sigmoid scores, with which, on the training tokens, each cluster is chosen in proportion to the tokens
/// that choose one of its members. `rule`: of the original, `kept`: of the rows, with the biases to start from. Empty where the router has
/// none. Collective.
std::vector<float> matched_biases(const RouterTokens&, const at::Tensor& original, const LayerPlan&, const RoutingRule& rule,
                                  const RoutingRule& kept, const at::Tensor& rows, const Ranks&);

}  // namespace hcsmoe

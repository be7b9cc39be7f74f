#pragma once
// Reconstruction: a compressed block is fitted, in closed form and on calibration tokens, to the outputs of the block it replaces. The down
// projections solve ridge least squares under the new router's gates; the router rows follow the members' logits and then the block's
// output error. A fifth of the calibration sequences is held out: it chooses the ridge and decides whether a step is kept, so a step never
// makes the block worse on text that it was not fitted to.
// Letters: N tokens of this rank, D hidden size, F intermediate size, E experts, K kept.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "hcsmoe/families.h"
#include "hcsmoe/forward.h"
#include "hcsmoe/plan.h"
#include "hcsmoe/ranks.h"

namespace hcsmoe {

/// Calibration sequences in groups, the unit in which they are dealt to ranks and in which products over tokens are summed: the same groups
/// on any number of ranks, and so the same bits.
struct TokenGroups {
  int64_t first_token = 0;        // of this rank's rows, counted through all sequences
  std::vector<int64_t> end;       // rows of this rank: group g is [end[g-1], end[g])
  std::vector<uint8_t> held_out;  // [N]: of every fifth sequence (of the last fifth of each, where there are fewer than five)
};
/// Sequences are dealt to the ranks in whole groups.
struct SequenceShare {
  int64_t first = 0, number = 0;  // of the calibration sequences
  TokenGroups groups;
};
SequenceShare deal_sequences(int64_t sequences, int64_t length, const Ranks&);

/// A block as this rank's tokens see it.
struct BlockTokens {
  at::Tensor input;   // float32 [N, D]
  at::Tensor target;  // float32 [N, D]: what the routed experts' sum is to be
  const TokenGroups& groups;
};

/// One step of the reconstruction of a block, kept or undone by its held-out error.
struct ReconstructionStep {
  std::string what;  // "router: members", "down projections", ...
  double error = 0;  // held-out |Y - block|^2 / |Y|^2 after it, as it would be if it were kept
  bool kept = false;
  double seconds = 0;
};
struct ReconstructionReport {
  int64_t layer = 0;
  double start_error = 0;  // of the merged block, held out, relative
  double error = 0;        // of the result
  std::vector<ReconstructionStep> steps;
};

/// What is fitted.
struct ReconstructionTask {
  const LayerPlan& plan;
  const RoutingRule& routing;
  at::Tensor router;     // [E, D]: the original's
  const Recipe& recipe;  // its router (fitted), reconstruction and rounds
};

/// Fits `block` (merged or pruned experts, K router rows, in the checkpoint's types) and rounds the result to those types. The same on
/// every rank. Collective.
SparseBlock reconstruct(const BlockTokens&, const ReconstructionTask&, SparseBlock block, const Compute&, const Ranks&,
                        ReconstructionReport&);

}  // namespace hcsmoe

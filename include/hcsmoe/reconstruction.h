#pragma once
// Reconstruction: a compressed block is fitted, in closed form and on calibration tokens, to the outputs of the block it replaces. The down
// projections solve ridge least squares under the new router's gates; the router rows follow the members' logits and then the block's
// output error. A fifth of the calibration sequences is held out: it chooses the ridge and decides whether a step is kept, so a step never
// makes the block worse on text that it was not fitted to.
// Letters: N tokens of this rank, D hidden size, F intermediate size, E experts, K kept.

#include <ATen/core/Tensor.h>

#include <algorithm>
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
  const RoutingRule& routing;  // of the layer, with its correction biases
  at::Tensor router;           // [E, D]: the original's
  const Recipe& recipe;        // its router (fitted), reconstruction and rounds
};

/// Fits `block` (merged or pruned experts, K router rows, in the checkpoint's types) and rounds the result to those types. The same on
/// every rank. Collective.
SparseBlock reconstruct(const BlockTokens&, const ReconstructionTask&, SparseBlock block, const Compute&, const Ranks&,
                        ReconstructionReport&);

/// Memory of a rank while a block is fitted, beyond what the layer sweep holds, in bytes. docs/reconstruction.md derives the terms.
struct ReconstructionSize {
  Reconstruction what = Reconstruction::full;
  bool fits_rows = false;      // compression.router: fitted
  bool propagate = false;      // compression.propagate: compressed
  bool several = false;        // candidates of method auto: the best block is kept beside the one that is fitted
  int64_t hidden = 0;          // D
  int64_t intermediate = 0;    // F
  int64_t kept = 0;            // K
  int64_t tokens = 0;          // N
  int64_t expert_tokens = 0;   // of the rank's, the most that are routed to one expert
  int64_t all_tokens = 0;      // calibration tokens of all ranks
  int weight_bytes = 2;        // of a weight in the checkpoint
  int compute_bytes = 2;       // of a value in the type of computation
  int ranks = 1, threads = 1;  // threads of the rank
};
struct ReconstructionMemory {
  double experts = 0;        // the block's weights
  double tokens = 0;         // [N, D] each
  double expert_tokens = 0;  // of the expert that is fitted
  double matrices = 0;       // of normal equations
  double output_grams = 0;   // of the router's output error; not at the same time as the two before
  double total() const { return experts + tokens + std::max(expert_tokens + matrices, output_grams); }
};
ReconstructionMemory reconstruction_memory(const ReconstructionSize&);

}  // namespace hcsmoe

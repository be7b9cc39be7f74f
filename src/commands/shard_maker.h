#pragma once
// From the plans of layers to their shards.

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <string>

#include "commands/background.h"
#include "commands/job.h"
#include "commands/resumption.h"
#include "hcsmoe/merging.h"
#include "hcsmoe/shards.h"

namespace hcsmoe {

/// Makes the shards of a plan's layers, in their order, where WORK has no valid ones: units aligned by all ranks together, blocks fitted to
/// the calibration tokens by all ranks together, and the owner of a layer writes in the background.
class ShardMaker {
 public:
  ShardMaker(Job&, const Compute&, const Recipe&, Background&);
  /// Of a recipe that propagates what compression does: the stream through the compressed layers, from where the resumption says.
  void begin_stream(const at::Tensor& ids, Resumption&);
  /// Passes by a layer that an earlier run has compressed. UserError: its shard is missing or damaged. Collective.
  void pass_by(const LayerRecord&);
  /// sample_input: of a recipe that aligns. pass: of a recipe that needs tokens; else it may be null. Collective. Returns what was done.
  LayerRecord make(const LayerPlan&, const at::Tensor& sample_input, const LayerPass* pass);
  /// Chooses between plans of one layer by the held-out error of their reconstructed blocks, and makes the shard of the best: all are
  /// ranked after the first steps, the best two are reconstructed in full. Returns it with the scores. Collective.
  LayerRecord make_best(const std::vector<LayerPlan>& candidates, const at::Tensor& sample_input, const LayerPass& pass);
  /// The stream through the compressed layers after this one, on the device; undefined where there is none.
  at::Tensor compressed_after(int64_t layer);
  /// Whether WORK holds the layer's shard; to be asked in the order of the layers. Collective.
  bool is_valid(const LayerPlan&, const at::Tensor& sample_input);

 private:
  /// What the layer's shard is made from.
  ShardOrigin origin_of(const LayerPlan&, const at::Tensor& sample_input);
  LayerUnits aligned(const LayerPlan&, const at::Tensor& sample_input) const;
  /// The layer's block input and target on this rank's tokens. To be asked once a layer.
  BlockTokens tokens_of(int64_t layer, const LayerPass&);
  SparseBlock reconstructed(const LayerPlan&, const at::Tensor& sample_input, const BlockTokens&, int64_t rounds, ReconstructionReport&);
  /// The layer's block is this one: written by its owner, and run by the compressed stream.
  LayerRecord finish(const LayerPlan&, const ShardOrigin&, bool write, SparseBlock, ReconstructionReport);

  Job& job_;
  const Compute compute_;
  const Recipe recipe_;
  Background& background_;
  std::string earlier_layers_;            // of the plan, where a block depends on them
  std::optional<LayerSweep> compressed_;  // the residual stream through the compressed layers (compression.propagate)
};

/// Whether WORK has valid shards of all layers. Collective.
bool shards_are_valid(Job&, const Plan&);
/// Makes the shards of a recipe that needs no tokens. Collective.
void write_shards(Job&, const Compute&, const Plan&);

}  // namespace hcsmoe

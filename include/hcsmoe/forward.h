#pragma once
// The layer sweep: the whole model passes over this rank's sequences one layer at a time, so that device memory holds a layer or two and
// the hidden states, whatever the depth of the model. Weights are used where the checkpoint file is mapped; only what must be converted to
// the type of computation is copied, one expert at a time, into buffers that are kept. Letters: N tokens of this rank, T tokens of one
// sequence, D hidden size, F intermediate size, E experts, k top-k, V vocabulary.
//
// The result of a row does not depend on which rank or thread computes it: attention works on one sequence at its own length, and every
// matrix product is made of blocks of one fixed number of rows, zero-padded (docs/architecture.md, "Exactness").

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "hcsmoe/checkpoint.h"
#include "hcsmoe/config.h"
#include "hcsmoe/families.h"
#include "hcsmoe/ranks.h"
#include "hcsmoe/statistics.h"

namespace hcsmoe {

/// How this rank computes. Residual stream, norms, router, softmax and all sums are float32 or better in either type.
struct Compute {
  at::ScalarType dtype = at::kFloat;  // of matrix products: float32 or bfloat16, accumulated in float32
  int threads = 1;
  int cores = 1;  // that this rank may run on
};
/// Resolves device.dtype and device.threads, the same type on every rank: `auto` is bfloat16 for a bfloat16 checkpoint where all ranks'
/// processors multiply bfloat16 in hardware, else float32. Sets libtorch's number of threads. Collective. UserError: device.type cuda.
Compute choose_compute(const DeviceConfig&, const Checkpoint&, const ModelDescription&, const Ranks&);
std::string dtype_name(const Compute&);  // "float32", "bfloat16"

struct StatisticsAccumulator;

/// What a sweep has done so far on this rank: floating point operations of its matrix products, and where its time went.
struct SweepFigures {
  double operations = 0;        // all products
  double block_operations = 0;  // of these, of sparse blocks: routers, routed and shared experts
  double block_seconds = 0;     // in sparse blocks
  double attention_seconds = 0;
};

class LayerSweep {
 public:
  /// sequences: int32 ids, each [T], this rank's share (may be none). The checkpoint and the description must outlive the sweep.
  LayerSweep(const Checkpoint&, const ModelDescription&, const Compute&, std::vector<at::Tensor> sequences);
  ~LayerSweep();
  LayerSweep(const LayerSweep&) = delete;

  /// Runs the next layer: attention, then the dense or sparse block. With statistics, every expert of a sparse block runs on all tokens,
  /// and sums are added to `statistics` (not cleared here).
  void run_layer(StatisticsAccumulator* statistics = nullptr);
  int64_t next_layer() const;
  int64_t tokens() const;
  const SweepFigures& figures() const;

  // After the last layer:
  /// Of each sequence, the sum over its tokens but the first of -log p(token | tokens before it), natural logarithm.
  std::vector<double> negative_log_likelihoods();
  /// float32 [T, V] a sequence. For small models: all of it is in memory.
  std::vector<at::Tensor> logits();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// output_sum of the accumulator's unit sums: down_e unit_sum[e] for every expert, in double. float64 [E, D]. Each rank computes a share of
/// the experts; the result is whole on rank 0 and undefined elsewhere. Collective.
at::Tensor expert_output_sums(const StatisticsAccumulator&, const Checkpoint&, const ModelDescription&, int64_t layer, const Ranks&);
/// The accumulator's sums as statistics (rank 0; others get an empty value). Collective.
ExpertStatistics finish_statistics(const StatisticsAccumulator&, const Checkpoint&, const ModelDescription&, int64_t layer, const Ranks&);

}  // namespace hcsmoe

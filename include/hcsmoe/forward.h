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
#include <functional>
#include <memory>
#include <vector>

#include "hcsmoe/checkpoint.h"
#include "hcsmoe/config.h"
#include "hcsmoe/families.h"
#include "hcsmoe/ranks.h"
#include "hcsmoe/statistics.h"
#include "hcsmoe/trace.h"
#include "hcsmoe/weight_stream.h"

namespace hcsmoe {

class Kernels;
const Kernels& loop_kernels();  // of the CPU (src/forward/kernels.h)

/// How this rank computes. Residual stream, norms, router, softmax and all sums are float32 or better in either type.
struct Compute {
  at::ScalarType dtype = at::kFloat;  // of matrix products: float32 or bfloat16, accumulated in float32
  int threads = 1;
  int cores = 1;            // that this rank may run on
  Trace* trace = nullptr;   // where its time goes; null: nobody asked
  uint64_t read_ahead = 0;  // bytes of weights on this node (StreamOptions)
  /// Where hidden states, sums and the weights in use are. What it computes with goes along: which kernels, and the rows of a product over
  /// all tokens and over the tokens of one expert, which are the same on every rank.
  at::Device device = at::kCPU;
  const Kernels* kernels = &loop_kernels();
  int64_t row_block = 512, routed_row_block = 128;

  at::TensorOptions type(at::ScalarType scalar) const { return at::TensorOptions(scalar).device(device); }
};
/// Resolves device.dtype and device.threads, the same type on every rank: `auto` is bfloat16 for a bfloat16 checkpoint where all ranks'
/// processors (or GPUs, for device.type cuda) multiply bfloat16 in hardware, else float32. Sets libtorch's number of threads. Collective.
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

/// Weights of one expert, in any floating type. gate, up [F, D], down [D, F].
struct ExpertWeights {
  at::Tensor gate, up, down;
};

/// A sparse block that runs in place of the checkpoint's: its routing rule (block_routing) over R router rows, which lead to K experts.
struct SparseBlock {
  at::Tensor router;                   // [R, D]
  std::vector<ExpertWeights> experts;  // K
  /// [R]: the expert of each row. Several rows may lead to one expert, whose weights for a token are then added up (the aliasing of
  /// HC-SMoE's own evaluation). Empty: row r leads to expert r, R = K.
  std::vector<int64_t> expert_of_row;
  at::Tensor correction_bias = {};  // [R]; undefined where the family has none
};
/// How a block's rows are routed, given the rule of the checkpoint's block of E experts: with the block's own correction biases, and
/// without groups where there are fewer rows than E, because a cluster may have members of several.
RoutingRule block_routing(const RoutingRule& original, int64_t experts, const SparseBlock&);

/// What is left of tokens after the last layer: normed rows, whose products with the output matrix are the logits. The checkpoint and the
/// description must outlive it.
struct FinalRows {
  at::Tensor rows;    // float32 [count, padded to whole blocks; D], on the device
  int64_t count = 0;  // of tokens
  const Checkpoint* checkpoint = nullptr;
  const ModelDescription* model = nullptr;
};
/// Logits of a block of rows and a chunk of the vocabulary: of rows row .. row+rows and entries first .. first+n. z[m], float32 [at least
/// rows, n] on the device, are model m's.
struct LogitsBlock {
  int64_t row, rows, first, n;
  const std::vector<at::Tensor>& z;
};
/// The vocabulary is walked in chunks, so that the logits of all tokens are never in memory; a row's chunks come in order, blocks of rows
/// concurrently. All models must have the same number of rows and one vocabulary.
void for_each_logits(const std::vector<const FinalRows*>& models, const Compute& compute,
                     const std::function<void(const LogitsBlock&)>& visit);

/// The weights of the model's layers from first_layer on, for one sweep of all ranks.
std::unique_ptr<WeightStream> layer_weights(const Checkpoint&, const ModelDescription&, const Compute&, const Ranks&,
                                            int64_t first_layer = 0);

/// Where a sweep begins that does not begin with the embedding: with the residual stream that layer `layer` reads. float32 [N, D].
struct SweepStart {
  int64_t layer = 0;
  at::Tensor hidden;
};

class LayerSweep {
 public:
  /// sequences: int32 ids, each [T], this rank's share (may be none). The checkpoint and the description must outlive the sweep. Without
  /// `weights`, as one process that shares the work with nobody. start: weights must begin with its layer too.
  LayerSweep(const Checkpoint&, const ModelDescription&, const Compute&, std::vector<at::Tensor> sequences,
             std::unique_ptr<WeightStream> weights = nullptr, const SweepStart& start = {});
  ~LayerSweep();
  LayerSweep(const LayerSweep&) = delete;

  /// Runs the next layer: begin_layer, then finish_layer.
  void run_layer(StatisticsAccumulator* statistics = nullptr, const SparseBlock* instead = nullptr);
  /// Attention, and of a sparse block its input and the shared expert; all of a dense block.
  void begin_layer();
  /// The routed experts of a sparse block: the checkpoint's, or `instead`. With statistics (of the checkpoint's block only), sums are added
  /// to them (not cleared here); if they hold unit_sum, every expert runs on all tokens.
  void finish_layer(StatisticsAccumulator* statistics = nullptr, const SparseBlock* instead = nullptr);
  int64_t next_layer() const;  // counts after finish_layer
  int64_t tokens() const;
  const SweepFigures& figures() const;

  // Views of the sweep's own buffers on the device, float32 [N, D]; a later layer overwrites them.
  /// What router and experts of a sparse block read: the normed rows. From begin_layer on.
  at::Tensor block_input() const;
  /// The sum of the routed experts' weighted outputs, without the shared expert. From finish_layer on.
  at::Tensor routed_output() const;
  /// The residual stream.
  at::Tensor hidden() const;

  // After the last layer:
  /// The given rows of the residual stream, after the final norm. Rows count over this rank's sequences, joined.
  FinalRows final_rows(const std::vector<int64_t>& rows) const;
  /// float32 [T, V] a sequence, on the CPU. For small models: all of it is in memory.
  std::vector<at::Tensor> logits() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// output_sum of the accumulator's unit sums: down_e unit_sum[e] for every expert, in double. float64 [E, D]. Each rank computes a share of
/// the experts; the result is whole on rank 0 and undefined elsewhere. Collective.
at::Tensor expert_output_sums(const StatisticsAccumulator&, const Checkpoint&, const ModelDescription&, int64_t layer, const Ranks&);
/// Adds the accumulator's sums to what else is known of the layer (statistics.layer), on rank 0. Without unit_sum there is no output_sum.
/// Collective.
ExpertStatistics finish_statistics(const StatisticsAccumulator&, ExpertStatistics, const Checkpoint&, const ModelDescription&,
                                   const Ranks&);

}  // namespace hcsmoe

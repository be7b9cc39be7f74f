#pragma once
// Merging: the experts and the router of a layer, made from a plan.
//
// The F intermediate units of an expert may stand in any order without a change of its function, and experts that were trained apart hold
// them in different orders. Merges that align therefore first decide which units of a cluster's members belong together (UnitMap), and
// average those. docs/methods.md, "Merges", says how each of them decides. Letters: D hidden size, F intermediate size, E experts, K
// clusters, S sampled tokens.

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "hcsmoe/checkpoint.h"
#include "hcsmoe/families.h"
#include "hcsmoe/forward.h"
#include "hcsmoe/plan.h"
#include "hcsmoe/ranks.h"

namespace hcsmoe {

/// Where a cluster's units go: [members][F], for each member, in the order of Cluster::members, the unit of the merged expert that each of
/// its units becomes part of. Empty: unit i of every member becomes unit i. Every merged unit has a part of some member that counts.
///
/// With a_m the weight of member m, unit u of the merged expert (gate row, up row, down column) is the mean of its parts: the sum of
/// a_m x unit (m, i) over them, divided by the sum of a_m. With one part of every member that is the plain weighted mean of aligned
/// members.
using UnitMap = std::vector<std::vector<int32_t>>;
/// One a cluster of the layer; empty: no cluster has one.
using LayerUnits = std::vector<UnitMap>;

/// Decides where the units of each cluster go, from their weights and their activations on sample_input, float32 [S, D], the same on every
/// rank. The work is dealt over ranks and threads; the result is the same on any number of them, and on every rank. Empty where the merge
/// does not align. UserError: no sample_input. Collective.
///
/// On 2 ranks, clusters {0 4 7} {1} {2 3 5}, three of dominant 4 and 2:   rank 0 matches (4 0) (4 7)   rank 1 matches (2 3) (2 5)
///   -> both have all four orders, and none for the cluster of one
LayerUnits align_layer(const Checkpoint&, const ModelDescription&, const LayerPlan&, Merge, const at::Tensor& sample_input, const Ranks&);

/// The most memory that align_layer takes on a rank, in bytes. Letters: S = sample.
double alignment_bytes(const ModelDescription&, Merge, int64_t sample, int threads);

/// Takes a merged tensor under its final name (expert numbers 0 .. K-1). `bytes` are valid only during the call.
using TensorSink =
    std::function<void(const std::string& name, const DType&, const std::vector<int64_t>& shape, std::span<const std::byte> bytes)>;

/// Router first, then its correction biases if there are, then experts in order: gate, up, down. Sums in float32 in the order of the
/// members, rounded once to the checkpoint's type; a cluster of one member that counts is copied byte for byte. One thread, one tensor in
/// memory at a time, the work on `device`: the result is the same bytes on any.
void merge_layer(const Checkpoint&, const ModelDescription&, const LayerPlan&, const TensorSink&, const LayerUnits& units = {},
                 at::Device device = at::kCPU);

/// Of these tensors the router and its correction biases, and those of expert k where the merge of its cluster does not align. On the CPU.
void merge_router(const Checkpoint&, const ModelDescription&, const LayerPlan&, const TensorSink&);
void merge_expert(const Checkpoint&, const ModelDescription&, const LayerPlan&, int64_t k, const TensorSink&);

/// The same tensors in memory, in the checkpoint's type: what runs in place of the layer's block (LayerSweep::finish_layer).
/// On the CPU.
SparseBlock merged_block(const Checkpoint&, const ModelDescription&, const LayerPlan&, const LayerUnits& units = {},
                         at::Device device = at::kCPU);

/// out[i] = round(sum_m weights[m] * members[m][i]), summed in order of m in float32. All of one floating type (F32, F16, BF16).
void weighted_mean(const DType&, const std::vector<std::span<const std::byte>>& members, const std::vector<double>& weights,
                   std::span<std::byte> out);

}  // namespace hcsmoe

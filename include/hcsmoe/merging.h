#pragma once
// Merging: the experts and the router of a layer, made from a plan. Each merged tensor is sum of weight x member in float32, rounded once
// to the checkpoint's type; a cluster of one is copied byte for byte. One thread, one tensor in memory at a time.

#include <cstddef>
#include <functional>
#include <span>
#include <string>

#include "hcsmoe/checkpoint.h"
#include "hcsmoe/families.h"
#include "hcsmoe/plan.h"

namespace hcsmoe {

/// Takes a merged tensor under its final name (expert numbers 0 .. K-1). `bytes` are valid only during the call.
using TensorSink =
    std::function<void(const std::string& name, const DType&, const std::vector<int64_t>& shape, std::span<const std::byte> bytes)>;

/// Router first, then experts in order: gate, up, down. The result does not depend on anything but the arguments.
void merge_layer(const Checkpoint&, const ModelDescription&, const LayerPlan&, const TensorSink&);

/// out[i] = round(sum_m weights[m] * members[m][i]), summed in order of m in float32. All of one floating type (F32, F16, BF16).
void weighted_mean(const DType&, const std::vector<std::span<const std::byte>>& members, const std::vector<double>& weights,
                   std::span<std::byte> out);

}  // namespace hcsmoe

#pragma once

#include "hcsmoe/forward.h"
#include "hcsmoe/merging.h"
#include "hcsmoe/plan.h"

namespace hcsmoe {

/// A layer's sparse block as its plan makes it: the tensors that merging would write. With RouterMerge::alias the router keeps the row of
/// every expert that is in a cluster, and these rows lead to the clusters' experts.
SparseBlock compressed_block(const Checkpoint&, const ModelDescription&, const LayerPlan&, RouterMerge, const LayerUnits& units = {},
                             at::Device device = at::kCPU);

}  // namespace hcsmoe

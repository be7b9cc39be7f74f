#include "plan/cluster_weights.h"
#include "plan/keep.h"
#include "plan/methods/methods.h"

namespace hcsmoe {

LayerPlan plan_f_prune(const PlanInput& input) { return keep_highest(input, routed_counts(input.statistics)); }

}  // namespace hcsmoe

#include "plan/cluster_weights.h"
#include "plan/keep.h"
#include "plan/methods/methods.h"

namespace hcsmoe {

LayerPlan plan_f_prune(const ExpertStatistics& statistics, const Recipe& recipe, int64_t clusters) {
  return keep_highest(statistics, recipe, clusters, routed_counts(statistics));
}

}  // namespace hcsmoe

#include "plan/expert_values.h"
#include "plan/keep.h"
#include "plan/methods/methods.h"

namespace hcsmoe {

LayerPlan plan_s_prune(const ExpertStatistics& statistics, const Recipe& recipe, int64_t clusters) {
  return keep_highest(statistics, recipe, clusters,
                      expert_values(statistics, statistics.router_probability_sum, "router_probability_sum", statistics.experts));
}

}  // namespace hcsmoe

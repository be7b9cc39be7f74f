#include "plan/expert_values.h"
#include "plan/keep.h"
#include "plan/methods/methods.h"

namespace hcsmoe {

LayerPlan plan_s_prune(const PlanInput& input) {
  const ExpertStatistics& statistics = input.statistics;
  return keep_highest(input, expert_values(statistics, statistics.router_probability_sum, "router_probability_sum", statistics.experts));
}

}  // namespace hcsmoe

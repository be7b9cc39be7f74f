#include "plan/expert_values.h"
#include "plan/keep.h"
#include "plan/methods/methods.h"

namespace hcsmoe {

LayerPlan plan_ean(const PlanInput& input) {
  const ExpertStatistics& statistics = input.statistics;
  return keep_highest(input, expert_values(statistics, statistics.routed_output_norm_sum, "routed_output_norm_sum", statistics.experts));
}

}  // namespace hcsmoe

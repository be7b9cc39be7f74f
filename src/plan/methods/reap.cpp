#include "plan/expert_values.h"
#include "plan/keep.h"
#include "plan/methods/methods.h"

namespace hcsmoe {

LayerPlan plan_reap(const PlanInput& input) {
  const ExpertStatistics& statistics = input.statistics;
  const auto sums = expert_values(statistics, statistics.weighted_output_norm_sum, "weighted_output_norm_sum", statistics.experts);
  const std::vector<double> scores = mean_over_routed(statistics, sums);
  return keep_highest(input, std::span<const double>(scores));
}

}  // namespace hcsmoe

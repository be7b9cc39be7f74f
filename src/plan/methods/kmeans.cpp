#include "plan/centres.h"
#include "plan/expert_values.h"
#include "plan/keep.h"
#include "plan/methods/methods.h"

namespace hcsmoe {

LayerPlan plan_kmeans(const PlanInput& input) {
  const Points points = mean_output_points(input);
  return cluster_rest(input, [&](const std::vector<int64_t>& experts, int64_t K) {
    const std::vector<double> rows = points.rows_of(experts);
    return kmeans(rows, static_cast<int64_t>(experts.size()), points.columns, first_centres(input, rows, experts, K), input.recipe.metric);
  });
}

}  // namespace hcsmoe

#include "plan/feature_distances.h"
#include "plan/methods/methods.h"

namespace hcsmoe {

LayerPlan plan_hc_smoe(const PlanInput& input) {
  return agglomerate(input, feature_distances(input.statistics, input.recipe), input.recipe.linkage);
}

}  // namespace hcsmoe

#include "plan/draws.h"
#include "plan/keep.h"
#include "plan/methods/methods.h"

namespace hcsmoe {

LayerPlan plan_random(const PlanInput& input) {
  const std::vector<uint64_t> draws = expert_draws(input.recipe.seed, input.statistics.layer, input.statistics.experts);
  return keep_highest(input, std::span<const uint64_t>(draws));
}

}  // namespace hcsmoe

#include "plan/draws.h"
#include "plan/keep.h"
#include "plan/methods/methods.h"

namespace hcsmoe {

LayerPlan plan_random(const ExpertStatistics& statistics, const Recipe& recipe, int64_t clusters) {
  const std::vector<uint64_t> draws = expert_draws(recipe.seed, statistics.layer, statistics.experts);
  return keep_highest(statistics, recipe, clusters, std::span<const uint64_t>(draws));
}

}  // namespace hcsmoe

#include "hcsmoe/error.h"
#include "plan/methods/methods.h"

namespace hcsmoe {

std::vector<Recipe> auto_candidates(const Recipe& recipe) {
  std::vector<Recipe> candidates;
  const auto add = [&](const std::string& method, Feature feature, Linkage linkage) {
    Recipe candidate = recipe;
    candidate.method = method;
    candidate.feature = feature;
    candidate.linkage = linkage;
    candidates.push_back(candidate);
  };
  add("hc-smoe", Feature::expert_output, Linkage::ward);
  add("hc-smoe", Feature::router_logits, Linkage::average);
  add("reap", Feature::expert_output, Linkage::average);
  add("s-prune", Feature::expert_output, Linkage::average);
  return candidates;
}

std::string candidate_name(const Recipe& recipe) {
  if (recipe.method != "hc-smoe") return recipe.method;
  return recipe.method + ", " + to_string(recipe.feature) + ", " + to_string(recipe.linkage);
}

LayerPlan plan_auto(const PlanInput& input) {
  throw UserError("layer " + std::to_string(input.statistics.layer) +
                      ": method auto chooses between plans by the error of their reconstructed blocks on calibration tokens, which a plan "
                      "from statistics alone does not see",
                  "use `hcsmoe_dist run`, or name a method in compression.method");
}

}  // namespace hcsmoe

#include "plan/methods/methods.h"

#include <algorithm>
#include <string>

#include "hcsmoe/error.h"

namespace hcsmoe {

const std::vector<PlanMethod>& plan_methods() {
  static const std::vector<PlanMethod> methods = {
      {"hc-smoe", plan_hc_smoe}, {"kmeans", plan_kmeans}, {"m-smoe", plan_m_smoe}, {"f-prune", plan_f_prune},
      {"s-prune", plan_s_prune}, {"reap", plan_reap},     {"ean", plan_ean},       {"random", plan_random},
  };
  return methods;
}

LayerPlan plan_layer(const ExpertStatistics& statistics, const Recipe& recipe) {
  const auto& methods = plan_methods();
  const auto method = std::find_if(methods.begin(), methods.end(), [&](const PlanMethod& m) { return m.name == recipe.method; });
  if (method == methods.end()) {
    std::string names;
    for (const PlanMethod& m : methods) names += (names.empty() ? "" : ", ") + m.name;
    throw UserError("unknown method \"" + recipe.method + "\"", "compression.method is one of: " + names);
  }
  // A recipe that was not read from a file may ask for nothing, which resolve() would take for one expert.
  const bool nothing = recipe.experts.count < 0 || (recipe.experts.count == 0 && !(recipe.experts.share > 0));
  const int64_t clusters = nothing ? recipe.experts.count : recipe.experts.resolve(statistics.experts);
  if (clusters < 1 || clusters > statistics.experts) {
    throw UserError("layer " + std::to_string(statistics.layer) + " has " + std::to_string(statistics.experts) +
                        " experts: " + std::to_string(clusters) + " cannot be kept",
                    "set compression.experts to a number from 1 to " + std::to_string(statistics.experts) + ", or to a share such as 0.5");
  }
  return method->plan(statistics, recipe, clusters);
}

}  // namespace hcsmoe

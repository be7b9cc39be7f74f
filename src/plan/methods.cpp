#include "plan/methods/methods.h"

#include <algorithm>
#include <string>

#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

StatisticSet needs_of(Feature feature) {
  switch (feature) {
    case Feature::expert_output:
      return {Statistic::output_sum};
    case Feature::expert_output_tokens:
      return {Statistic::token_output_gram};
    case Feature::router_logits:
      return {};
    case Feature::weight:
      return {Statistic::weight_gram};
    case Feature::cka:
      return {Statistic::output_cka};
    case Feature::weight_cka:
      return {Statistic::weight_cka};
  }
  throw Error("unknown feature");
}

const PlanMethod& plan_method(const std::string& name) {
  const auto& methods = plan_methods();
  const auto method = std::find_if(methods.begin(), methods.end(), [&](const PlanMethod& m) { return m.name == name; });
  if (method != methods.end()) return *method;
  std::string names;
  for (const PlanMethod& m : methods) names += (names.empty() ? "" : ", ") + m.name;
  throw UserError("unknown method \"" + name + "\"", "compression.method is one of: " + names);
}

}  // namespace

const std::vector<PlanMethod>& plan_methods() {
  static const std::vector<PlanMethod> methods = {
      {"auto", plan_auto},
      {"hc-smoe", plan_hc_smoe},
      {"kmeans", plan_kmeans},
      {"fuzzy-cmeans", plan_fuzzy_cmeans},
      {"m-smoe", plan_m_smoe},
      {"dek", plan_dek},
      {"f-prune", plan_f_prune},
      {"s-prune", plan_s_prune},
      {"o-prune", plan_o_prune, {Statistic::token_output_gram}},
      {"reap", plan_reap},
      {"ean", plan_ean},
      {"random", plan_random},
  };
  return methods;
}

StatisticSet statistics_needed(const Recipe& recipe) {
  StatisticSet needs = plan_method(recipe.method).needs;
  if (recipe.method == "auto") {
    for (const Recipe& candidate : auto_candidates(recipe)) needs |= statistics_needed(candidate);
  }
  if (!method_named(recipe.method).features.empty()) needs |= needs_of(recipe.feature);
  if (aligns(recipe.merge)) needs |= {Statistic::sample_input};
  return needs;
}

LayerPlan plan_layer(const ExpertStatistics& statistics, const Recipe& recipe, const RoutingRule& routing) {
  const PlanMethod& method = plan_method(recipe.method);
  const StatisticSet missing = statistics_needed(recipe).without(collected(statistics));
  if (!missing.empty()) {
    throw UserError(
        "the statistics of layer " + std::to_string(statistics.layer) + " have no " + missing.names() + ", which method " + recipe.method +
            " with merge " + to_string(recipe.merge) + " needs",
        "collect them with the same compression settings: hcsmoe_dist collect CONFIG; or all: hcsmoe_dist collect CONFIG --all");
  }
  // A recipe that was not read from a file may ask for nothing, which resolve() would take for one expert.
  const bool nothing = recipe.experts.count < 0 || (recipe.experts.count == 0 && !(recipe.experts.share > 0));
  const int64_t clusters = nothing ? recipe.experts.count : recipe.experts.resolve(statistics.experts);
  if (clusters < 1 || clusters > statistics.experts) {
    throw UserError("layer " + std::to_string(statistics.layer) + " has " + std::to_string(statistics.experts) +
                        " experts: " + std::to_string(clusters) + " cannot be kept",
                    "set compression.experts to a number from 1 to " + std::to_string(statistics.experts) + ", or to a share such as 0.5");
  }
  return method.plan({statistics, recipe, routing, clusters});
}

}  // namespace hcsmoe

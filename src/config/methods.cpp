#include <algorithm>

#include "hcsmoe/config.h"
#include "hcsmoe/error.h"

namespace hcsmoe {

const std::vector<Method>& methods() {
  using enum Feature;
  static const std::vector<Method> all = {
      {.name = "auto",
       .merge = Merge::frequency_aligned,
       .router = RouterMerge::fitted,
       .reconstruction = Reconstruction::full,
       .propagate = Propagate::compressed,
       .rounds = 3},
      {.name = "hc-smoe",
       .features = {expert_output, expert_output_tokens, router_logits, weight, cka, weight_cka},
       .metric = true,
       .linkage = true,
       .max_cluster_size = true},
      {.name = "kmeans", .features = {expert_output}, .metric = true, .init = true},
      {.name = "fuzzy-cmeans", .features = {expert_output}, .metric = true, .init = true, .merge_and_router = false},
      {.name = "m-smoe"},
      {.name = "dek", .features = {cka, weight_cka}, .max_cluster_size = true, .merge = Merge::average, .router = RouterMerge::average},
      {.name = "f-prune"},
      {.name = "s-prune"},
      {.name = "o-prune", .candidates = true},
      {.name = "reap"},
      {.name = "ean"},
      {.name = "random"},
  };
  return all;
}

const Method& method_named(const std::string& name) {
  const auto method = std::find_if(methods().begin(), methods().end(), [&](const Method& m) { return m.name == name; });
  if (method == methods().end()) throw Error("there is no method " + name);
  return *method;
}

Recipe default_recipe(const std::string& name) {
  const Method& method = method_named(name);
  Recipe recipe;
  recipe.method = name;
  if (!method.features.empty()) recipe.feature = method.features.front();
  recipe.merge = method.merge;
  recipe.router = method.router;
  recipe.reconstruction = method.reconstruction;
  recipe.propagate = method.propagate;
  recipe.rounds = method.rounds;
  return recipe;
}

bool has_metric(Feature feature) { return feature != Feature::cka && feature != Feature::weight_cka; }

bool needs_tokens(const Recipe& recipe) { return recipe.router == RouterMerge::fitted || recipe.reconstruction != Reconstruction::none; }
bool aligns(Merge merge) {
  return merge == Merge::frequency_aligned || merge == Merge::average_aligned || merge == Merge::fix_dominant || merge == Merge::zipit;
}

}  // namespace hcsmoe

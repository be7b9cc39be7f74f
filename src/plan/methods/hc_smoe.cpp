#include <string>

#include "hcsmoe/error.h"
#include "plan/cluster_weights.h"
#include "plan/expert_values.h"
#include "plan/keep.h"
#include "plan/methods/methods.h"

namespace hcsmoe {
namespace {

/// Of all pairs of the layer's experts, condensed.
std::vector<double> distances(const ExpertStatistics& statistics, const Recipe& recipe) {
  switch (recipe.feature) {
    case Feature::expert_output: {
      const std::vector<double> features = mean_outputs(statistics);
      const int64_t E = statistics.experts;
      return pairwise_distances(features, E, static_cast<int64_t>(features.size()) / E, recipe.metric);
    }
    case Feature::router_logits:
      return logit_distances(statistics, recipe.metric);
  }
  throw Error("unknown feature");
}

/// The part of condensed distances that is between these experts.
std::vector<double> distances_between(const std::vector<double>& condensed, int64_t E, const std::vector<int64_t>& experts) {
  std::vector<double> part;
  for (size_t i = 0; i < experts.size(); i++) {
    for (size_t j = i + 1; j < experts.size(); j++) {
      part.push_back(condensed[experts[i] * E - experts[i] * (experts[i] + 1) / 2 + experts[j] - experts[i] - 1]);
    }
  }
  return part;
}

}  // namespace

LayerPlan plan_hc_smoe(const ExpertStatistics& statistics, const Recipe& recipe, int64_t clusters) {
  const int64_t E = statistics.experts, cap = recipe.max_cluster_size;
  const std::vector<double> condensed = distances(statistics, recipe);
  Tree tree;  // stays empty where not all experts take part: its cuts would not be cuts of the layer
  LayerPlan plan = cluster_rest(statistics, recipe, clusters, [&](const std::vector<int64_t>& experts, int64_t K) {
    const auto R = static_cast<int64_t>(experts.size());
    const std::vector<double> part = distances_between(condensed, E, experts);
    if (cap > 0 && K * cap < R) {
      throw UserError("layer " + std::to_string(statistics.layer) + ": " + std::to_string(R) + " experts do not fit in " +
                          std::to_string(K) + " clusters of at most " + std::to_string(cap),
                      "set compression.max_cluster_size to " + std::to_string((R + K - 1) / K) +
                          " or more, or to 0 for no limit, or keep more experts (compression.experts)");
    }
    if (cap > 0) return capped_clusters(part, R, recipe.linkage, K, cap);
    Tree found = linkage_tree(part, R, recipe.linkage);
    auto result = cut_tree(found, R, K);
    if (R == E) tree = std::move(found);
    return result;
  });
  plan.tree = std::move(tree);
  return plan;
}

}  // namespace hcsmoe

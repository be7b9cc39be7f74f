#include "plan/feature_distances.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "hcsmoe/error.h"
#include "plan/expert_values.h"
#include "plan/keep.h"

namespace hcsmoe {
namespace {

/// Of vectors of which only the products are known. gram: [E, E].
std::vector<double> distances_of_gram(std::span<const double> gram, int64_t E, Metric metric) {
  std::vector<double> condensed;
  for (int64_t e = 0; e < E; e++) {
    for (int64_t f = e + 1; f < E; f++) {
      const double own = gram[e * E + e], other = gram[f * E + f], product = gram[e * E + f];
      condensed.push_back(metric == Metric::cosine ? std::clamp(1 - cosine(own, other, product), 0.0, 2.0)
                                                   : std::sqrt(std::max(0.0, own + other - 2 * product)));
    }
  }
  return condensed;
}

/// 1 - CKA.
std::vector<double> distances_of_similarity(std::span<const double> cka, int64_t E) {
  std::vector<double> condensed;
  for (int64_t e = 0; e < E; e++) {
    for (int64_t f = e + 1; f < E; f++) condensed.push_back(std::clamp(1 - cka[e * E + f], 0.0, 1.0));
  }
  return condensed;
}

/// The part of condensed distances that is between these experts.
std::vector<double> distances_between(std::span<const double> condensed, int64_t E, const std::vector<int64_t>& experts) {
  std::vector<double> part;
  for (size_t i = 0; i < experts.size(); i++) {
    for (size_t j = i + 1; j < experts.size(); j++) {
      part.push_back(condensed[experts[i] * E - experts[i] * (experts[i] + 1) / 2 + experts[j] - experts[i] - 1]);
    }
  }
  return part;
}

}  // namespace

std::vector<double> feature_distances(const ExpertStatistics& statistics, const Recipe& recipe) {
  const int64_t E = statistics.experts;
  const auto matrix = [&](const at::Tensor& tensor, const std::string& name) { return expert_values(statistics, tensor, name, E * E); };
  switch (recipe.feature) {
    case Feature::expert_output: {
      const std::vector<double> features = mean_outputs(statistics);
      return pairwise_distances(features, E, static_cast<int64_t>(features.size()) / E, recipe.metric);
    }
    case Feature::expert_output_tokens:
      return distances_of_gram(sampled_output_gram(statistics), E, recipe.metric);
    case Feature::router_logits:
      return distances_of_gram(matrix(statistics.router_logit_gram, "router_logit_gram"), E, recipe.metric);
    case Feature::weight:
      return distances_of_gram(matrix(statistics.weight_gram, "weight_gram"), E, recipe.metric);
    case Feature::cka:
      return distances_of_similarity(matrix(statistics.output_cka, "output_cka"), E);
    case Feature::weight_cka:
      return distances_of_similarity(matrix(statistics.weight_cka, "weight_cka"), E);
  }
  throw Error("unknown feature");
}

LayerPlan agglomerate(const PlanInput& input, std::span<const double> condensed, Linkage linkage) {
  const int64_t E = input.statistics.experts, cap = input.recipe.max_cluster_size;
  Tree tree;  // stays empty where not all experts take part: its cuts would not be cuts of the layer
  LayerPlan plan = cluster_rest(input, [&](const std::vector<int64_t>& experts, int64_t K) {
    const auto R = static_cast<int64_t>(experts.size());
    const std::vector<double> part = distances_between(condensed, E, experts);
    if (cap > 0 && K * cap < R) {
      throw UserError("layer " + std::to_string(input.statistics.layer) + ": " + std::to_string(R) + " experts do not fit in " +
                          std::to_string(K) + " clusters of at most " + std::to_string(cap),
                      "set compression.max_cluster_size to " + std::to_string((R + K - 1) / K) +
                          " or more, or to 0 for no limit, or keep more experts (compression.experts)");
    }
    if (cap > 0) return capped_clusters(part, R, linkage, K, cap);
    Tree found = linkage_tree(part, R, linkage);
    auto result = cut_tree(found, R, K);
    if (R == E) tree = std::move(found);
    return result;
  });
  plan.tree = std::move(tree);
  return plan;
}

}  // namespace hcsmoe

#include <cmath>
#include <string>
#include <vector>

#include "hcsmoe/error.h"
#include "plan/cluster_weights.h"
#include "plan/methods/methods.h"

namespace hcsmoe {
namespace {

/// The mean output of each expert over all calibration tokens: [E, D].
std::vector<double> mean_outputs(const ExpertStatistics& statistics) {
  const std::string layer = "layer " + std::to_string(statistics.layer);
  const at::Tensor& sum = statistics.output_sum;
  if (!sum.defined() || sum.scalar_type() != at::kDouble || sum.dim() != 2 || sum.size(0) != statistics.experts || !sum.is_contiguous()) {
    throw UserError("the statistics of " + layer + " have no output_sum, which hc-smoe clusters by", "collect them again");
  }
  if (statistics.tokens < 1) throw UserError("the statistics of " + layer + " are of no tokens", "collect them again");
  const double* values = sum.const_data_ptr<double>();
  std::vector<double> features(values, values + sum.numel());
  for (double& x : features) x /= static_cast<double>(statistics.tokens);
  for (size_t i = 0; i < features.size(); i++) {
    if (!std::isfinite(features[i])) {
      throw UserError(layer + ": the mean output of expert " + std::to_string(static_cast<int64_t>(i) / sum.size(1)) + " is not finite",
                      "look for inf or nan in the checkpoint's weights of this layer, or compute in float32 (device.dtype)");
    }
  }
  return features;
}

}  // namespace

LayerPlan plan_hc_smoe(const ExpertStatistics& statistics, const Recipe& recipe, int64_t clusters) {
  const std::vector<double> features = mean_outputs(statistics);
  const std::span<const int64_t> counts = routed_counts(statistics);
  const int64_t E = statistics.experts;
  LayerPlan plan;
  plan.layer = statistics.layer;
  plan.experts = E;
  plan.tree = linkage_tree(pairwise_distances(features, E, static_cast<int64_t>(features.size()) / E, recipe.metric), E, recipe.linkage);
  for (auto& members : cut_tree(plan.tree, E, clusters)) {
    plan.clusters.push_back(weighted_cluster(std::move(members), counts, recipe.merge, recipe.router));
  }
  return plan;
}

}  // namespace hcsmoe

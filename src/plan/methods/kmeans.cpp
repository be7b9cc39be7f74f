#include "hcsmoe/error.h"
#include "plan/draws.h"
#include "plan/expert_values.h"
#include "plan/keep.h"
#include "plan/methods/methods.h"

namespace hcsmoe {
namespace {

/// Positions in `experts` of those whose draws are highest, ascending.
std::vector<int64_t> drawn(const ExpertStatistics& statistics, uint64_t seed, const std::vector<int64_t>& experts, int64_t count) {
  const std::vector<uint64_t> draws = expert_draws(seed, statistics.layer, statistics.experts);
  std::vector<int64_t> chosen = highest(std::span<const uint64_t>(draws), experts, count);
  for (int64_t& expert : chosen) expert = std::lower_bound(experts.begin(), experts.end(), expert) - experts.begin();
  return chosen;
}

}  // namespace

LayerPlan plan_kmeans(const ExpertStatistics& statistics, const Recipe& recipe, int64_t clusters) {
  if (recipe.feature != Feature::expert_output) {
    throw UserError("kmeans cannot use the feature " + to_string(recipe.feature) + ": it needs coordinates, not distances",
                    "kmeans takes the feature expert_output; " + to_string(recipe.feature) + " goes with hc-smoe");
  }
  const std::vector<double> features = mean_outputs(statistics);
  const int64_t D = static_cast<int64_t>(features.size()) / statistics.experts;
  return cluster_rest(statistics, recipe, clusters, [&](const std::vector<int64_t>& experts, int64_t K) {
    std::vector<double> rows;
    for (const int64_t e : experts) rows.insert(rows.end(), features.begin() + e * D, features.begin() + (e + 1) * D);
    const auto R = static_cast<int64_t>(experts.size());
    std::vector<int64_t> first =
        recipe.init == Init::random ? drawn(statistics, recipe.seed, experts, K) : farthest_first(rows, R, D, K, recipe.metric);
    return kmeans(rows, R, D, std::move(first), recipe.metric);
  });
}

}  // namespace hcsmoe

#include "plan/centres.h"

#include "hcsmoe/error.h"
#include "plan/draws.h"
#include "plan/expert_values.h"
#include "plan/keep.h"

namespace hcsmoe {

std::vector<double> Points::rows_of(const std::vector<int64_t>& experts) const {
  std::vector<double> rows;
  for (const int64_t e : experts) rows.insert(rows.end(), values.begin() + e * columns, values.begin() + (e + 1) * columns);
  return rows;
}

Points mean_output_points(const PlanInput& input) {
  const Recipe& recipe = input.recipe;
  if (recipe.feature != Feature::expert_output) {
    throw UserError(recipe.method + " cannot use the feature " + to_string(recipe.feature) + ": it needs coordinates, not distances",
                    recipe.method + " takes the feature expert_output; " + to_string(recipe.feature) + " goes with hc-smoe");
  }
  Points points{mean_outputs(input.statistics), 0};
  points.columns = static_cast<int64_t>(points.values.size()) / input.statistics.experts;
  return points;
}

std::vector<int64_t> first_centres(const PlanInput& input, std::span<const double> rows, const std::vector<int64_t>& experts,
                                   int64_t clusters) {
  const auto R = static_cast<int64_t>(experts.size());
  if (input.recipe.init == Init::farthest) {
    return farthest_first(rows, R, static_cast<int64_t>(rows.size()) / R, clusters, input.recipe.metric);
  }
  const std::vector<uint64_t> draws = expert_draws(input.recipe.seed, input.statistics.layer, input.statistics.experts);
  std::vector<int64_t> chosen = highest(std::span<const uint64_t>(draws), experts, clusters);
  for (int64_t& expert : chosen) expert = std::lower_bound(experts.begin(), experts.end(), expert) - experts.begin();
  return chosen;
}

}  // namespace hcsmoe

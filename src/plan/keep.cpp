#include "plan/keep.h"

#include <numeric>

#include "hcsmoe/error.h"
#include "plan/cluster_weights.h"
#include "plan/expert_values.h"

namespace hcsmoe {
namespace {

std::vector<int64_t> all_experts(const ExpertStatistics& statistics) {
  std::vector<int64_t> all(static_cast<size_t>(statistics.experts));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

}  // namespace

std::vector<int64_t> protected_experts(const ExpertStatistics& statistics, const Protect& protect) {
  const int64_t E = statistics.experts;
  const std::string layer = "layer " + std::to_string(statistics.layer);
  for (const int64_t expert : protect.experts) {
    if (expert >= 0 && expert < E) continue;
    throw UserError(layer + " has no expert " + std::to_string(expert) + " to protect",
                    "compression.protect lists experts from 0 to " + std::to_string(E - 1));
  }
  if (protect.top == 0) return protect.experts;
  if (protect.top > E) {
    throw UserError(layer + " has " + std::to_string(E) + " experts: " + std::to_string(protect.top) + " cannot be protected",
                    "set compression.protect.top to a number below compression.experts");
  }
  const auto norms = mean_over_routed(
      statistics, expert_values(statistics, statistics.routed_output_norm_sum, "routed_output_norm_sum", statistics.experts));
  return highest(std::span<const double>(norms), all_experts(statistics), protect.top);
}

Division divide(const PlanInput& input, bool merges) {
  const ExpertStatistics& statistics = input.statistics;
  const int64_t clusters = input.clusters;
  Division division;
  division.kept = protected_experts(statistics, input.recipe.protect);
  const std::vector<int64_t> all = all_experts(statistics);
  std::set_difference(all.begin(), all.end(), division.kept.begin(), division.kept.end(), std::back_inserter(division.rest));
  const auto alone = static_cast<int64_t>(division.kept.size());
  division.clusters = clusters - alone;
  if (division.clusters < 0 || (merges && division.clusters == 0 && !division.rest.empty())) {
    throw UserError("layer " + std::to_string(statistics.layer) + ": " + std::to_string(clusters) + " experts are to be kept, and " +
                        std::to_string(alone) + " are protected" +
                        (division.clusters < 0 ? "" : ", which leaves none for the other " + std::to_string(division.rest.size())),
                    "keep more experts (compression.experts), or protect fewer (compression.protect)");
  }
  return division;
}

LayerPlan plan_of_kept(const ExpertStatistics& statistics, const std::vector<int64_t>& kept) {
  LayerPlan plan;
  plan.layer = statistics.layer;
  plan.experts = statistics.experts;
  for (const int64_t expert : kept) plan.clusters.push_back({{expert}, {1}, {1}, expert});
  const std::vector<int64_t> all = all_experts(statistics);
  std::set_difference(all.begin(), all.end(), kept.begin(), kept.end(), std::back_inserter(plan.dropped));
  return plan;
}

LayerPlan cluster_rest(const PlanInput& input,
                       const std::function<std::vector<std::vector<int64_t>>(const std::vector<int64_t>&, int64_t)>& group) {
  const ExpertStatistics& statistics = input.statistics;
  const std::span<const int64_t> counts = routed_counts(statistics);
  const Division division = divide(input, true);
  std::vector<std::vector<int64_t>> all;
  for (const int64_t expert : division.kept) all.push_back({expert});
  if (!division.rest.empty()) {
    for (std::vector<int64_t>& members : group(division.rest, division.clusters)) {
      for (int64_t& member : members) member = division.rest[member];
      all.push_back(std::move(members));
    }
  }
  std::sort(all.begin(), all.end());
  LayerPlan plan;
  plan.layer = statistics.layer;
  plan.experts = statistics.experts;
  for (std::vector<int64_t>& members : all) {
    plan.clusters.push_back(weighted_cluster(std::move(members), counts, input.recipe.merge, input.recipe.router));
  }
  return plan;
}

}  // namespace hcsmoe

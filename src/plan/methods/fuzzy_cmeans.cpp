#include <algorithm>

#include "plan/centres.h"
#include "plan/keep.h"
#include "plan/methods/methods.h"

namespace hcsmoe {
namespace {

/// members: [R] of the experts in one cluster, not all 0.
Cluster soft_cluster(const std::vector<int64_t>& experts, const std::vector<double>& memberships) {
  Cluster cluster;
  double sum = 0, most = 0;
  for (const double membership : memberships) sum += membership;
  for (size_t i = 0; i < experts.size(); i++) {
    if (!(memberships[i] > 0)) continue;
    cluster.members.push_back(experts[i]);
    cluster.weights.push_back(memberships[i] / sum);
    if (memberships[i] > most) most = memberships[i], cluster.dominant = experts[i];
  }
  cluster.router_weights = cluster.weights;
  return cluster;
}

}  // namespace

LayerPlan plan_fuzzy_cmeans(const PlanInput& input) {
  const Points points = mean_output_points(input);
  const Division division = divide(input, true);
  LayerPlan plan;
  plan.layer = input.statistics.layer;
  plan.experts = input.statistics.experts;
  plan.soft = true;
  for (const int64_t expert : division.kept) plan.clusters.push_back({{expert}, {1}, {1}, expert});
  if (!division.rest.empty()) {
    const std::vector<double> rows = points.rows_of(division.rest);
    const auto R = static_cast<int64_t>(division.rest.size());
    const auto memberships =
        fuzzy_cmeans(rows, R, points.columns, first_centres(input, rows, division.rest, division.clusters), input.recipe.metric);
    for (const std::vector<double>& cluster : memberships) plan.clusters.push_back(soft_cluster(division.rest, cluster));
  }
  std::stable_sort(plan.clusters.begin(), plan.clusters.end(), [](const Cluster& a, const Cluster& b) {
    return a.members.front() != b.members.front() ? a.members.front() < b.members.front() : a.dominant < b.dominant;
  });
  return plan;
}

}  // namespace hcsmoe

#include "plan/cluster_weights.h"

#include <algorithm>
#include <string>

#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

std::vector<double> equal_weights(size_t members) { return std::vector<double>(members, 1.0 / static_cast<double>(members)); }

std::vector<double> frequency_weights(const std::vector<int64_t>& members, std::span<const int64_t> routed_count) {
  int64_t sum = 0;
  for (const int64_t expert : members) sum += routed_count[expert];
  if (sum == 0) return equal_weights(members.size());
  std::vector<double> weights;
  for (const int64_t expert : members) weights.push_back(static_cast<double>(routed_count[expert]) / static_cast<double>(sum));
  return weights;
}

std::vector<double> one_of(const std::vector<int64_t>& members, int64_t chosen) {
  std::vector<double> weights;
  for (const int64_t expert : members) weights.push_back(expert == chosen ? 1 : 0);
  return weights;
}

}  // namespace

Cluster weighted_cluster(std::vector<int64_t> members, std::span<const int64_t> routed_count, Merge merge, RouterMerge router) {
  Cluster cluster;
  cluster.dominant = *std::max_element(members.begin(), members.end(),
                                       [&](int64_t a, int64_t b) { return routed_count[a] < routed_count[b]; });  // the first of equals
  switch (merge) {
    case Merge::frequency:
    case Merge::frequency_aligned:
      cluster.weights = frequency_weights(members, routed_count);
      break;
    case Merge::average:
    case Merge::average_aligned:
    case Merge::fix_dominant:
    case Merge::zipit:
      cluster.weights = equal_weights(members.size());
      break;
    case Merge::dominant:
      cluster.weights = one_of(members, cluster.dominant);
      break;
  }
  switch (router) {
    case RouterMerge::frequency:
    case RouterMerge::alias:   // where one row must stand for all after all
    case RouterMerge::fitted:  // from there
      cluster.router_weights = frequency_weights(members, routed_count);
      break;
    case RouterMerge::average:
      cluster.router_weights = equal_weights(members.size());
      break;
    case RouterMerge::representative:
      cluster.router_weights = one_of(members, cluster.dominant);
      break;
  }
  cluster.members = std::move(members);
  return cluster;
}

std::span<const int64_t> routed_counts(const ExpertStatistics& statistics) {
  const at::Tensor& counts = statistics.routed_count;
  if (!counts.defined() || counts.scalar_type() != at::kLong || counts.numel() != statistics.experts || !counts.is_contiguous()) {
    throw UserError("the statistics of layer " + std::to_string(statistics.layer) + " have no routed_count of " +
                        std::to_string(statistics.experts) + " experts",
                    "collect them again");
  }
  return {counts.const_data_ptr<int64_t>(), static_cast<size_t>(statistics.experts)};
}

}  // namespace hcsmoe

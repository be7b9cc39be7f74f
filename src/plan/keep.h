#pragma once
// Choosing experts by a score, and leaving protected ones alone. For every method of src/plan/methods/.

#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "hcsmoe/plan.h"

namespace hcsmoe {

/// The experts that recipe.protect names for this layer, ascending. UserError where the layer has no such expert.
std::vector<int64_t> protected_experts(const ExpertStatistics&, const Protect&);

/// The `count` candidates of the highest scores, ascending; equal scores prefer the smaller index. candidates: ascending.
template <class Score>
std::vector<int64_t> highest(std::span<const Score> scores, std::vector<int64_t> candidates, int64_t count) {
  std::stable_sort(candidates.begin(), candidates.end(), [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
  candidates.resize(static_cast<size_t>(count));
  std::sort(candidates.begin(), candidates.end());
  return candidates;
}

/// Which experts stay and which are left to a method.
struct Division {
  std::vector<int64_t> kept;  // the protected ones, ascending
  std::vector<int64_t> rest;  // ascending
  int64_t clusters = 0;       // what the rest becomes
};
/// merges: the rest must end in clusters, so it needs one at least. UserError where `clusters` are too few.
Division divide(const PlanInput&, bool merges);

/// Pruning: the protected experts and the highest of the rest stay as they are, the others are dropped.
template <class Score>
LayerPlan keep_highest(const PlanInput& input, std::span<const Score> scores);

/// Merging: the protected experts stay alone, the rest is clustered by `group` (experts [..], K) -> K clusters of their positions in the
/// list; members ascending, any order.
LayerPlan cluster_rest(const PlanInput& input,
                       const std::function<std::vector<std::vector<int64_t>>(const std::vector<int64_t>&, int64_t)>& group);

/// A plan that keeps these experts (ascending) and drops the others.
LayerPlan plan_of_kept(const ExpertStatistics& statistics, const std::vector<int64_t>& kept);

template <class Score>
LayerPlan keep_highest(const PlanInput& input, std::span<const Score> scores) {
  Division division = divide(input, false);
  const std::vector<int64_t> chosen = highest(scores, std::move(division.rest), division.clusters);
  std::vector<int64_t> kept;
  std::merge(division.kept.begin(), division.kept.end(), chosen.begin(), chosen.end(), std::back_inserter(kept));
  return plan_of_kept(input.statistics, kept);
}

}  // namespace hcsmoe

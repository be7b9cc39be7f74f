#pragma once
// How much each member counts in the expert and in the router row that a cluster becomes. For every method of src/plan/methods/.

#include <cstdint>
#include <span>
#include <vector>

#include "hcsmoe/config.h"
#include "hcsmoe/plan.h"

namespace hcsmoe {

/// members: ascending, not empty. routed_count: [E], how often the router chose each expert; where it chose none of the members, frequency
/// weights are equal.
Cluster weighted_cluster(std::vector<int64_t> members, std::span<const int64_t> routed_count, Merge, RouterMerge);

/// The layer's routed_count, checked to be there with E values.
std::span<const int64_t> routed_counts(const ExpertStatistics&);

}  // namespace hcsmoe

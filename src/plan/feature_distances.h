#pragma once
// How far experts are from each other by the recipe's feature, and clustering by it.

#include <span>
#include <vector>

#include "hcsmoe/plan.h"

namespace hcsmoe {

/// Of all pairs of the layer's experts by recipe.feature and recipe.metric, condensed as pairwise_distances gives them.
std::vector<double> feature_distances(const ExpertStatistics&, const Recipe&);

/// Agglomerates the experts that are not protected: by the tree of the linkage, or, where recipe.max_cluster_size is set, within that
/// limit. condensed: distances of all pairs of the layer's experts. UserError where K clusters of that size cannot hold them.
LayerPlan agglomerate(const PlanInput&, std::span<const double> condensed, Linkage);

}  // namespace hcsmoe

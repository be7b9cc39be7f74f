#pragma once
// Agglomerative clustering of a layer's experts (HC-SMoE, arXiv 2410.08589, Algorithm 1). Distances and linkages are SciPy's.

#include <cstdint>
#include <span>
#include <vector>

#include "hcsmoe/config.h"

namespace hcsmoe {

/// One merge of the tree, as a row of SciPy's linkage matrix: clusters a < b (numbers below E are experts, E + i is the i-th merge),
/// the height at which they merge, and the size of the new cluster.
struct TreeMerge {
  int64_t a = 0, b = 0;
  double height = 0;
  int64_t size = 0;
  bool operator==(const TreeMerge&) const = default;
};
using Tree = std::vector<TreeMerge>;  // E - 1 rows, heights in the order of merging

/// Condensed pairwise distances in SciPy's pdist order (0-1, 0-2, ..., 1-2, ...). features: row-major [rows, columns].
/// Zero rows under cosine: distance 1 to everything (0 to another zero row). Throws Error on a non-finite feature.
std::vector<double> pairwise_distances(std::span<const double> features, int64_t rows, int64_t columns, Metric metric);

/// The merge tree. Always joins the closest pair; equal distances break towards the smaller indices (smallest a, then smallest b, where a
/// cluster's index is its smallest member). Lance-Williams updates; ward as SciPy defines it on Euclidean distances.
Tree linkage_tree(std::span<const double> condensed, int64_t rows, Linkage linkage);

/// The K clusters after the first E - K merges; members ascending, clusters ordered by their smallest member.
std::vector<std::vector<int64_t>> cut_tree(const Tree& tree, int64_t rows, int64_t clusters);

}  // namespace hcsmoe

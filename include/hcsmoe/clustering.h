#pragma once
// Clustering of a layer's experts: agglomerative (HC-SMoE, arXiv 2410.08589, Algorithm 1), with SciPy's distances and linkages, k-means,
// and fuzzy c-means.

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

/// Agglomeration in which no cluster grows beyond max_size: always joins the closest pair that fits, until K clusters are left, with the
/// ties of linkage_tree. Where no pair fits above K, the smallest cluster (of equals the one with the smallest member) is taken apart,
/// again and again: its members, ascending, each join the closest cluster that has room, by the linkage's own distance (of equals the one
/// with the smallest member). Needs K * max_size >= rows. The order of the result is that of cut_tree.
std::vector<std::vector<int64_t>> capped_clusters(std::span<const double> condensed, int64_t rows, Linkage linkage, int64_t clusters,
                                                  int64_t max_size);

/// Rows far from each other: first the one nearest to the mean of all, then always the one whose nearest chosen row is farthest. Squared
/// Euclidean distance, of normalised rows under cosine; ties towards the smaller index, chosen rows never again. In the order of choosing.
std::vector<int64_t> farthest_first(std::span<const double> features, int64_t rows, int64_t columns, int64_t count, Metric metric);

/// Lloyd's k-means by squared Euclidean distance, of normalised rows under cosine (zero rows stay zero; centres are plain means). Starts
/// with the rows `first` as centres. Ties go to the centre that comes first. A cluster that loses its last row is given the row farthest
/// from its own centre, of those that are not alone in their cluster (of equals the first), the clusters in order. Ends when nothing moves,
/// at the latest after 300 rounds. first.size() clusters, none empty, in the order of cut_tree.
std::vector<std::vector<int64_t>> kmeans(std::span<const double> features, int64_t rows, int64_t columns, std::vector<int64_t> first,
                                         Metric metric);

/// Fuzzy c-means (Bezdek 1981) with fuzzifier 2, of normalised rows under cosine: a row's membership in a cluster is proportional to
/// 1 / |row - centre|^2, a centre is the mean of all rows weighted by their squared memberships. A row that lies on centres belongs to
/// these alone, in equal parts. Starts with the rows `first` as centres; ends when no membership changes by more than 1e-9, at the latest
/// after 1000 rounds. [first.size()][rows]; a row's memberships sum to 1.
std::vector<std::vector<double>> fuzzy_cmeans(std::span<const double> features, int64_t rows, int64_t columns, std::vector<int64_t> first,
                                              Metric metric);

}  // namespace hcsmoe

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <optional>
#include <string>

#include "hcsmoe/clustering.h"
#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

/// The clusters that are left, each in the slot of its smallest member, so that slot order is the order in which ties break.
/// Every slot knows its nearest later slot; a merge renews only the slots whose nearest it changed, which keeps the whole tree near E^2
/// steps.
class Agglomeration {
 public:
  /// max_size: a pair that would become larger does not count.
  Agglomeration(std::span<const double> condensed, int64_t rows, Linkage linkage, int64_t max_size)
      : rows_(rows),
        linkage_(linkage),
        max_size_(max_size),
        distance_(static_cast<size_t>(rows * rows)),
        size_(rows, 1),
        number_(rows),
        nearest_(rows, none) {
    auto next = condensed.begin();
    for (int64_t i = 0; i < rows; i++) {
      number_[i] = i;
      for (int64_t j = i + 1; j < rows; j++, next++) {
        // Ward's update is on squared distances; they stay squared until a height is reported.
        at(i, j) = at(j, i) = linkage == Linkage::ward ? *next * *next : *next;
      }
    }
    for (int64_t i = 0; i < rows; i++) find_nearest(i);
  }

  /// Joins the closest pair that fits; nothing if there is none. i: how many merges there were before.
  std::optional<TreeMerge> merge(int64_t i) {
    const int64_t a = closest();
    if (a == none) return std::nullopt;
    const int64_t b = nearest_[a];
    const double between = at(a, b);
    const TreeMerge result{std::min(number_[a], number_[b]), std::max(number_[a], number_[b]),
                           linkage_ == Linkage::ward ? std::sqrt(between) : between, size_[a] + size_[b]};
    for (int64_t k = 0; k < rows_; k++) {
      if (k != a && k != b && size_[k] > 0) at(a, k) = at(k, a) = joined_distance(k, a, b, between);
    }
    size_[a] += size_[b];
    size_[b] = 0;
    number_[a] = rows_ + i;
    for (int64_t k = 0; k < b; k++) {
      if (size_[k] == 0 || nearest_[k] == none) continue;
      if (k == a || nearest_[k] == a || nearest_[k] == b) {
        find_nearest(k);
      } else if (k < a && fits(k, a) && at(k, a) <= at(k, nearest_[k]) && (at(k, a) < at(k, nearest_[k]) || a < nearest_[k])) {
        nearest_[k] = a;
      }
    }
    return result;
  }

 private:
  static constexpr int64_t none = -1;

  double& at(int64_t i, int64_t j) { return distance_[i * rows_ + j]; }

  bool fits(int64_t i, int64_t j) const { return size_[i] + size_[j] <= max_size_; }

  void find_nearest(int64_t i) {
    nearest_[i] = none;
    double best = std::numeric_limits<double>::infinity();
    for (int64_t j = i + 1; j < rows_; j++) {
      if (size_[j] > 0 && fits(i, j) && at(i, j) < best) best = at(i, j), nearest_[i] = j;
    }
  }

  int64_t closest() {
    int64_t result = none;
    for (int64_t i = 0; i < rows_; i++) {
      if (size_[i] == 0 || nearest_[i] == none) continue;
      if (result == none || at(i, nearest_[i]) < at(result, nearest_[result])) result = i;
    }
    return result;
  }

  /// Lance-Williams: from cluster k to the union of a and b.
  double joined_distance(int64_t k, int64_t a, int64_t b, double between) {
    const double to_a = at(k, a), to_b = at(k, b);
    const auto size_a = static_cast<double>(size_[a]), size_b = static_cast<double>(size_[b]), size_k = static_cast<double>(size_[k]);
    switch (linkage_) {
      case Linkage::single:
        return std::min(to_a, to_b);
      case Linkage::complete:
        return std::max(to_a, to_b);
      case Linkage::average:
        return (size_a * to_a + size_b * to_b) / (size_a + size_b);
      case Linkage::ward:
        return ((size_k + size_a) * to_a + (size_k + size_b) * to_b - size_k * between) / (size_k + size_a + size_b);
    }
    throw Error("unknown linkage");
  }

  int64_t rows_;
  Linkage linkage_;
  int64_t max_size_;
  std::vector<double> distance_;  // [E, E], symmetric; rows and columns of slots that are gone are stale
  std::vector<int64_t> size_;     // of the slot's cluster; 0: gone
  std::vector<int64_t> number_;   // of the slot's cluster in the tree
  std::vector<int64_t> nearest_;  // later slot; none if no later one fits
};

void check_distances(std::span<const double> condensed, int64_t rows) {
  if (rows < 1 || condensed.size() != static_cast<size_t>(rows * (rows - 1) / 2)) {
    throw Error("linkage_tree: " + std::to_string(condensed.size()) + " distances are not the pairs of " + std::to_string(rows) +
                " experts");
  }
  for (const double distance : condensed) {
    // Half the exponent range is left for ward's squares.
    if (!(distance >= 0 && distance < 1e150)) throw Error("linkage_tree: a distance is negative, not finite or too large");
  }
}

/// Clusters as lists of experts, ordered by their smallest member.
class CappedClusters {
 public:
  CappedClusters(std::span<const double> condensed, int64_t rows, Linkage linkage, int64_t max_size)
      : condensed_(condensed), rows_(rows), linkage_(linkage), max_size_(max_size) {}

  std::vector<std::vector<int64_t>> members;

  void take_smallest_apart() {
    const auto smallest =
        std::min_element(members.begin(), members.end(), [](const auto& x, const auto& y) { return x.size() < y.size(); });
    const std::vector<int64_t> homeless = *smallest;
    members.erase(smallest);
    for (const int64_t expert : homeless) {
      std::vector<int64_t>* nearest = nullptr;
      double best = 0;
      for (auto& cluster : members) {
        if (static_cast<int64_t>(cluster.size()) >= max_size_) continue;
        const double d = to_cluster(expert, cluster);
        if (!nearest || d < best) nearest = &cluster, best = d;
      }
      nearest->insert(std::upper_bound(nearest->begin(), nearest->end(), expert), expert);
      std::sort(members.begin(), members.end());
    }
  }

 private:
  double between(int64_t i, int64_t j) const {
    if (i > j) std::swap(i, j);
    return condensed_[i * rows_ - i * (i + 1) / 2 + j - i - 1];
  }

  /// The linkage's distance of the cluster {expert} to another, by its definition.
  double to_cluster(int64_t expert, const std::vector<int64_t>& cluster) const {
    const auto size = static_cast<double>(cluster.size());
    double least = std::numeric_limits<double>::infinity(), most = 0, sum = 0, squares = 0, inner_squares = 0;
    for (const int64_t member : cluster) {
      const double d = between(expert, member);
      least = std::min(least, d);
      most = std::max(most, d);
      sum += d;
      squares += d * d;
      for (const int64_t other : cluster) {
        if (other > member) inner_squares += between(member, other) * between(member, other);
      }
    }
    switch (linkage_) {
      case Linkage::single:
        return least;
      case Linkage::complete:
        return most;
      case Linkage::average:
        return sum / size;
      case Linkage::ward:
        return std::sqrt(std::max(0.0, 2 * size / (size + 1) * (squares / size - inner_squares / (size * size))));
    }
    throw Error("unknown linkage");
  }

  std::span<const double> condensed_;
  int64_t rows_;
  Linkage linkage_;
  int64_t max_size_;
};

}  // namespace

Tree linkage_tree(std::span<const double> condensed, int64_t rows, Linkage linkage) {
  check_distances(condensed, rows);
  Agglomeration clusters(condensed, rows, linkage, rows);
  Tree tree;
  for (int64_t i = 0; i < rows - 1; i++) {
    tree.push_back(clusters.merge(i).value());
    // These linkages never merge below an earlier height, but the rounding of the last bit may.
    if (i > 0) tree.back().height = std::max(tree.back().height, tree[i - 1].height);
  }
  return tree;
}

std::vector<std::vector<int64_t>> cut_tree(const Tree& tree, int64_t rows, int64_t clusters) {
  if (rows < 1 || tree.size() != static_cast<size_t>(rows - 1)) {
    throw Error("cut_tree: a tree of " + std::to_string(tree.size()) + " merges is not one of " + std::to_string(rows) + " experts");
  }
  if (clusters < 1 || clusters > rows) {
    throw Error("cut_tree: " + std::to_string(rows) + " experts cannot make " + std::to_string(clusters) + " clusters");
  }
  std::vector<std::vector<int64_t>> members(static_cast<size_t>(2 * rows - clusters));
  for (int64_t e = 0; e < rows; e++) members[e] = {e};
  for (int64_t i = 0; i < rows - clusters; i++) {
    const TreeMerge& merge = tree[i];
    auto& joined = members[rows + i];
    for (const int64_t part : {merge.a, merge.b}) {
      if (part < 0 || part >= rows + i || members[part].empty()) {
        throw Error("cut_tree: merge " + std::to_string(i) + " joins cluster " + std::to_string(part) + ", which is not there");
      }
      joined.insert(joined.end(), members[part].begin(), members[part].end());
      members[part].clear();
    }
    std::sort(joined.begin(), joined.end());
  }
  std::erase_if(members, [](const auto& cluster) { return cluster.empty(); });
  std::sort(members.begin(), members.end());
  return members;
}

std::vector<std::vector<int64_t>> capped_clusters(std::span<const double> condensed, int64_t rows, Linkage linkage, int64_t clusters,
                                                  int64_t max_size) {
  check_distances(condensed, rows);
  if (clusters < 1 || clusters > rows || max_size < 1 || clusters * max_size < rows) {
    throw Error("capped_clusters: " + std::to_string(rows) + " experts do not fit in " + std::to_string(clusters) +
                " clusters of at most " + std::to_string(max_size));
  }
  Agglomeration agglomeration(condensed, rows, linkage, max_size);
  CappedClusters result(condensed, rows, linkage, max_size);
  std::vector<std::vector<int64_t>> numbered(static_cast<size_t>(rows));  // by their number in the tree; empty: merged
  for (int64_t e = 0; e < rows; e++) numbered[e] = {e};
  for (int64_t i = 0; i < rows - clusters; i++) {
    const auto merge = agglomeration.merge(i);
    if (!merge) break;
    std::vector<int64_t> joined;
    std::merge(numbered[merge->a].begin(), numbered[merge->a].end(), numbered[merge->b].begin(), numbered[merge->b].end(),
               std::back_inserter(joined));
    numbered[merge->a].clear();
    numbered[merge->b].clear();
    numbered.push_back(std::move(joined));
  }
  std::erase_if(numbered, [](const auto& cluster) { return cluster.empty(); });
  std::sort(numbered.begin(), numbered.end());
  result.members = std::move(numbered);
  while (static_cast<int64_t>(result.members.size()) > clusters) result.take_smallest_apart();
  return std::move(result.members);
}

}  // namespace hcsmoe

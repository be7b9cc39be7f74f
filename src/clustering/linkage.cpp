#include <algorithm>
#include <cmath>
#include <limits>
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
  Agglomeration(std::span<const double> condensed, int64_t rows, Linkage linkage)
      : rows_(rows), linkage_(linkage), distance_(static_cast<size_t>(rows * rows)), size_(rows, 1), number_(rows), nearest_(rows, none) {
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

  /// Joins the closest pair. i: how many merges there were before.
  TreeMerge merge(int64_t i) {
    const int64_t a = closest();
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
      } else if (k < a && at(k, a) <= at(k, nearest_[k]) && (at(k, a) < at(k, nearest_[k]) || a < nearest_[k])) {
        nearest_[k] = a;
      }
    }
    return result;
  }

 private:
  static constexpr int64_t none = -1;

  double& at(int64_t i, int64_t j) { return distance_[i * rows_ + j]; }

  void find_nearest(int64_t i) {
    nearest_[i] = none;
    double best = std::numeric_limits<double>::infinity();
    for (int64_t j = i + 1; j < rows_; j++) {
      if (size_[j] > 0 && at(i, j) < best) best = at(i, j), nearest_[i] = j;
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
  std::vector<double> distance_;  // [E, E], symmetric; rows and columns of slots that are gone are stale
  std::vector<int64_t> size_;     // of the slot's cluster; 0: gone
  std::vector<int64_t> number_;   // of the slot's cluster in the tree
  std::vector<int64_t> nearest_;  // later slot; none for the last
};

}  // namespace

Tree linkage_tree(std::span<const double> condensed, int64_t rows, Linkage linkage) {
  if (rows < 1 || condensed.size() != static_cast<size_t>(rows * (rows - 1) / 2)) {
    throw Error("linkage_tree: " + std::to_string(condensed.size()) + " distances are not the pairs of " + std::to_string(rows) +
                " experts");
  }
  for (const double distance : condensed) {
    // Half the exponent range is left for ward's squares.
    if (!(distance >= 0 && distance < 1e150)) throw Error("linkage_tree: a distance is negative, not finite or too large");
  }
  Agglomeration clusters(condensed, rows, linkage);
  Tree tree;
  for (int64_t i = 0; i < rows - 1; i++) {
    tree.push_back(clusters.merge(i));
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

}  // namespace hcsmoe

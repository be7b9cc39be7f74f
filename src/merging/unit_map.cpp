#include "merging/unit_map.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "hcsmoe/error.h"

namespace hcsmoe {

std::vector<size_t> counting_members(const Cluster& cluster) {
  std::vector<size_t> counting;
  for (size_t m = 0; m < cluster.members.size(); ++m) {
    if (static_cast<float>(cluster.weights[m]) != 0) counting.push_back(m);
  }
  return counting;
}

size_t reference_member(const Cluster& cluster) {
  const auto dominant = std::find(cluster.members.begin(), cluster.members.end(), cluster.dominant);
  if (dominant != cluster.members.end()) {
    const auto m = static_cast<size_t>(dominant - cluster.members.begin());
    if (static_cast<float>(cluster.weights[m]) != 0) return m;
  }
  return static_cast<size_t>(std::max_element(cluster.weights.begin(), cluster.weights.end()) - cluster.weights.begin());
}

UnitParts unit_parts(const Cluster& cluster, const UnitMap& map, int64_t units) {
  const auto F = static_cast<size_t>(units);
  if (map.size() != cluster.members.size()) throw Error("a unit map has another number of members than its cluster");
  const std::vector<size_t> counting = counting_members(cluster);
  UnitParts result;
  result.first.assign(F + 1, 0);
  std::vector<double> weight_sum(F, 0);
  double total = 0;  // of one unit of each member, added up in the order of weight_sum
  for (const size_t m : counting) {
    if (map[m].size() != F) throw Error("a unit map has another number of units than its experts");
    total += cluster.weights[m];
    for (const int32_t target : map[m]) {
      if (target < 0 || target >= units) throw Error("a unit map leads to unit " + std::to_string(target) + " of " + std::to_string(units));
      ++result.first[static_cast<size_t>(target) + 1];
      weight_sum[static_cast<size_t>(target)] += cluster.weights[m];
    }
  }
  for (size_t u = 0; u < F; ++u) {
    if (result.first[u + 1] == 0) throw Error("a unit map leaves merged unit " + std::to_string(u) + " without a part");
  }
  std::partial_sum(result.first.begin(), result.first.end(), result.first.begin());
  result.parts.resize(result.first.back());
  std::vector<size_t> next(result.first.begin(), result.first.end() - 1);
  for (const size_t m : counting) {
    for (size_t i = 0; i < F; ++i) {
      const auto u = static_cast<size_t>(map[m][i]);
      // Where a unit has one part of each member, total / weight_sum is exactly 1 and the weights are those of a plain mean.
      result.parts[next[u]++] = {static_cast<int32_t>(m), static_cast<int32_t>(i),
                                 static_cast<float>(cluster.weights[m] * (total / weight_sum[u]))};
    }
  }
  return result;
}

}  // namespace hcsmoe

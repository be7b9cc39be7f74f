#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "forward/products.h"
#include "hcsmoe/error.h"
#include "merging/alignment.h"

namespace hcsmoe {
namespace {

constexpr float repeated = 0.1F;  // what is left of a merged unit's correlations
constexpr float gone = -std::numeric_limits<float>::infinity();

/// The most correlated partner of every unit that is left, kept up to date while pairs are merged.
class Pool {
 public:
  Pool(float* correlations, int64_t n) : correlations_(correlations), n_(n), partner_(static_cast<size_t>(n)) {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        if (!std::isfinite(at(i, j))) throw Error("zipit: a correlation of units is not finite");
      }
      at(i, i) = gone;
    }
    for (int64_t i = 0; i < n; ++i) find_partner(i);
  }

  /// Merges the most correlated pair, of equals the first; its smaller unit stays. Returns (stays, goes).
  std::pair<int64_t, int64_t> merge() {
    int64_t best = -1;
    for (int64_t i = 0; i < n_; ++i) {
      if (partner(i) >= 0 && (best < 0 || at(i, partner(i)) > at(best, partner(best)))) best = i;
    }
    if (best < 0) throw Error("zipit: no pair is left");
    const int64_t i = std::min(best, partner(best)), j = std::max(best, partner(best));
    partner(j) = -1;
    for (int64_t l = 0; l < n_; ++l) {
      if (l != i && l != j && at(i, l) != gone) at(i, l) = at(l, i) = repeated * std::min(at(i, l), at(j, l));
      at(j, l) = at(l, j) = gone;
    }
    find_partner(i);
    for (int64_t l = 0; l < n_; ++l) {
      if (l == i || partner(l) < 0) continue;
      if (partner(l) == i || partner(l) == j) {
        find_partner(l);
      } else if (at(l, i) > at(l, partner(l)) || (at(l, i) == at(l, partner(l)) && i < partner(l))) {
        partner(l) = i;
      }
    }
    return {i, j};
  }

 private:
  float& at(int64_t i, int64_t j) { return correlations_[i * n_ + j]; }
  int64_t& partner(int64_t i) { return partner_[static_cast<size_t>(i)]; }
  void find_partner(int64_t i) {
    const float* row = correlations_ + i * n_;
    const int64_t j = std::max_element(row, row + n_) - row;  // the first of equals
    partner(i) = row[j] == gone ? -1 : j;
  }

  float* correlations_;
  const int64_t n_;
  std::vector<int64_t> partner_;  // -1: the unit is gone, or alone
};

}  // namespace

std::vector<int32_t> zip_pool(at::Tensor& correlations, int64_t keep) {
  const int64_t n = correlations.size(0);
  std::vector<int64_t> into(static_cast<size_t>(n), -1);  // of a unit that went: the smaller one that stayed
  Pool pool(data<float>(correlations), n);
  for (int64_t left = n; left > keep; --left) {
    const auto [stays, goes] = pool.merge();
    into[static_cast<size_t>(goes)] = stays;
  }
  std::vector<int32_t> group(static_cast<size_t>(n));
  int32_t groups = 0;
  for (size_t i = 0; i < group.size(); ++i) group[i] = into[i] < 0 ? groups++ : group[static_cast<size_t>(into[i])];
  return group;
}

UnitMap zipped_units(const Cluster& cluster, const std::vector<ExpertWeights>& experts, const at::Tensor& x) {
  const size_t reference = reference_member(cluster);
  const int64_t S = x.size(0), F = experts[reference].gate.size(0);
  UnitMap map(cluster.members.size());
  const auto identity = [&] {
    std::vector<int32_t> units(static_cast<size_t>(F));
    for (size_t i = 0; i < units.size(); ++i) units[i] = static_cast<int32_t>(i);
    return units;
  };
  for (auto& target : map) target = identity();
  std::vector<size_t> pooled = {reference};
  std::vector<double> weight(static_cast<size_t>(F), cluster.weights[reference]);  // of the merged units so far
  at::Tensor h = unit_activations(x, experts[reference]);                          // theirs: the means of their parts'
  for (const size_t m : counting_members(cluster)) {
    if (m == reference) continue;
    const at::Tensor other = unit_activations(x, experts[m]);
    const at::Tensor both = at::cat({standardised(h), standardised(other)}, 1);  // [S, 2 F]
    at::Tensor correlations = unit_correlations(both, both);
    const std::vector<int32_t> group = zip_pool(correlations, F);

    weight.resize(static_cast<size_t>(2 * F), cluster.weights[m]);
    std::vector<double> sum(static_cast<size_t>(F), 0);
    for (size_t i = 0; i < group.size(); ++i) sum[static_cast<size_t>(group[i])] += weight[i];
    at::Tensor merged = at::zeros({S, F}, at::TensorOptions().dtype(at::kFloat));
    for (int64_t s = 0; s < S; ++s) {
      const float* from[] = {const_data<float>(h) + s * F, const_data<float>(other) + s * F};
      float* to = data<float>(merged) + s * F;
      for (int64_t i = 0; i < 2 * F; ++i) {
        const auto u = static_cast<size_t>(group[static_cast<size_t>(i)]);
        to[u] += static_cast<float>(weight[static_cast<size_t>(i)] / sum[u]) * from[i / F][i % F];
      }
    }
    for (const size_t earlier : pooled) {
      for (int32_t& target : map[earlier]) target = group[static_cast<size_t>(target)];
    }
    map[m].assign(group.begin() + F, group.end());
    pooled.push_back(m);
    weight = sum;
    h = merged;
  }
  return map;
}

}  // namespace hcsmoe

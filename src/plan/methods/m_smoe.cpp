#include "plan/cluster_weights.h"
#include "plan/expert_values.h"
#include "plan/keep.h"
#include "plan/methods/methods.h"

namespace hcsmoe {

LayerPlan plan_m_smoe(const PlanInput& input) {
  const int64_t E = input.statistics.experts;
  const std::vector<double> cosines = logit_cosines(input.statistics);  // [E, E]
  return cluster_rest(input, [&](const std::vector<int64_t>& experts, int64_t K) {
    const std::vector<int64_t> dominants = highest(routed_counts(input.statistics), experts, K);
    std::vector<std::vector<int64_t>> groups(dominants.size());
    for (size_t i = 0; i < experts.size(); i++) {
      const int64_t e = experts[i];
      const auto own = std::lower_bound(dominants.begin(), dominants.end(), e);
      auto group = own - dominants.begin();
      if (own == dominants.end() || *own != e) {
        group = std::max_element(dominants.begin(), dominants.end(),
                                 [&](int64_t a, int64_t b) { return cosines[e * E + a] < cosines[e * E + b]; }) -  // the first of equals
                dominants.begin();
      }
      groups[group].push_back(static_cast<int64_t>(i));
    }
    return groups;
  });
}

}  // namespace hcsmoe

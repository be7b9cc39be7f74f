#pragma once
// O-prune (arXiv 2402.14800): what dropping experts does to the output of the block, from the products of the experts' outputs alone.

#include <cstdint>
#include <span>
#include <vector>

#include "hcsmoe/families.h"

namespace hcsmoe {

/// Sets of experts, all of one size, each ascending: [sets, size].
struct ExpertSets {
  int64_t size = 0;
  std::vector<int32_t> experts;
  int64_t count() const { return static_cast<int64_t>(experts.size()) / size; }
  std::span<const int32_t> operator[](int64_t i) const { return std::span(experts).subspan(i * size, size); }
};

/// For every set, the sum over tokens of |y - y_S|^2: y is the output of the block's routed experts, y_S that with the other experts'
/// router rows gone, so that softmax, top-k and renormalisation see the rows of S alone, without groups unless S is all experts. Needs set
/// size >= top-k. logits: [S, E]; output_gram: [S, E(E+1)/2] as ExpertStatistics::token_output_gram.
std::vector<double> subset_errors(std::span<const float> logits, std::span<const float> output_gram, int64_t experts, const RoutingRule&,
                                  const ExpertSets& sets);

}  // namespace hcsmoe

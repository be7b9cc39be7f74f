#pragma once
// The sums of one layer while its tokens pass, on one rank. All of them lie in one int64 buffer, so one all-reduce a layer adds up the
// ranks.

#include <cstdint>
#include <span>
#include <vector>

#include "hcsmoe/ranks.h"
#include "statistics/fixed_point.h"

namespace hcsmoe {

/// E experts, F their intermediate size. unit_sum is sum over tokens of h_e(x) = act(gate x) * (up x): down_proj is linear, so
/// output_sum[e] = down_e unit_sum[e] needs no all-token down product.
struct StatisticsAccumulator {
  StatisticsAccumulator(int64_t experts, int64_t intermediate);
  StatisticsAccumulator(const StatisticsAccumulator&) = delete;
  void clear();
  /// After it, every rank holds the sums over all ranks. Collective.
  void all_reduce(const Ranks& ranks);

  const int64_t experts, intermediate;
  std::vector<int64_t> buffer;
  std::span<int64_t> tokens;                                                                                                     // [1]
  std::span<int64_t> routed_count;                                                                                               // [E]
  FixedPointSums routed_weight_sum, router_probability_sum, routed_output_norm_sum, weighted_output_norm_sum, router_logit_sum;  // [E]
  FixedPointSums router_logit_gram;                                                                                              // [E, E]
  FixedPointSums unit_sum;                                                                                                       // [E, F]
};

}  // namespace hcsmoe

#pragma once
// The sums of one layer while its tokens pass, on one rank. All of them lie in one int64 tensor on the device of the tokens, so one
// all-reduce a layer adds up the ranks.

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "hcsmoe/ranks.h"
#include "statistics/fixed_point.h"

namespace hcsmoe {

/// E experts, F their intermediate size. unit_sum is sum over tokens of h_e(x) = act(gate x) * (up x): down_proj is linear, so
/// output_sum[e] = down_e unit_sum[e] needs no all-token down product. All but the counts are fixed-point sums: [0] holds their whole
/// parts, [1] their fractions (fixed_point.h).
struct StatisticsAccumulator {
  StatisticsAccumulator(int64_t experts, int64_t intermediate, at::Device device = at::kCPU);
  StatisticsAccumulator(const StatisticsAccumulator&) = delete;
  void clear();
  /// After it, every rank holds the sums over all ranks. Collective.
  void all_reduce(const Ranks& ranks);

  const int64_t experts, intermediate;
  at::Tensor buffer;                                                                                                         // int64
  at::Tensor tokens;                                                                                                         // [1]
  at::Tensor routed_count;                                                                                                   // [E]
  at::Tensor routed_weight_sum, router_probability_sum, routed_output_norm_sum, weighted_output_norm_sum, router_logit_sum;  // [2, E]
  at::Tensor router_logit_gram;                                                                                              // [2, E, E]
  at::Tensor unit_sum;                                                                                                       // [2, E, F]
};

/// The sums in a tensor [2, ...] in host memory, of which each half is contiguous. A view.
FixedPointSums sums_in(const at::Tensor& sums);

}  // namespace hcsmoe

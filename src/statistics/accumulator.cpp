#include "statistics/accumulator.h"

#include <algorithm>

namespace hcsmoe {

StatisticsAccumulator::StatisticsAccumulator(int64_t experts_, int64_t intermediate_) : experts(experts_), intermediate(intermediate_) {
  const auto E = static_cast<size_t>(experts), F = static_cast<size_t>(intermediate);
  buffer.resize(1 + E + FixedPointSums::buffer_size(5 * E + E * E + E * F));
  std::span<int64_t> rest(buffer);
  const auto take = [&](size_t n) {
    const auto part = rest.first(n);
    rest = rest.subspan(n);
    return part;
  };
  const auto sums = [&](size_t n) { return FixedPointSums(take(FixedPointSums::buffer_size(n))); };
  tokens = take(1);
  routed_count = take(E);
  routed_weight_sum = sums(E);
  router_probability_sum = sums(E);
  routed_output_norm_sum = sums(E);
  weighted_output_norm_sum = sums(E);
  router_logit_sum = sums(E);
  router_logit_gram = sums(E * E);
  unit_sum = sums(E * F);
}

void StatisticsAccumulator::clear() { std::fill(buffer.begin(), buffer.end(), 0); }

void StatisticsAccumulator::all_reduce(const Ranks& ranks) { ranks.all_reduce_sum(buffer); }

}  // namespace hcsmoe

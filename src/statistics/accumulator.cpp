#include "statistics/accumulator.h"

#include <ATen/ops/zeros.h>

#include "support/host_data.h"

namespace hcsmoe {

StatisticsAccumulator::StatisticsAccumulator(int64_t experts_, int64_t intermediate_, at::Device device)
    : experts(experts_), intermediate(intermediate_) {
  const int64_t E = experts, F = intermediate;
  buffer = at::zeros({1 + E + 2 * (5 * E + E * E + E * F)}, at::TensorOptions(at::kLong).device(device));
  int64_t taken = 0;
  const auto take = [&](at::IntArrayRef shape) {
    int64_t n = 1;
    for (const int64_t size : shape) n *= size;
    taken += n;
    return buffer.narrow(0, taken - n, n).view(shape);
  };
  tokens = take({1});
  routed_count = take({E});
  routed_weight_sum = take({2, E});
  router_probability_sum = take({2, E});
  routed_output_norm_sum = take({2, E});
  weighted_output_norm_sum = take({2, E});
  router_logit_sum = take({2, E});
  router_logit_gram = take({2, E, E});
  unit_sum = take({2, E, F});
}

void StatisticsAccumulator::clear() { buffer.zero_(); }

void StatisticsAccumulator::all_reduce(const Ranks& ranks) { ranks.all_reduce_sums({&buffer, 1}); }

FixedPointSums sums_in(const at::Tensor& sums) {
  auto* const whole = data<int64_t>(sums);
  return {static_cast<size_t>(sums.numel() / 2), whole, whole + sums.stride(0)};
}

}  // namespace hcsmoe

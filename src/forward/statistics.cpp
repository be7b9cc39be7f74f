// From the sums of a layer to its statistics.

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cstring>

#include "forward/products.h"
#include "forward/row_kernels.h"
#include "hcsmoe/forward.h"
#include "statistics/accumulator.h"

namespace hcsmoe {
namespace {

/// The values of sums [2, ...] in a shape.
at::Tensor values_of(const at::Tensor& sums, at::IntArrayRef shape) {
  const at::Tensor host = sums.cpu();
  const FixedPointSums fixed = sums_in(host);
  at::Tensor result = at::empty(shape, at::kDouble);
  for (size_t i = 0; i < fixed.size(); ++i) data<double>(result)[i] = fixed.value(i);
  return result;
}

}  // namespace

at::Tensor expert_output_sums(const StatisticsAccumulator& sums, const Checkpoint& checkpoint, const ModelDescription& model, int64_t layer,
                              const Ranks& ranks) {
  const int64_t E = model.experts, D = model.hidden_size, F = model.expert_intermediate;
  // Expert e is computed by rank e mod P.
  const at::Tensor host = sums.unit_sum.cpu();
  const FixedPointSums unit_sum = sums_in(host);
  std::string mine;
  for (int64_t e = ranks.rank(); e < E; e += ranks.size()) {
    std::vector<double> units(static_cast<size_t>(F)), output(static_cast<size_t>(D));
    for (int64_t c = 0; c < F; ++c) units[static_cast<size_t>(c)] = unit_sum.value(static_cast<size_t>(e * F + c));
    const std::string name = expert_tensor_name(model, layer, e, ExpertPart::down);
    at::Tensor down = checkpoint.tensor(name);  // [D, F]
    if (down.scalar_type() == at::kHalf) down = down.to(at::kFloat);
    const bool half = down.scalar_type() == at::kBFloat16;
    constexpr int64_t rows = 64;
    for_each_task(blocks_of(D, rows), [&](int64_t b, int) {
      for (int64_t d = b * rows; d < std::min(D, (b + 1) * rows); ++d) {
        output[static_cast<size_t>(d)] = half ? dot_bfloat16(const_data<uint16_t>(down) + d * F, units.data(), F)
                                              : dot(const_data<float>(down) + d * F, units.data(), F);
      }
    });
    checkpoint.done_with(name);
    mine.append(reinterpret_cast<const char*>(output.data()), output.size() * sizeof(double));
  }
  checkpoint.require_unchanged(moe_tensor_names(model, layer, E));
  const std::vector<std::string> parts = ranks.gather(mine, 0);
  if (!ranks.is_root()) return {};
  at::Tensor result = at::empty({E, D}, at::TensorOptions().dtype(at::kDouble));
  const auto row_bytes = static_cast<size_t>(D) * sizeof(double);
  for (int64_t e = 0; e < E; ++e) {
    std::memcpy(data<double>(result) + e * D,
                parts[static_cast<size_t>(e % ranks.size())].data() + static_cast<size_t>(e / ranks.size()) * row_bytes, row_bytes);
  }
  return result;
}

ExpertStatistics finish_statistics(const StatisticsAccumulator& sums, ExpertStatistics result, const Checkpoint& checkpoint,
                                   const ModelDescription& model, const Ranks& ranks) {
  at::Tensor output_sum = sums.intermediate > 0 ? expert_output_sums(sums, checkpoint, model, result.layer, ranks) : at::Tensor();
  const int64_t E = model.experts;
  result.experts = E;
  result.tokens = sums.tokens.item<int64_t>();
  if (!ranks.is_root()) return result;
  result.routed_count = sums.routed_count.to(at::kCPU, at::kLong, false, true);
  result.routed_weight_sum = values_of(sums.routed_weight_sum, {E});
  result.router_probability_sum = values_of(sums.router_probability_sum, {E});
  result.output_sum = output_sum;
  result.routed_output_norm_sum = values_of(sums.routed_output_norm_sum, {E});
  result.weighted_output_norm_sum = values_of(sums.weighted_output_norm_sum, {E});
  result.router_logit_sum = values_of(sums.router_logit_sum, {E});
  result.router_logit_gram = values_of(sums.router_logit_gram, {E, E});
  return result;
}

}  // namespace hcsmoe

#include "report/usage.h"

#include <numeric>

#include "forward/routing.h"
#include "hcsmoe/forward.h"
#include "support/host_data.h"

namespace hcsmoe {

std::vector<double> measured_usage(const at::Tensor& sample_input, const CompressedRouter& router, const RoutingRule& routing,
                                   int64_t experts) {
  const int64_t S = sample_input.size(0), K = router.rows.size(0);
  const RoutingRule rule = block_routing(routing, experts, {router.rows, {}, {}, router.correction_bias});
  const at::Tensor logits = sample_input.mm(router.rows.to(at::kFloat).t()).contiguous();  // [S, K]
  const std::span<const float> values(const_data<float>(logits), static_cast<size_t>(S * K));
  std::vector<double> usage(static_cast<size_t>(K), 0.0);
  RoutedToken token;
  for (int64_t t = 0; t < S; t++) {
    route_token(values.subspan(t * K, K), rule, token);
    for (const auto& [k, weight] : token.chosen) usage[k] += 1;
  }
  for (double& count : usage) count /= static_cast<double>(S * rule.top_k);
  return usage;
}

std::vector<double> usage_of_members(const LayerFigures& figures) {
  const int64_t total = std::accumulate(figures.usage.begin(), figures.usage.end(), int64_t{0});
  std::vector<double> shares;
  for (const auto& members : figures.members) {
    int64_t sum = 0;
    for (const int64_t e : members) sum += figures.usage[e];
    shares.push_back(total > 0 ? static_cast<double>(sum) / static_cast<double>(total) : 0);
  }
  return shares;
}

}  // namespace hcsmoe

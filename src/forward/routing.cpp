#include "forward/routing.h"

#include <algorithm>
#include <cmath>

#include "hcsmoe/error.h"

namespace hcsmoe {

int64_t Routing::largest() const {
  size_t most = 0;
  for (const auto& entries : of_expert) most = std::max(most, entries.size());
  return static_cast<int64_t>(most);
}

void route_token(std::span<const float> logits, const RoutingRule& rule, RoutedToken& token) {
  const size_t E = logits.size(), k = static_cast<size_t>(rule.top_k);
  const bool finite = std::all_of(logits.begin(), logits.end(), [](float z) { return std::isfinite(z); });
  const float highest = *std::max_element(logits.begin(), logits.end());
  if (!finite) throw Error("a router logit is not finite: the checkpoint's weights overflow, or are damaged");
  token.probabilities.resize(E);
  double sum = 0;
  for (size_t e = 0; e < E; ++e) sum += token.probabilities[e] = std::exp(static_cast<double>(logits[e]) - static_cast<double>(highest));
  for (double& p : token.probabilities) p /= sum;

  token.chosen.clear();
  for (size_t e = 0; e < E; ++e) {
    // Insertion into a short sorted list; a later expert goes in front of an earlier one only if its logit is greater.
    size_t at = token.chosen.size();
    while (at > 0 && logits[e] > logits[static_cast<size_t>(token.chosen[at - 1].first)]) --at;
    if (at >= k) continue;
    if (token.chosen.size() == k) token.chosen.pop_back();
    token.chosen.insert(token.chosen.begin() + static_cast<std::ptrdiff_t>(at), {static_cast<int32_t>(e), 0.0f});
  }
  double total = 1;
  if (rule.renormalise) {
    total = 0;
    for (const auto& [e, weight] : token.chosen) total += token.probabilities[static_cast<size_t>(e)];
  }
  for (auto& [e, weight] : token.chosen) weight = static_cast<float>(token.probabilities[static_cast<size_t>(e)] / total * rule.scale);
}

}  // namespace hcsmoe

#include "forward/routing.h"

#include <algorithm>
#include <cmath>

#include "families/groups.h"
#include "hcsmoe/error.h"

namespace hcsmoe {

int64_t Routing::largest() const {
  size_t most = 0;
  for (const auto& entries : of_expert) most = std::max(most, entries.size());
  return static_cast<int64_t>(most);
}

namespace {

void set_softmax(std::span<const float> logits, std::vector<double>& probabilities) {
  const float highest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (size_t e = 0; e < logits.size(); ++e) {
    sum += probabilities[e] = std::exp(static_cast<double>(logits[e]) - static_cast<double>(highest));
  }
  for (double& p : probabilities) p /= sum;
}

/// The k largest, in descending order; of equal ones the first.
template <class Value>
void choose(std::span<const Value> values, size_t k, std::vector<std::pair<int32_t, float>>& chosen) {
  chosen.clear();
  for (size_t e = 0; e < values.size(); ++e) {
    // Insertion into a short sorted list; a later expert goes in front of an earlier one only if its value is greater.
    size_t at = chosen.size();
    while (at > 0 && values[e] > values[static_cast<size_t>(chosen[at - 1].first)]) --at;
    if (at >= k) continue;
    if (chosen.size() == k) chosen.pop_back();
    chosen.insert(chosen.begin() + static_cast<std::ptrdiff_t>(at), {static_cast<int32_t>(e), 0.0f});
  }
}

}  // namespace

void route_token(std::span<const float> logits, const RoutingRule& rule, RoutedToken& token) {
  const size_t E = logits.size(), k = static_cast<size_t>(rule.top_k);
  const bool finite = std::all_of(logits.begin(), logits.end(), [](float z) { return std::isfinite(z); });
  if (!finite) throw Error("a router logit is not finite: the checkpoint's weights overflow, or are damaged");
  token.probabilities.resize(E);
  const bool sigmoid = rule.score == RoutingRule::Score::sigmoid;
  if (sigmoid) {
    for (size_t e = 0; e < E; ++e) token.probabilities[e] = 1 / (1 + std::exp(-static_cast<double>(logits[e])));
  } else {
    set_softmax(logits, token.probabilities);
  }
  if (rule.correction.empty() && rule.groups == 1) {
    choose(logits, k, token.chosen);
  } else {
    token.order = token.probabilities;
    for (size_t e = 0; e < rule.correction.size(); ++e) token.order[e] += static_cast<double>(rule.correction[e]);
    keep_best_groups(token.order, rule);
    choose(std::span<const double>(token.order), k, token.chosen);
  }
  double total = 1;
  if (rule.renormalise) {
    total = sigmoid ? 1e-20 : 0;  // as the models' own code, which may not divide by 0
    for (const auto& [e, weight] : token.chosen) total += token.probabilities[static_cast<size_t>(e)];
  }
  for (auto& [e, weight] : token.chosen) weight = static_cast<float>(token.probabilities[static_cast<size_t>(e)] / total * rule.scale);
}

}  // namespace hcsmoe

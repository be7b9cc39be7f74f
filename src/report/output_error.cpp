#include <algorithm>

#include "forward/routing.h"
#include "hcsmoe/report.h"
#include "plan/expert_values.h"

namespace hcsmoe {
namespace {

constexpr int64_t most_tokens = 512;

/// The rule of a router with a row a cluster; as assembly writes it, without groups.
RoutingRule rule_of_clusters(const RoutingRule& original, const std::vector<Cluster>& clusters, int64_t experts) {
  RoutingRule rule = original;
  if (static_cast<int64_t>(clusters.size()) == experts) return rule;
  rule.groups = rule.top_groups = 1;
  rule.correction.clear();
  for (size_t k = 0; k < clusters.size() && !original.correction.empty(); k++) {
    double bias = 0;
    for (size_t i = 0; i < clusters[k].members.size(); i++) {
      bias += clusters[k].router_weights[i] * static_cast<double>(original.correction[clusters[k].members[i]]);
    }
    rule.correction.push_back(static_cast<float>(bias));
  }
  return rule;
}

/// |sum of factors[e] E_e(x)|^2 of a token, by the upper triangle of its products.
double squared_norm(const std::vector<double>& factors, std::span<const float> gram) {
  const auto E = static_cast<int64_t>(factors.size());
  std::vector<int64_t> used;
  for (int64_t e = 0; e < E; e++) {
    if (factors[e] != 0) used.push_back(e);
  }
  double sum = 0;
  for (size_t i = 0; i < used.size(); i++) {
    const int64_t start = used[i] * E - used[i] * (used[i] + 1) / 2;
    double row = 0.5 * factors[used[i]] * static_cast<double>(gram[start + used[i]]);
    for (size_t j = i + 1; j < used.size(); j++) row += factors[used[j]] * static_cast<double>(gram[start + used[j]]);
    sum += 2 * factors[used[i]] * row;
  }
  return std::max(0.0, sum);
}

}  // namespace

double predicted_output_error(const ExpertStatistics& statistics, const std::vector<Cluster>& clusters, RouterMerge router,
                              const RoutingRule& routing) {
  const int64_t E = statistics.experts, pairs = E * (E + 1) / 2, K = static_cast<int64_t>(clusters.size());
  const auto logits = sample_values(statistics, statistics.sample_logits, "sample_logits", E);
  const auto gram = sample_values(statistics, statistics.token_output_gram, "token_output_gram", pairs);
  const int64_t S = statistics.sample_logits.size(0), tokens = std::min(S, most_tokens);
  const RoutingRule rule = rule_of_clusters(routing, clusters, E);
  std::vector<int64_t> cluster_of(static_cast<size_t>(E), -1);
  for (int64_t k = 0; k < K; k++) {
    for (const int64_t e : clusters[k].members) cluster_of[e] = k;
  }
  const auto add = [&](std::vector<double>& factors, int64_t k, double gate) {
    for (size_t i = 0; i < clusters[k].members.size(); i++) factors[clusters[k].members[i]] += gate * clusters[k].weights[i];
  };
  std::vector<float> merged_logits(static_cast<size_t>(K));
  RoutedToken before, after;
  double error = 0, whole = 0;
  for (int64_t n = 0; n < tokens; n++) {
    const int64_t t = n * S / tokens;
    const auto z = logits.subspan(t * E, E);
    const auto products = gram.subspan(t * pairs, pairs);
    route_token(z, routing, before);
    std::vector<double> factors(static_cast<size_t>(E), 0.0);
    for (const auto& [e, gate] : before.chosen) factors[e] -= static_cast<double>(gate);
    whole += squared_norm(factors, products);
    if (router == RouterMerge::alias) {
      for (const auto& [e, gate] : before.chosen) {
        if (cluster_of[e] >= 0) add(factors, cluster_of[e], static_cast<double>(gate));
      }
    } else {
      for (int64_t k = 0; k < K; k++) {
        double merged = 0;
        for (size_t i = 0; i < clusters[k].members.size(); i++) {
          merged += clusters[k].router_weights[i] * static_cast<double>(z[clusters[k].members[i]]);
        }
        merged_logits[k] = static_cast<float>(merged);
      }
      route_token(merged_logits, rule, after);
      for (const auto& [k, gate] : after.chosen) add(factors, k, static_cast<double>(gate));
    }
    error += squared_norm(factors, products);
  }
  return whole > 0 ? error / whole : 0;
}

}  // namespace hcsmoe

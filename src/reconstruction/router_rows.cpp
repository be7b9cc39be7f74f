#include "reconstruction/router_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <numeric>

#include "forward/routing.h"
#include "reconstruction/minimise.h"
#include "reconstruction/normal_equations.h"
#include "reconstruction/token_sums.h"
#include "reconstruction/units.h"

namespace hcsmoe {
namespace {

constexpr double least_squares_ridge = 1e-3;
constexpr double cross_entropy_ridge = 1e-4;
constexpr int iterations = 60;
constexpr int bias_steps = 60;

/// visit(row, logits [E]) of the original router for every row of tokens.input, rows of different blocks concurrently.
template <class Visit>
void for_each_original_logits(const RouterTokens& tokens, const at::Tensor& original, const Visit& visit) {
  const auto n = static_cast<int64_t>(tokens.rows.size());
  for_each_task(blocks_of(n, routed_row_block), [&](int64_t b, int) {
    at::Tensor z = at::empty({routed_row_block, original.size(0)}, at::kFloat);
    block_product(tokens.input.narrow(0, b * routed_row_block, routed_row_block), original, z);
    for (int64_t r = b * routed_row_block; r < std::min(n, (b + 1) * routed_row_block); ++r) {
      visit(r, std::span(const_data<float>(z) + (r - b * routed_row_block) * original.size(0), static_cast<size_t>(original.size(0))));
    }
  });
}

/// The cluster of each expert, -1 of dropped ones.
std::vector<int64_t> clusters_of_experts(const LayerPlan& plan) {
  std::vector<int64_t> cluster_of(static_cast<size_t>(plan.experts), -1);
  for (size_t k = 0; k < plan.clusters.size(); ++k) {
    for (const int64_t e : plan.clusters[k].members) cluster_of[static_cast<size_t>(e)] = static_cast<int64_t>(k);
  }
  return cluster_of;
}

double softplus(double z) { return std::max(z, 0.0) + std::log1p(std::exp(-std::fabs(z))); }

bool is_sigmoid(const RoutingRule& rule) { return rule.score == RoutingRule::Score::sigmoid; }

/// What the row of a cluster should give for a token, by its members' logits.
double cluster_logit(std::span<const float> z, const std::vector<int64_t>& members, const RoutingRule& rule) {
  if (is_sigmoid(rule)) {
    double none = 0;  // -log of the probability that no member fires
    for (const int64_t e : members) none += softplus(static_cast<double>(z[static_cast<size_t>(e)]));
    return none + std::log(-std::expm1(-none));
  }
  double highest = -INFINITY, sum = 0;
  for (const int64_t e : members) highest = std::max(highest, static_cast<double>(z[static_cast<size_t>(e)]));
  for (const int64_t e : members) sum += std::exp(static_cast<double>(z[static_cast<size_t>(e)]) - highest);
  return highest + std::log(sum);
}

/// The cross entropy of a token's rows' logits z [K], with its derivative. share: of the clusters, which sum up to 1, or to 0 where all of
/// a token's experts were dropped.
double softmax_cross_entropy(const float* share, const float* z, int64_t K, float* slope) {
  const auto highest = static_cast<double>(*std::max_element(z, z + K));
  double sum = 0, all = 0, loss = 0;
  for (int64_t k = 0; k < K; ++k) sum += std::exp(static_cast<double>(z[k]) - highest);
  for (int64_t k = 0; k < K; ++k) {
    all += static_cast<double>(share[k]);
    loss += static_cast<double>(share[k]) * (highest + std::log(sum) - static_cast<double>(z[k]));
  }
  for (int64_t k = 0; k < K; ++k) {
    const double p = std::exp(static_cast<double>(z[k]) - highest) / sum;
    slope[k] = static_cast<float>(all * p - static_cast<double>(share[k]));
  }
  return loss;
}

/// The same of sigmoids over their sum.
double sigmoid_cross_entropy(const float* share, const float* z, int64_t K, float* slope) {
  // log sigmoid(z) = -softplus(-z); its derivative is sigmoid(-z).
  double highest = -INFINITY, sum = 0, all = 0, loss = 0;
  for (int64_t k = 0; k < K; ++k) highest = std::max(highest, -softplus(-static_cast<double>(z[k])));
  for (int64_t k = 0; k < K; ++k) sum += std::exp(-softplus(-static_cast<double>(z[k])) - highest);
  for (int64_t k = 0; k < K; ++k) {
    all += static_cast<double>(share[k]);
    loss += static_cast<double>(share[k]) * (highest + std::log(sum) + softplus(-static_cast<double>(z[k])));
  }
  for (int64_t k = 0; k < K; ++k) {
    const double p = std::exp(-softplus(-static_cast<double>(z[k])) - highest) / sum;
    slope[k] = static_cast<float>((all * p - static_cast<double>(share[k])) / (1 + std::exp(static_cast<double>(z[k]))));
  }
  return loss;
}

/// Binary, cluster by cluster; share: probabilities. Divided by K.
double binary_cross_entropy(const float* share, const float* z, int64_t K, float* slope) {
  const auto clusters = static_cast<double>(K);
  double loss = 0;
  for (int64_t k = 0; k < K; ++k) {
    loss += softplus(static_cast<double>(z[k])) - static_cast<double>(share[k]) * static_cast<double>(z[k]);
    slope[k] = static_cast<float>((1 / (1 + std::exp(-static_cast<double>(z[k]))) - static_cast<double>(share[k])) / clusters);
  }
  return loss / clusters;
}

}  // namespace

RouterTokens::RouterTokens(const BlockTokens& tokens) {
  int64_t row = 0;
  for (const int64_t end : tokens.groups.end) {
    for (; row < end; ++row) {
      if (tokens.groups.held_out[static_cast<size_t>(row)] == 0) rows.push_back(static_cast<int32_t>(row));
    }
    group_end.push_back(static_cast<int64_t>(rows.size()));
  }
  input = gathered(tokens.input, rows, buffer_);
}

at::Tensor rows_by_least_squares(const RouterTokens& tokens, const at::Tensor& original, const LayerPlan& plan, const RoutingRule& rule,
                                 const at::Tensor& start, const Ranks& ranks) {
  const Span span(ranks.trace(), Activity::reconstructing, "router: least squares");
  const auto K = static_cast<int64_t>(plan.clusters.size());
  Buffer buffer, start_buffer;
  at::Tensor missing = buffer.get(tokens.input.size(0), K, at::kFloat, true);  // the target without what `start` gives
  const at::Tensor now = row_product(tokens.input, start.to(at::kFloat), start_buffer);
  for_each_original_logits(tokens, original, [&](int64_t row, std::span<const float> z) {
    for (int64_t k = 0; k < K; ++k) {
      const double target = cluster_logit(z, plan.clusters[static_cast<size_t>(k)].members, rule);
      data<float>(missing)[row * K + k] = static_cast<float>(target) - const_data<float>(now)[row * K + k];
    }
  });
  GroupBuffers groups;
  const at::Tensor right = cross_product(tokens.input, missing, tokens.group_end, groups, ranks);  // [D, K]
  const Damped matrix{gram(tokens.input, tokens.group_end, groups, ranks), least_squares_ridge};   // [D, D]
  const at::Tensor factor = cholesky_factors({matrix}, ranks).front();
  return factor.defined() ? start.to(at::kDouble).add(solved(factor, right, ranks)) : start.to(at::kDouble);
}

at::Tensor rows_by_cross_entropy(const RouterTokens& tokens, const at::Tensor& original, const LayerPlan& plan, const RoutingRule& rule,
                                 const at::Tensor& start, const Ranks& ranks) {
  const Span span(ranks.trace(), Activity::reconstructing, "router: cross entropy");
  const auto K = static_cast<int64_t>(plan.clusters.size()), n = static_cast<int64_t>(tokens.rows.size());
  const int64_t D = original.size(1);
  const std::vector<int64_t> cluster_of = clusters_of_experts(plan);
  const bool binary = is_sigmoid(rule) && !rule.renormalise;
  std::vector<float> shares(static_cast<size_t>(n * K));  // sum over a token's clusters: 1, or 0 where all its experts were dropped
  for_each_original_logits(tokens, original, [&](int64_t row, std::span<const float> z) {
    if (binary) {
      for (int64_t k = 0; k < K; ++k) {
        const double logit = cluster_logit(z, plan.clusters[static_cast<size_t>(k)].members, rule);
        shares[static_cast<size_t>(row * K + k)] = static_cast<float>(1 / (1 + std::exp(-logit)));
      }
      return;
    }
    RoutedToken token;
    route_token(z, rule, token);
    std::vector<double> share(static_cast<size_t>(K));
    double total = 0;
    const auto add = [&](size_t expert, double weight) {
      if (cluster_of[expert] < 0) return;
      share[static_cast<size_t>(cluster_of[expert])] += weight;
      total += weight;
    };
    if (rule.renormalise) {
      for (const auto& [e, weight] : token.chosen) add(static_cast<size_t>(e), static_cast<double>(weight));
    } else {
      for (size_t e = 0; e < token.probabilities.size(); ++e) add(e, token.probabilities[e]);
    }
    for (int64_t k = 0; k < K && total > 0; ++k) {
      shares[static_cast<size_t>(row * K + k)] = static_cast<float>(share[static_cast<size_t>(k)] / total);
    }
  });

  // Sizes that do not depend on how tokens are dealt.
  std::vector<int64_t> buffer(FixedPointSums::buffer_size(1) + 1);
  FixedPointSums square(std::span<int64_t>(buffer).first(FixedPointSums::buffer_size(1)));
  for (int64_t r = 0; r < n; ++r) {
    double sum = 0;
    for (int64_t c = 0; c < D; ++c) sum += std::pow(static_cast<double>(const_data<float>(tokens.input)[r * D + c]), 2);
    square.add(0, sum / static_cast<double>(D));
  }
  buffer.back() = n;
  ranks.all_reduce_sum(buffer);
  const auto count = static_cast<double>(std::max<int64_t>(buffer.back(), 1));
  const double ridge = cross_entropy_ridge * square.value(0) / count;

  const auto cross_entropy = binary ? binary_cross_entropy : is_sigmoid(rule) ? sigmoid_cross_entropy : softmax_cross_entropy;
  at::Tensor rows = start.to(at::kDouble).contiguous().clone();
  const at::Tensor from = rows.clone();
  minimise({data<double>(rows), static_cast<size_t>(K * D)}, iterations, [&](std::span<const double> x, std::span<double> gradient) {
    at::Tensor now = at::empty({K, D}, at::kFloat);
    double pull = 0;
    for (int64_t i = 0; i < K * D; ++i) {
      const double from_start = x[static_cast<size_t>(i)] - const_data<double>(from)[i];
      data<float>(now)[i] = static_cast<float>(x[static_cast<size_t>(i)]);
      pull += ridge * from_start * from_start;
      gradient[static_cast<size_t>(i)] = 2 * ridge * from_start;
    }
    return pull +
           sum_over_tokens(tokens.input, tokens.group_end, now, count, ranks, gradient.data(),
                           [&](int64_t row, const float* z, float* slope) { return cross_entropy(shares.data() + row * K, z, K, slope); });
  });
  return rows;
}

std::vector<float> matched_biases(const RouterTokens& tokens, const at::Tensor& original, const LayerPlan& plan, const RoutingRule& rule,
                                  const RoutingRule& kept, const at::Tensor& rows, const Ranks& ranks) {
  if (kept.correction.empty()) return {};
  const Span span(ranks.trace(), Activity::reconstructing, "router: biases");
  const size_t K = plan.clusters.size(), n = tokens.rows.size();
  const std::vector<int64_t> cluster_of = clusters_of_experts(plan);
  std::mutex mutex;
  std::vector<int64_t> wanted(K + 1);  // tokens that choose a member of each cluster; and all tokens
  for_each_original_logits(tokens, original, [&](int64_t, std::span<const float> z) {
    RoutedToken token;
    route_token(z, rule, token);
    std::vector<int64_t> clusters;
    for (const auto& [e, weight] : token.chosen) clusters.push_back(cluster_of[static_cast<size_t>(e)]);
    std::sort(clusters.begin(), clusters.end());
    clusters.erase(std::unique(clusters.begin(), clusters.end()), clusters.end());
    const std::lock_guard lock(mutex);
    for (const int64_t k : clusters) {
      if (k >= 0) ++wanted[static_cast<size_t>(k)];
    }
  });
  wanted[K] = static_cast<int64_t>(n);
  ranks.all_reduce_sum(wanted);
  const auto all = static_cast<double>(wanted[K]);
  double sum = 0;
  for (size_t k = 0; k < K; ++k) sum += static_cast<double>(wanted[k]);
  if (sum == 0) return kept.correction;

  // Scores, and how far they spread: the size of a step.
  Buffer logits_buffer;
  const at::Tensor logits = row_product(tokens.input, rows.to(at::kFloat).contiguous(), logits_buffer);
  std::vector<int64_t> moments_buffer(FixedPointSums::buffer_size(2));
  FixedPointSums moments(moments_buffer);
  std::vector<double> scores(n * K);
  for (size_t i = 0; i < n * K; ++i) {
    scores[i] = 1 / (1 + std::exp(-static_cast<double>(const_data<float>(logits)[i])));
    moments.add(0, scores[i]);
    moments.add(1, scores[i] * scores[i]);
  }
  ranks.all_reduce_sum(moments_buffer);
  const double mean = moments.value(0) / (all * static_cast<double>(K));
  const double spread = std::sqrt(std::max(0.0, moments.value(1) / (all * static_cast<double>(K)) - mean * mean));

  // The frequencies are the derivative of a convex function of the biases, the sum over tokens of their top_k largest biased scores.
  std::vector<double> bias(kept.correction.begin(), kept.correction.end());
  for (int step = 0; step < bias_steps; ++step) {
    std::vector<int64_t> found(K);
    for_each_task(blocks_of(static_cast<int64_t>(n), row_block), [&](int64_t b, int) {
      std::vector<int64_t> part(K);
      std::vector<size_t> order(K);
      std::vector<double> value(K);
      for (size_t row = static_cast<size_t>(b * row_block); row < std::min(n, static_cast<size_t>((b + 1) * row_block)); ++row) {
        for (size_t k = 0; k < K; ++k) value[k] = scores[row * K + k] + bias[k];
        std::iota(order.begin(), order.end(), size_t{0});
        const auto end = order.begin() + static_cast<std::ptrdiff_t>(kept.top_k);
        std::partial_sort(order.begin(), end, order.end(),
                          [&](size_t i, size_t j) { return value[i] > value[j] || (value[i] == value[j] && i < j); });
        for (auto k = order.begin(); k != end; ++k) ++part[*k];
      }
      const std::lock_guard lock(mutex);
      for (size_t k = 0; k < K; ++k) found[k] += part[k];
    });
    ranks.all_reduce_sum(found);
    const double size = spread * (1 - static_cast<double>(step) / bias_steps);
    for (size_t k = 0; k < K; ++k) {
      const double share = std::min(1.0, static_cast<double>(wanted[k]) / sum * static_cast<double>(kept.top_k));
      bias[k] -= size * (static_cast<double>(found[k]) / all - share);
    }
  }
  return {bias.begin(), bias.end()};
}

}  // namespace hcsmoe

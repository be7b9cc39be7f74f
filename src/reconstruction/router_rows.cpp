#include "reconstruction/router_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

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

at::Tensor rows_by_least_squares(const RouterTokens& tokens, const at::Tensor& original, const LayerPlan& plan, const at::Tensor& start,
                                 const Ranks& ranks) {
  const auto K = static_cast<int64_t>(plan.clusters.size());
  Buffer buffer, start_buffer;
  at::Tensor missing = buffer.get(tokens.input.size(0), K, at::kFloat, true);  // the target without what `start` gives
  const at::Tensor now = row_product(tokens.input, start.to(at::kFloat), start_buffer);
  for_each_original_logits(tokens, original, [&](int64_t row, std::span<const float> z) {
    for (int64_t k = 0; k < K; ++k) {
      double highest = -INFINITY, sum = 0;
      const auto& members = plan.clusters[static_cast<size_t>(k)].members;
      for (const int64_t e : members) highest = std::max(highest, static_cast<double>(z[static_cast<size_t>(e)]));
      for (const int64_t e : members) sum += std::exp(static_cast<double>(z[static_cast<size_t>(e)]) - highest);
      data<float>(missing)[row * K + k] = static_cast<float>(highest + std::log(sum)) - const_data<float>(now)[row * K + k];
    }
  });
  const at::Tensor step =
      ridge_solution(gram(tokens.input, tokens.group_end, ranks), cross_product(tokens.input, missing, tokens.group_end, ranks),
                     least_squares_ridge, ranks);  // [D, K]
  return step.defined() ? start.to(at::kDouble).add(step.t()) : start.to(at::kDouble);
}

at::Tensor rows_by_cross_entropy(const RouterTokens& tokens, const at::Tensor& original, const LayerPlan& plan, const RoutingRule& rule,
                                 const at::Tensor& start, const Ranks& ranks) {
  const auto K = static_cast<int64_t>(plan.clusters.size()), n = static_cast<int64_t>(tokens.rows.size());
  const int64_t D = original.size(1);
  std::vector<int64_t> cluster_of(static_cast<size_t>(plan.experts), -1);
  for (int64_t k = 0; k < K; ++k) {
    for (const int64_t e : plan.clusters[static_cast<size_t>(k)].members) cluster_of[static_cast<size_t>(e)] = k;
  }
  std::vector<float> shares(static_cast<size_t>(n * K));  // sum over a token's clusters: 1, or 0 where all its experts were dropped
  for_each_original_logits(tokens, original, [&](int64_t row, std::span<const float> z) {
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
    return pull + sum_over_tokens(tokens.input, tokens.group_end, now, count, ranks, gradient.data(),
                                  [&](int64_t row, const float* z, float* slope) {
                                    const float* share = shares.data() + row * K;
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
                                  });
  });
  return rows;
}

}  // namespace hcsmoe

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "forward/routing.h"
#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

RoutedToken routed(const std::vector<float>& logits, int64_t k, bool renormalise, double scale = 1) {
  RoutedToken token;
  route_token(logits, {k, renormalise, scale}, token);
  return token;
}

std::vector<int32_t> experts(const RoutedToken& token) {
  std::vector<int32_t> result;
  for (const auto& [e, weight] : token.chosen) result.push_back(e);
  return result;
}

TEST(Routing, LargestLogitsInDescendingOrder) {
  const RoutedToken token = routed({0.1f, 3, -1, 2, 2.5f}, 3, false);
  EXPECT_EQ(experts(token), (std::vector<int32_t>{1, 4, 3}));
  double sum = 0;
  for (const double z : {0.1, 3.0, -1.0, 2.0, 2.5}) sum += std::exp(z);
  EXPECT_NEAR(static_cast<double>(token.chosen[0].second), std::exp(3.0) / sum, 1e-7);
  EXPECT_NEAR(token.probabilities[2], std::exp(-1.0) / sum, 1e-8);
}

TEST(Routing, EqualLogitsGoToTheSmallerIndex) {
  EXPECT_EQ(experts(routed({1, 1, 1, 1}, 2, false)), (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(experts(routed({0, 2, 1, 2, 1}, 3, false)), (std::vector<int32_t>{1, 3, 2}));
}

TEST(Routing, RenormalisedWeightsSumToTheScale) {
  double sum = 0;
  for (const auto& [e, weight] : routed({0.3f, 5, -7, 2, 2.5f, 4}, 4, true, 2.5).chosen) sum += static_cast<double>(weight);
  EXPECT_NEAR(sum, 2.5, 1e-6);
}

TEST(Routing, LargeLogitsDoNotOverflow) {
  const RoutedToken token = routed({1e4f, 1e4f - 1, -1e4f}, 2, true);
  EXPECT_NEAR(static_cast<double>(token.chosen[0].second), 1 / (1 + std::exp(-1.0)), 1e-6);
  EXPECT_EQ(token.probabilities[2], 0);
}

TEST(Routing, NotFiniteIsAnError) {
  EXPECT_THROW(routed({INFINITY, 1}, 1, false), Error);
  EXPECT_THROW(routed({NAN, NAN}, 1, false), Error);
  EXPECT_THROW(routed({0, NAN}, 1, false), Error);
}

RoutingRule sigmoid_rule(int64_t k, bool renormalise, std::vector<float> correction, int64_t groups = 1, int64_t top_groups = 1) {
  RoutingRule rule{k, renormalise, 1};
  rule.score = RoutingRule::Score::sigmoid;
  rule.correction = std::move(correction);
  rule.groups = groups;
  rule.top_groups = top_groups;
  return rule;
}

RoutedToken routed(const std::vector<float>& logits, const RoutingRule& rule) {
  RoutedToken token;
  route_token(logits, rule, token);
  return token;
}

double sigmoid(double z) { return 1 / (1 + std::exp(-z)); }

TEST(Routing, BiasesChooseAndDoNotWeigh) {
  const std::vector<float> logits = {2, 1, 0, -1};
  const RoutedToken token = routed(logits, sigmoid_rule(2, false, {0, 0, 0, 0.7f}));
  EXPECT_EQ(experts(token), (std::vector<int32_t>{3, 0}));  // 0.27 + 0.7 > 0.88
  EXPECT_NEAR(static_cast<double>(token.chosen[0].second), sigmoid(-1), 1e-7);
  EXPECT_NEAR(static_cast<double>(token.chosen[1].second), sigmoid(2), 1e-7);
  for (size_t e = 0; e < 4; ++e) EXPECT_NEAR(token.probabilities[e], sigmoid(static_cast<double>(logits[e])), 1e-12);
  const RoutedToken shared = routed(logits, sigmoid_rule(2, true, {0, 0, 0, 0.7f}));
  EXPECT_NEAR(static_cast<double>(shared.chosen[0].second), sigmoid(-1) / (sigmoid(-1) + sigmoid(2)), 1e-7);
}

TEST(Routing, EqualBiasedScoresGoToTheSmallerIndex) {
  EXPECT_EQ(experts(routed({1, 1, 1, 1}, sigmoid_rule(2, true, {0.5f, 0.25f, 0.5f, 0.5f}))), (std::vector<int32_t>{0, 2}));
  EXPECT_EQ(experts(routed({0, 3, 3, 0}, sigmoid_rule(3, true, {0, 0, 0, 0}))), (std::vector<int32_t>{1, 2, 0}));
  EXPECT_EQ(experts(routed({0, 3, 3, 0}, sigmoid_rule(3, true, {}))), (std::vector<int32_t>{1, 2, 0}));
}

TEST(Routing, ScoresThatUnderflowGiveFiniteWeights) {
  const RoutedToken token = routed({-1e4f, -2e4f, -1e4f}, sigmoid_rule(2, true, {}));
  EXPECT_EQ(experts(token), (std::vector<int32_t>{0, 2}));
  for (const auto& [e, weight] : token.chosen) EXPECT_EQ(weight, 0);
}

TEST(Routing, OnlyTheBestGroupsAreChosenFrom) {
  // The groups' two best: 0 and -9, 2 and 2, 1 and 1, 3 and -9. Of a score of nearly 1, the single 3 is worth less than two of 1.
  const std::vector<float> logits = {0, -9, 2, 2, 1, 1, 3, -9};
  EXPECT_EQ(experts(routed(logits, sigmoid_rule(3, true, {}, 4, 2))), (std::vector<int32_t>{2, 3, 4}));
  EXPECT_EQ(experts(routed(logits, sigmoid_rule(3, true, {}, 4, 4))), (std::vector<int32_t>{6, 2, 3}));
  EXPECT_EQ(experts(routed(logits, sigmoid_rule(2, true, {0, 0, 0, 0, 0, 0, 0, 2}, 4, 1))), (std::vector<int32_t>{7, 6})) << "biases count";
  // Experts outside the groups are never chosen, however low those inside are.
  EXPECT_EQ(experts(routed({5, 5, -3, -3}, sigmoid_rule(2, true, {-9, -9, -1, -1}, 2, 1))), (std::vector<int32_t>{2, 3}));
}

TEST(Routing, EqualGroupsGoToTheSmallerIndex) {
  EXPECT_EQ(experts(routed({1, 2, 2, 1, 2, 1, 1, 2}, sigmoid_rule(2, true, {}, 4, 1))), (std::vector<int32_t>{1, 0}));
  EXPECT_EQ(experts(routed({0, 0, 2, 1, 1, 2, 2, 1}, sigmoid_rule(4, true, {}, 4, 2))), (std::vector<int32_t>{2, 5, 3, 4}));
}

TEST(Routing, BiasesThatAreNotFiniteAreAnError) {
  EXPECT_THROW(routed({0, 1}, sigmoid_rule(1, true, {NAN, 0})), Error);
  EXPECT_THROW(routed({0, 1}, sigmoid_rule(1, true, {0, INFINITY})), Error);
}

}  // namespace
}  // namespace hcsmoe

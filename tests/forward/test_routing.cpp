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

}  // namespace
}  // namespace hcsmoe

// Plans of layers whose clusters and weights can be worked out by hand.
#include <ATen/ops/from_blob.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <random>

#include "hcsmoe/error.h"
#include "hcsmoe/plan.h"

namespace hcsmoe {
namespace {

ExpertStatistics statistics_of(int64_t tokens, const std::vector<double>& mean_output, const std::vector<int64_t>& counts) {
  ExpertStatistics statistics;
  const auto E = static_cast<int64_t>(counts.size());
  statistics.layer = 3;
  statistics.experts = E;
  statistics.tokens = tokens;
  std::vector<double> sum = mean_output;
  for (double& x : sum) x *= static_cast<double>(tokens);
  statistics.output_sum = at::from_blob(sum.data(), {E, static_cast<int64_t>(sum.size()) / E}, at::kDouble).clone();
  statistics.routed_count = at::from_blob(const_cast<int64_t*>(counts.data()), {E}, at::kLong).clone();
  return statistics;
}

/// Experts 0 and 2, 1 and 3 are near each other, 4 is far from all. The mean outputs are exact in binary.
ExpertStatistics example() { return statistics_of(8, {0, 0, 3, 4, 0, 1, 3, 4.5, 40, 0}, {1, 5, 3, 5, 0}); }

Recipe keeping(int64_t count) {
  Recipe recipe;
  recipe.experts.count = count;
  return recipe;
}

std::string error_of(const ExpertStatistics& statistics, const Recipe& recipe) {
  try {
    plan_layer(statistics, recipe);
  } catch (const UserError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(HcSmoe, ClustersAndFrequencyWeights) {
  const LayerPlan plan = plan_layer(example(), keeping(3));
  EXPECT_EQ(plan.layer, 3);
  EXPECT_EQ(plan.experts, 5);
  ASSERT_EQ(plan.clusters.size(), 3u);
  EXPECT_EQ(plan.clusters[0], (Cluster{{0, 2}, {0.25, 0.75}, {0.25, 0.75}, 2}));
  EXPECT_EQ(plan.clusters[1], (Cluster{{1, 3}, {0.5, 0.5}, {0.5, 0.5}, 1}));  // as often used: the smaller index dominates
  EXPECT_EQ(plan.clusters[2], (Cluster{{4}, {1}, {1}, 4}));                   // never used
  EXPECT_TRUE(plan.dropped.empty());
  ASSERT_EQ(plan.tree.size(), 4u);
  EXPECT_EQ(plan.tree[0], (TreeMerge{1, 3, 0.5, 2}));
  EXPECT_EQ(plan.tree[1], (TreeMerge{0, 2, 1, 2}));
  EXPECT_EQ(plan.tree[2].size, 4);
  EXPECT_NEAR(plan.tree[2].height, (5 + std::sqrt(9 + 20.25) + std::sqrt(18.0) + std::sqrt(9 + 12.25)) / 4, 1e-14);
}

TEST(HcSmoe, MergeAndRouterAreChosenEachForItself) {
  Recipe recipe = keeping(3);
  const auto first = [&](Merge merge, RouterMerge router) {
    recipe.merge = merge;
    recipe.router = router;
    return plan_layer(example(), recipe).clusters[0];
  };
  EXPECT_EQ(first(Merge::average, RouterMerge::frequency), (Cluster{{0, 2}, {0.5, 0.5}, {0.25, 0.75}, 2}));
  EXPECT_EQ(first(Merge::dominant, RouterMerge::average), (Cluster{{0, 2}, {0, 1}, {0.5, 0.5}, 2}));
  EXPECT_EQ(first(Merge::frequency, RouterMerge::representative), (Cluster{{0, 2}, {0.25, 0.75}, {0, 1}, 2}));
}

TEST(HcSmoe, NeverUsedExpertsWeighEqually) {
  ExpertStatistics statistics = example();
  statistics.routed_count.zero_();
  const LayerPlan plan = plan_layer(statistics, keeping(1));
  EXPECT_EQ(plan.clusters[0], (Cluster{{0, 1, 2, 3, 4}, {0.2, 0.2, 0.2, 0.2, 0.2}, {0.2, 0.2, 0.2, 0.2, 0.2}, 0}));
}

TEST(HcSmoe, MetricAndLinkageMatter) {
  // By direction, expert 3 belongs to expert 0; by distance, to expert 1.
  const ExpertStatistics statistics = statistics_of(1, {1, 0, 0, 2, 0, 9, 2, 0}, {1, 1, 1, 1});
  Recipe recipe = keeping(2);
  recipe.metric = Metric::cosine;
  EXPECT_EQ(plan_layer(statistics, recipe).clusters[0].members, (std::vector<int64_t>{0, 3}));
  recipe.metric = Metric::euclidean;
  EXPECT_EQ(plan_layer(statistics, recipe).clusters[0].members, (std::vector<int64_t>{0, 1, 3}));
  const auto height = [&](Linkage linkage) {
    recipe.linkage = linkage;
    return plan_layer(statistics, recipe).tree[2].height;
  };
  EXPECT_EQ(height(Linkage::single), 7);
  EXPECT_NEAR(height(Linkage::complete), std::sqrt(85.0), 1e-14);
}

TEST(HcSmoe, AllExpertsKept) {
  const LayerPlan plan = plan_layer(example(), keeping(5));
  ASSERT_EQ(plan.clusters.size(), 5u);
  for (int64_t e = 0; e < 5; e++) EXPECT_EQ(plan.clusters[e], (Cluster{{e}, {1}, {1}, e}));
}

TEST(HcSmoe, AShareIsResolvedForTheLayer) {
  Recipe recipe;
  recipe.experts.share = 0.5;
  EXPECT_EQ(plan_layer(example(), recipe).clusters.size(), 3u);  // floor(2.5 + 0.5)
}

TEST(HcSmoe, RefusesWhatCannotBeKept) {
  EXPECT_NE(error_of(example(), keeping(6)).find("layer 3 has 5 experts: 6 cannot be kept"), std::string::npos);
  EXPECT_NE(error_of(example(), keeping(6)).find("compression.experts"), std::string::npos);
  EXPECT_NE(error_of(example(), keeping(-1)).find("-1 cannot be kept"), std::string::npos);
  EXPECT_NE(error_of(example(), Recipe()).find("0 cannot be kept"), std::string::npos);  // neither a number nor a share
}

TEST(HcSmoe, RefusesAnUnknownMethod) {
  Recipe recipe = keeping(2);
  recipe.method = "k-means";
  EXPECT_NE(error_of(example(), recipe).find("unknown method \"k-means\""), std::string::npos);
  EXPECT_NE(error_of(example(), recipe).find("hc-smoe"), std::string::npos);
}

TEST(HcSmoe, RefusesStatisticsThatLackWhatItNeeds) {
  ExpertStatistics statistics = example();
  statistics.output_sum = at::Tensor();
  EXPECT_NE(error_of(statistics, keeping(2)).find("layer 3 have no output_sum"), std::string::npos);
  statistics = example();
  statistics.routed_count = at::Tensor();
  EXPECT_NE(error_of(statistics, keeping(2)).find("layer 3 have no routed_count"), std::string::npos);
  statistics = example();
  statistics.tokens = 0;
  EXPECT_NE(error_of(statistics, keeping(2)).find("no tokens"), std::string::npos);
  statistics = example();
  statistics.output_sum.mutable_data_ptr<double>()[5] = std::numeric_limits<double>::infinity();
  EXPECT_NE(error_of(statistics, keeping(2)).find("layer 3: the mean output of expert 2 is not finite"), std::string::npos);
}

TEST(HcSmoe, PlansAModelInNoTime) {
  std::mt19937_64 random(1);
  std::normal_distribution<double> normal;
  std::vector<double> outputs(60 * 2048);
  for (double& x : outputs) x = normal(random);
  std::vector<int64_t> counts(60);
  for (int64_t& count : counts) count = static_cast<int64_t>(random() % 1000);
  const ExpertStatistics statistics = statistics_of(65536, outputs, counts);
  const auto start = std::chrono::steady_clock::now();
  for (int layer = 0; layer < 24; layer++) EXPECT_EQ(plan_layer(statistics, keeping(30)).clusters.size(), 30u);
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
  std::printf("24 layers of 60 experts of 2048 channels: %.1f ms\n", took.count());
}

}  // namespace
}  // namespace hcsmoe

// Clusters of k-means, M-SMoE, router logits, capped and protected clustering, worked out by hand, ties included.
#include <gtest/gtest.h>

#include <cmath>

#include "plan/statistics_by_hand.h"

namespace hcsmoe {
namespace {

/// Experts whose mean outputs are these points.
ExpertStatistics at_points(const std::vector<double>& points, std::vector<int64_t> counts) {
  ExpertStatistics statistics = statistics_with_counts(std::move(counts));
  statistics.output_sum = tensor_of(points, {statistics.experts, static_cast<int64_t>(points.size()) / statistics.experts});
  return statistics;
}

ExpertStatistics on_a_line(const std::vector<double>& points) { return at_points(points, std::vector<int64_t>(points.size(), 1)); }

ExpertStatistics with_gram(std::vector<int64_t> counts, const std::vector<double>& gram) {
  ExpertStatistics statistics = statistics_with_counts(std::move(counts));
  statistics.router_logit_gram = tensor_of(gram, {statistics.experts, statistics.experts});
  return statistics;
}

Members kmeans_of(const ExpertStatistics& statistics, int64_t count, Metric metric = Metric::euclidean) {
  Recipe recipe = recipe_of("kmeans", count);
  recipe.metric = metric;
  return members_of(plan_layer(statistics, recipe));
}

TEST(KMeans, FarthestFirst) {
  const std::vector<double> line = {0, 1, 10, 11, 20, 22};
  // 11 is nearest to the mean; 0 and 22 are as far from it; then 22.
  EXPECT_EQ(farthest_first(line, 6, 1, 3, Metric::euclidean), (Experts{3, 0, 5}));
  EXPECT_EQ(kmeans_of(on_a_line(line), 3), (Members{{0, 1}, {2, 3}, {4, 5}}));
}

TEST(KMeans, CentresMove) {
  // The centres 0 and 1 give {0} and {1, 2, 9}; their means 0 and 4 give {0, 1, 2} and {9}: 2 is as far from both.
  EXPECT_EQ(kmeans(std::vector<double>{0, 1, 2, 9}, 4, 1, {0, 1}, Metric::euclidean), (Members{{0, 1, 2}, {3}}));
}

TEST(KMeans, TiesGoToTheFirstCentre) {
  EXPECT_EQ(kmeans(std::vector<double>{0, 2, 1}, 3, 1, {0, 1}, Metric::euclidean), (Members{{0, 2}, {1}}));
  EXPECT_EQ(kmeans(std::vector<double>{0, 2, 1}, 3, 1, {1, 0}, Metric::euclidean), (Members{{0}, {1, 2}}));
  EXPECT_EQ(kmeans_of(on_a_line({0, 2, 1}), 2), (Members{{0}, {1, 2}}));  // the first centre is 1, then 0
}

TEST(KMeans, EmptyClustersAreSeededAgain) {
  // Of three equal experts the first goes to the cluster that was left without one.
  EXPECT_EQ(kmeans_of(on_a_line({5, 5, 5, 9}), 3), (Members{{0}, {1, 2}, {3}}));
  EXPECT_EQ(kmeans_of(on_a_line({7, 7, 7, 7}), 3), (Members{{0}, {1}, {2, 3}}));
  // The farthest from its centre: both centres are 0, 9 is farther than 4.
  EXPECT_EQ(kmeans(std::vector<double>{0, 0, 4, 9}, 4, 1, {0, 1}, Metric::euclidean), (Members{{0, 1, 2}, {3}}));
}

TEST(KMeans, CosineComparesDirections) {
  const ExpertStatistics statistics = at_points({1, 0, 0, 2, 0, 9, 2, 0}, {1, 1, 1, 1});
  EXPECT_EQ(kmeans_of(statistics, 2, Metric::cosine), (Members{{0, 3}, {1, 2}}));
  EXPECT_EQ(kmeans_of(statistics, 2), (Members{{0, 1, 3}, {2}}));
  EXPECT_EQ(kmeans_of(at_points({0, 0, 0, 3, 0, 1}, {1, 1, 1}), 2, Metric::cosine), (Members{{0}, {1, 2}}));  // a zero row
}

TEST(KMeans, WeightsAreThoseOfTheRecipe) {
  Recipe recipe = recipe_of("kmeans", 2);
  const ExpertStatistics statistics = at_points({0, 1, 8}, {1, 3, 0});
  const LayerPlan plan = plan_layer(statistics, recipe);
  EXPECT_EQ(plan.clusters[0], (Cluster{{0, 1}, {0.25, 0.75}, {0.25, 0.75}, 1}));
  EXPECT_TRUE(plan.tree.empty());
  recipe.merge = Merge::average;
  recipe.router = RouterMerge::representative;
  EXPECT_EQ(plan_layer(statistics, recipe).clusters[0], (Cluster{{0, 1}, {0.5, 0.5}, {0, 1}, 1}));
}

TEST(KMeans, RandomCentresFollowTheSeed) {
  std::vector<double> points;
  for (int i = 0; i < 32; i++) points.push_back(std::fmod(i * 7.31, 10));
  Recipe recipe = recipe_of("kmeans", 8);
  recipe.init = Init::random;
  const LayerPlan first = plan_layer(on_a_line(points), recipe);
  EXPECT_EQ(plan_layer(on_a_line(points), recipe), first);
  recipe.seed = 1;
  EXPECT_NE(plan_layer(on_a_line(points), recipe), first);
}

TEST(KMeans, RefusesDistances) {
  Recipe recipe = recipe_of("kmeans", 1);
  recipe.feature = Feature::router_logits;
  EXPECT_HAS(error_of(with_gram({1, 1}, {1, 0, 0, 1}), recipe), "kmeans cannot use the feature router_logits");
  EXPECT_HAS(error_of(with_gram({1, 1}, {1, 0, 0, 1}), recipe), "kmeans takes the feature expert_output");
}

// Logits of lengths 2, 1, 1, 3; expert 2 has cosine 0.5 to 0 and 0.75 to 1; expert 3 has 0.25 to both.
ExpertStatistics four_experts() { return with_gram({5, 9, 5, 1}, {4, 0, 1, 1.5, 0, 1, 0.75, 0.75, 1, 0.75, 1, 0, 1.5, 0.75, 0, 9}); }

TEST(MSmoe, TheOthersJoinTheMostAlike) {
  const LayerPlan plan = plan_layer(four_experts(), recipe_of("m-smoe", 2));
  ASSERT_EQ(plan.clusters.size(), 2u);
  EXPECT_EQ(plan.clusters[0], (Cluster{{0, 3}, {5.0 / 6, 1.0 / 6}, {5.0 / 6, 1.0 / 6}, 0}));  // 3 is as much like 0 as like 1
  EXPECT_EQ(plan.clusters[1], (Cluster{{1, 2}, {9.0 / 14, 5.0 / 14}, {9.0 / 14, 5.0 / 14}, 1}));
  EXPECT_TRUE(plan.dropped.empty());
  EXPECT_TRUE(plan.tree.empty());
}

TEST(MSmoe, DominantExpertsAreTheMostUsed) {
  EXPECT_EQ(members_of(plan_layer(four_experts(), recipe_of("m-smoe", 3))), (Members{{0, 3}, {1}, {2}}));
  EXPECT_EQ(members_of(plan_layer(four_experts(), recipe_of("m-smoe", 1))), (Members{{0, 1, 2, 3}}));
  EXPECT_EQ(plan_layer(four_experts(), recipe_of("m-smoe", 1)).clusters[0].dominant, 1);
}

TEST(MSmoe, ProtectedExpertsStayAlone) {
  Recipe recipe = recipe_of("m-smoe", 2);
  recipe.protect.experts = {1};
  EXPECT_EQ(members_of(plan_layer(four_experts(), recipe)), (Members{{0, 2, 3}, {1}}));
}

TEST(MSmoe, NeedsTheLogits) { EXPECT_HAS(error_of(statistics_with_counts({1, 1}), recipe_of("m-smoe", 1)), "no router_logit_gram"); }

TEST(RouterLogits, Distances) {
  // Logits over two tokens: (0, 0), (3, 4), (0, 1).
  const ExpertStatistics statistics = with_gram({1, 1, 1}, {0, 0, 0, 0, 25, 4, 0, 4, 1});
  Recipe recipe = recipe_of("hc-smoe", 2);
  recipe.feature = Feature::router_logits;
  recipe.linkage = Linkage::complete;
  Tree tree = plan_layer(statistics, recipe).tree;
  EXPECT_EQ(tree[0], (TreeMerge{0, 2, 1, 2}));
  EXPECT_EQ(tree[1].height, 5);
  recipe.linkage = Linkage::single;
  EXPECT_EQ(plan_layer(statistics, recipe).tree[1].height, std::sqrt(18.0));
  recipe.metric = Metric::cosine;
  tree = plan_layer(statistics, recipe).tree;
  EXPECT_EQ(tree[0].a, 1);
  EXPECT_EQ(tree[0].b, 2);
  EXPECT_NEAR(tree[0].height, 0.2, 1e-15);
  EXPECT_EQ(tree[1].height, 1);  // a zero row is at distance 1 from all
}

TEST(RouterLogits, RoundingNeverGivesANegativeDistance) {
  const double third = 1.0 / 3;
  Recipe recipe = recipe_of("hc-smoe", 1);
  recipe.feature = Feature::router_logits;
  const ExpertStatistics statistics = with_gram({1, 1}, {third, std::nextafter(third, 1), std::nextafter(third, 1), third});
  EXPECT_EQ(plan_layer(statistics, recipe).tree[0].height, 0);
  recipe.metric = Metric::cosine;
  EXPECT_EQ(plan_layer(statistics, recipe).tree[0].height, 0);
}

Members capped(const ExpertStatistics& statistics, int64_t count, int64_t cap, Linkage linkage = Linkage::average) {
  Recipe recipe = recipe_of("hc-smoe", count);
  recipe.max_cluster_size = cap;
  recipe.linkage = linkage;
  const LayerPlan plan = plan_layer(statistics, recipe);
  EXPECT_TRUE(plan.tree.empty());
  return members_of(plan);
}

TEST(MaxClusterSize, SkipsPairsThatWouldBeTooLarge) {
  const ExpertStatistics statistics = on_a_line({0, 1, 3, 4.5, 100, 110});
  EXPECT_EQ(members_of(plan_layer(statistics, recipe_of("hc-smoe", 3))), (Members{{0, 1, 2, 3}, {4}, {5}}));
  EXPECT_EQ(capped(statistics, 3, 6), (Members{{0, 1, 2, 3}, {4}, {5}}));
  EXPECT_EQ(capped(statistics, 3, 3), (Members{{0, 1}, {2, 3}, {4, 5}}));  // {0, 1} and {2, 3} do not fit
  EXPECT_EQ(capped(statistics, 4, 3), (Members{{0, 1}, {2, 3}, {4}, {5}}));
  EXPECT_EQ(capped(statistics, 3, 2), (Members{{0, 1}, {2, 3}, {4, 5}}));
  EXPECT_EQ(capped(statistics, 6, 1), (Members{{0}, {1}, {2}, {3}, {4}, {5}}));
}

TEST(MaxClusterSize, TakesClustersApartWhereNoPairFits) {
  // {0, 1}, {2, 3} and {4, 5} are left, no two of which fit in three. The first is taken apart: 0 goes to {2, 3}, which is then full.
  for (const Linkage linkage : {Linkage::single, Linkage::complete, Linkage::average, Linkage::ward}) {
    EXPECT_EQ(capped(on_a_line({0, 1, 2.5, 3.5, 100, 101}), 2, 3, linkage), (Members{{0, 2, 3}, {1, 4, 5}}));
  }
}

TEST(MaxClusterSize, RefusesTooFewClusters) {
  Recipe recipe = recipe_of("hc-smoe", 2);
  recipe.max_cluster_size = 2;
  EXPECT_HAS(error_of(on_a_line({0, 1, 2, 3, 4, 5, 6}), recipe), "layer 3: 7 experts do not fit in 2 clusters of at most 2");
  EXPECT_HAS(error_of(on_a_line({0, 1, 2, 3, 4, 5, 6}), recipe), "set compression.max_cluster_size to 4 or more");
}

TEST(Protect, ExpertsStayAlone) {
  const ExpertStatistics statistics = on_a_line({0, 1, 3, 20, 30});
  Recipe recipe = recipe_of("hc-smoe", 3);
  recipe.protect.experts = {1, 3};
  LayerPlan plan = plan_layer(statistics, recipe);
  EXPECT_EQ(members_of(plan), (Members{{0, 2, 4}, {1}, {3}}));
  EXPECT_TRUE(plan.tree.empty());
  recipe.experts.count = 4;
  EXPECT_EQ(members_of(plan_layer(statistics, recipe)), (Members{{0, 2}, {1}, {3}, {4}}));
  recipe.max_cluster_size = 2;
  EXPECT_EQ(members_of(plan_layer(statistics, recipe)), (Members{{0, 2}, {1}, {3}, {4}}));
  recipe.experts.count = 3;
  EXPECT_HAS(error_of(statistics, recipe), "3 experts do not fit in 1 clusters of at most 2");
  recipe.max_cluster_size = 0;
  recipe.method = "kmeans";
  EXPECT_EQ(members_of(plan_layer(statistics, recipe)), (Members{{0, 2, 4}, {1}, {3}}));
}

TEST(Protect, AllOrTooMany) {
  const ExpertStatistics statistics = on_a_line({0, 1, 2});
  Recipe recipe = recipe_of("hc-smoe", 3);
  recipe.protect.experts = {0, 1, 2};
  EXPECT_EQ(members_of(plan_layer(statistics, recipe)), (Members{{0}, {1}, {2}}));
  recipe.experts.count = 2;
  EXPECT_HAS(error_of(statistics, recipe), "2 experts are to be kept, and 3 are protected");
  recipe.protect.experts = {0, 1};
  EXPECT_HAS(error_of(statistics, recipe), "2 experts are to be kept, and 2 are protected, which leaves none for the other 1");
}

TEST(Protect, ByNorm) {
  ExpertStatistics statistics = on_a_line({0, 1, 2, 3});
  statistics.routed_count = statistics_with_counts({2, 0, 4, 1}).routed_count;
  statistics.routed_output_norm_sum = tensor_of({6, 0, 8, 3}, {4});  // means 3, never used, 2, 3
  Recipe recipe = recipe_of("hc-smoe", 2);
  recipe.protect.top = 1;
  EXPECT_EQ(members_of(plan_layer(statistics, recipe)), (Members{{0}, {1, 2, 3}}));
  recipe.experts.count = 3;
  recipe.protect.top = 2;
  EXPECT_EQ(members_of(plan_layer(statistics, recipe)), (Members{{0}, {1, 2}, {3}}));
}

TEST(Methods, AreTheOnesThatTheConfigurationKnows) {
  ASSERT_EQ(plan_methods().size(), methods().size());
  for (size_t i = 0; i < methods().size(); i++) EXPECT_EQ(plan_methods()[i].name, methods()[i].name);
}

}  // namespace
}  // namespace hcsmoe

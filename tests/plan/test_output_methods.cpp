// Methods that go by the outputs of single tokens or by soft clusters: hand-worked cases, and what they refuse. test_against_numpy.py has
// the random ones.
#include <gtest/gtest.h>

#include <cmath>

#include "plan/statistics_by_hand.h"
#include "plan/subset_errors.h"

namespace hcsmoe {
namespace {

at::Tensor floats(std::vector<double> values, std::vector<int64_t> shape) {
  return tensor_of(std::move(values), std::move(shape)).to(at::kFloat);
}

/// Three experts whose outputs are 1, 3 and 10 times the same unit vector, on two tokens; logits favour 0 and 1, then 1 and 2.
ExpertStatistics three_experts() {
  ExpertStatistics statistics = statistics_with_counts({1, 2, 1});
  statistics.tokens = 2;
  statistics.sample_input = floats({0, 0}, {2, 1});
  const double two = std::log(2.0);
  statistics.sample_logits = floats({two, two, 0, 0, two, two}, {2, 3});
  statistics.token_output_gram = floats({1, 3, 10, 9, 30, 100, 1, 3, 10, 9, 30, 100}, {2, 6});
  return statistics;
}

RoutingRule best(int64_t top_k, bool renormalise = false) { return {.top_k = top_k, .renormalise = renormalise}; }

std::vector<double> errors_of(const ExpertStatistics& statistics, const RoutingRule& rule, const ExpertSets& sets) {
  const at::Tensor &logits = statistics.sample_logits, &gram = statistics.token_output_gram;
  return subset_errors({logits.const_data_ptr<float>(), static_cast<size_t>(logits.numel())},
                       {gram.const_data_ptr<float>(), static_cast<size_t>(gram.numel())}, statistics.experts, rule, sets);
}

std::vector<int64_t> kept(const LayerPlan& plan) {
  std::vector<int64_t> experts;
  for (const Cluster& cluster : plan.clusters) experts.push_back(cluster.members.at(0));
  return experts;
}

TEST(OPrune, ErrorsByHand) {
  // Scores of the tokens: 2/5, 2/5, 1/5 and 1/5, 2/5, 2/5. With top-1 they go to experts 0 and 1 (ties: the smaller index).
  const ExpertStatistics statistics = three_experts();
  const ExpertSets sets{2, {0, 1, 0, 2, 1, 2}};
  const std::vector<double> errors = errors_of(statistics, best(1), sets);
  // {0, 1}: 2/4 and 2/3 instead of 2/5 and 2/5. {0, 2}: 2/3 of 1, then 2/3 of 10 instead of 2/5 of 3. {1, 2}: 2/3 and 2/4 of 3.
  const double first = std::pow(0.5 - 0.4, 2) + std::pow(2.0 - 1.2, 2);
  const double second = std::pow(2.0 / 3 - 0.4, 2) + std::pow(20.0 / 3 - 1.2, 2);
  const double third = std::pow(2.0 - 0.4, 2) + std::pow(1.5 - 1.2, 2);
  EXPECT_NEAR(errors[0], first, 1e-6);
  EXPECT_NEAR(errors[1], second, 1e-5);
  EXPECT_NEAR(errors[2], third, 1e-6);
  // All of them: nothing changes. Renormalised top-1 is 1 whatever else is there.
  EXPECT_EQ(errors_of(statistics, best(2), {3, {0, 1, 2}}), (std::vector<double>{0}));
  const std::vector<double> alone = errors_of(statistics, best(1, true), sets);
  EXPECT_EQ(alone[0], 0);
  EXPECT_NEAR(alone[1], 49, 1e-5);
  EXPECT_NEAR(alone[2], 4, 1e-6);
}

TEST(OPrune, TheScaleOfTheRuleCounts) {
  RoutingRule rule = best(1, true);
  const ExpertSets sets{2, {1, 2}};
  const double once = errors_of(three_experts(), rule, sets)[0];
  rule.scale = 3;
  EXPECT_NEAR(errors_of(three_experts(), rule, sets)[0], 9 * once, 1e-5);
}

TEST(OPrune, KeepsTheSetOfTheLeastError) {
  const LayerPlan plan = plan_layer(three_experts(), recipe_of("o-prune", 2), best(1));
  EXPECT_EQ(kept(plan), (Experts{0, 1}));
  EXPECT_EQ(plan.dropped, (Experts{2}));
  EXPECT_FALSE(plan.soft);
  Recipe recipe = recipe_of("o-prune", 2);
  recipe.protect.experts = {2};
  EXPECT_EQ(kept(plan_layer(three_experts(), recipe, best(1))), (Experts{1, 2}));
  recipe.protect.experts = {1, 2};
  EXPECT_EQ(kept(plan_layer(three_experts(), recipe, best(1))), (Experts{1, 2}));
  // Without a difference, the first set: experts that are copies of each other.
  ExpertStatistics copies = three_experts();
  copies.sample_logits = floats({0, 0, 0, 0, 0, 0}, {2, 3});
  copies.token_output_gram = floats(std::vector<double>(12, 1), {2, 6});
  EXPECT_EQ(kept(plan_layer(copies, recipe_of("o-prune", 2), best(1, true))), (Experts{0, 1}));
}

TEST(OPrune, SetsByLot) {
  const int64_t E = 24, S = 5;
  ExpertStatistics statistics = statistics_with_counts(std::vector<int64_t>(E, 1));
  std::vector<double> logits, gram;
  for (int64_t t = 0; t < S; t++) {
    for (int64_t e = 0; e < E; e++) {
      logits.push_back(std::sin(static_cast<double>(7 * t + 3 * e)));
      for (int64_t f = e; f < E; f++) gram.push_back(e == f ? 1 : 0);
    }
  }
  statistics.sample_input = floats(std::vector<double>(S, 0), {S, 1});
  statistics.sample_logits = floats(logits, {S, E});
  statistics.token_output_gram = floats(gram, {S, E * (E + 1) / 2});
  Recipe recipe = recipe_of("o-prune", 12);  // C(24, 12) is 2,704,156
  const auto error = [&](const Recipe& r) {
    ExpertSets set{12, {}};
    for (const int64_t e : kept(plan_layer(statistics, r, best(2)))) set.experts.push_back(static_cast<int32_t>(e));
    EXPECT_EQ(set.count(), 1);
    return errors_of(statistics, best(2), set)[0];
  };
  recipe.candidates = 1;
  const double one = error(recipe);
  recipe.candidates = 300;
  EXPECT_LT(error(recipe), one);
  const LayerPlan first = plan_layer(statistics, recipe, best(2));
  EXPECT_EQ(plan_layer(statistics, recipe, best(2)), first);
  recipe.seed++;
  EXPECT_NE(plan_layer(statistics, recipe, best(2)), first);
}

TEST(OPrune, Refusals) {
  const auto error = [](const ExpertStatistics& statistics, int64_t count, const RoutingRule& rule) -> std::string {
    try {
      plan_layer(statistics, recipe_of("o-prune", count), rule);
    } catch (const UserError& refused) {
      return refused.what();
    }
    return "accepted";
  };
  EXPECT_HAS(error(three_experts(), 1, best(2)), "layer 3: 1 experts are to be kept, but a token goes to the best 2");
  ExpertStatistics statistics = three_experts();
  statistics.token_output_gram = at::Tensor();
  EXPECT_HAS(error(statistics, 2, best(1)),
             "the statistics of layer 3 have no token_output_gram, which method o-prune with merge frequency needs");
  EXPECT_HAS(error(statistics, 2, best(1)), "hcsmoe_dist collect CONFIG --all");
  statistics = three_experts();
  statistics.sample_logits = floats({0, 0, 0, 0, 0, HUGE_VAL}, {2, 3});
  EXPECT_HAS(error(statistics, 2, best(1)), "the sample_logits of sampled token 1 is not finite");
}

ExpertStatistics with_cka(std::vector<double> cka) {
  const auto E = static_cast<int64_t>(std::sqrt(static_cast<double>(cka.size())));
  ExpertStatistics statistics = statistics_with_counts(std::vector<int64_t>(static_cast<size_t>(E), 1));
  statistics.output_cka = tensor_of(std::move(cka), {E, E});
  return statistics;
}

TEST(Dek, TheMostSimilarPairUnitesItsGroups) {
  const ExpertStatistics statistics = with_cka({1, .9, .1, .2, .9, 1, .3, .8, .1, .3, 1, .7, .2, .8, .7, 1});
  Recipe recipe = default_recipe("dek");
  recipe.experts.count = 3;
  EXPECT_EQ(members_of(plan_layer(statistics, recipe)), (Members{{0, 1}, {2}, {3}}));
  recipe.experts.count = 2;
  EXPECT_EQ(members_of(plan_layer(statistics, recipe)), (Members{{0, 1, 3}, {2}}));  // by 1 and 3, though 0 and 3 are not alike
  EXPECT_EQ(plan_layer(statistics, recipe).clusters[0].weights, (std::vector<double>(3, 1.0 / 3)));
  EXPECT_EQ(plan_layer(statistics, recipe).clusters[0].router_weights, (std::vector<double>(3, 1.0 / 3)));
  recipe.max_cluster_size = 2;
  EXPECT_EQ(members_of(plan_layer(statistics, recipe)), (Members{{0, 1}, {2, 3}}));
  recipe.max_cluster_size = 0;
  recipe.protect.experts = {1};
  EXPECT_EQ(members_of(plan_layer(statistics, recipe)), (Members{{0, 2, 3}, {1}}));
}

TEST(Dek, Refusals) {
  Recipe recipe = default_recipe("dek");
  recipe.experts.count = 1;
  EXPECT_HAS(error_of(statistics_with_counts({1, 2}), recipe), "have no output_cka, which method dek with merge average needs");
  recipe.feature = Feature::weight_cka;
  EXPECT_HAS(error_of(with_cka({1, 0, 0, 1}), recipe), "have no weight_cka, which method dek with merge average needs");
  recipe.feature = Feature::router_logits;
  EXPECT_HAS(error_of(with_cka({1, 0, 0, 1}), recipe), "dek cannot use the feature router_logits");
}

ExpertStatistics on_a_line(std::vector<double> points) {
  const auto E = static_cast<int64_t>(points.size());
  ExpertStatistics statistics = statistics_with_counts(std::vector<int64_t>(points.size(), 1));
  statistics.output_sum = tensor_of(std::move(points), {E, 1});
  return statistics;
}

TEST(FuzzyCmeans, EveryExpertInEveryCluster) {
  const LayerPlan plan = plan_layer(on_a_line({0, 1, 9, 10}), recipe_of("fuzzy-cmeans", 2));
  EXPECT_TRUE(plan.soft);
  ASSERT_EQ(plan.clusters.size(), 2u);
  for (const Cluster& cluster : plan.clusters) {
    EXPECT_EQ(cluster.members, (Experts{0, 1, 2, 3}));
    EXPECT_EQ(cluster.router_weights, cluster.weights);
    EXPECT_NEAR(cluster.weights[0] + cluster.weights[1] + cluster.weights[2] + cluster.weights[3], 1, 1e-15);
  }
  // Mirror images of each other; most of the weight is on the near experts.
  for (size_t e = 0; e < 4; e++) EXPECT_NEAR(plan.clusters[0].weights[e], plan.clusters[1].weights[3 - e], 1e-8);
  EXPECT_GT(plan.clusters[0].weights[0] + plan.clusters[0].weights[1], 0.95);
  EXPECT_LT(plan.clusters[0].dominant, 2);
  EXPECT_GE(plan.clusters[1].dominant, 2);
}

TEST(FuzzyCmeans, ProtectedExpertsStayAlone) {
  Recipe recipe = recipe_of("fuzzy-cmeans", 3);
  recipe.protect.experts = {1};
  const LayerPlan plan = plan_layer(on_a_line({0, 1, 9, 10}), recipe);
  EXPECT_EQ(members_of(plan), (Members{{0, 2, 3}, {0, 2, 3}, {1}}));
  EXPECT_EQ(plan.clusters[2], (Cluster{{1}, {1}, {1}, 1}));
}

TEST(FuzzyCmeans, AsManyClustersAsExperts) {
  const LayerPlan plan = plan_layer(on_a_line({0, 1, 9, 10}), recipe_of("fuzzy-cmeans", 4));
  EXPECT_EQ(members_of(plan), (Members{{0}, {1}, {2}, {3}}));  // each on its centre: no weight elsewhere
}

TEST(Needs, OnlyWhatTheMethodReads) {
  const auto needs = [](const std::string& method, Feature feature) {
    Recipe recipe = default_recipe(method);
    recipe.feature = feature;
    return statistics_needed(recipe).names();
  };
  EXPECT_EQ(needs("hc-smoe", Feature::expert_output), "output_sum");
  EXPECT_EQ(needs("hc-smoe", Feature::expert_output_tokens), "token_output_gram");
  EXPECT_EQ(needs("hc-smoe", Feature::router_logits), "");
  EXPECT_EQ(needs("hc-smoe", Feature::weight), "weight_gram");
  EXPECT_EQ(needs("dek", Feature::cka), "output_cka");
  EXPECT_EQ(needs("dek", Feature::weight_cka), "weight_cka");
  EXPECT_EQ(needs("o-prune", Feature::expert_output), "token_output_gram");
  for (const char* method : {"m-smoe", "f-prune", "s-prune", "reap", "ean", "random"}) {
    EXPECT_EQ(needs(method, Feature::expert_output), "") << method;
  }
}

}  // namespace
}  // namespace hcsmoe

// What each pruning method keeps, worked out by hand, ties included.
#include <gtest/gtest.h>

#include <set>

#include "plan/draws.h"
#include "plan/statistics_by_hand.h"

namespace hcsmoe {
namespace {

/// Mean norms 2, 0 (never used), 1, 3, 1.5; mean weighted norms 0.5, 0, 0.5, 0.5, 1.5.
ExpertStatistics example() {
  ExpertStatistics statistics = statistics_with_counts({4, 0, 7, 4, 2});
  statistics.router_probability_sum = tensor_of({1, 5, 5, 2, 5}, {5});
  statistics.routed_output_norm_sum = tensor_of({8, 0, 7, 12, 3}, {5});
  statistics.weighted_output_norm_sum = tensor_of({2, 0, 3.5, 2, 3}, {5});
  return statistics;
}

Experts kept(const LayerPlan& plan) {
  Experts experts;
  for (const Cluster& cluster : plan.clusters) {
    EXPECT_EQ(cluster, (Cluster{{cluster.dominant}, {1}, {1}, cluster.dominant}));
    experts.push_back(cluster.dominant);
  }
  return experts;
}

Experts kept_by(const std::string& method, int64_t count, const Protect& protect = {}) {
  Recipe recipe = recipe_of(method, count);
  recipe.protect = protect;
  return kept(plan_layer(example(), recipe));
}

TEST(Pruning, TheOthersAreDropped) {
  const LayerPlan plan = plan_layer(example(), recipe_of("f-prune", 2));
  EXPECT_EQ(plan.layer, 3);
  EXPECT_EQ(plan.experts, 5);
  EXPECT_EQ(kept(plan), (Experts{0, 2}));
  EXPECT_EQ(plan.dropped, (Experts{1, 3, 4}));
  EXPECT_TRUE(plan.tree.empty());
  EXPECT_EQ(layer_plan_from_json(layer_plan_to_json(plan), "layer"), plan);
}

TEST(Pruning, ByUse) {
  EXPECT_EQ(kept_by("f-prune", 1), (Experts{2}));
  EXPECT_EQ(kept_by("f-prune", 2), (Experts{0, 2}));  // 0 and 3 are as often used
  EXPECT_EQ(kept_by("f-prune", 4), (Experts{0, 2, 3, 4}));
}

TEST(Pruning, ByRouterProbability) {
  EXPECT_EQ(kept_by("s-prune", 2), (Experts{1, 2}));  // 1, 2 and 4 are equal
  EXPECT_EQ(kept_by("s-prune", 4), (Experts{1, 2, 3, 4}));
}

TEST(Pruning, Reap) {
  EXPECT_EQ(kept_by("reap", 1), (Experts{4}));
  EXPECT_EQ(kept_by("reap", 2), (Experts{0, 4}));  // 0, 2 and 3 are equal
  EXPECT_EQ(kept_by("reap", 4), (Experts{0, 2, 3, 4}));
}

TEST(Pruning, Ean) {
  EXPECT_EQ(kept_by("ean", 1), (Experts{3}));
  EXPECT_EQ(kept_by("ean", 3), (Experts{0, 2, 3}));
}

TEST(Pruning, AllExpertsKept) {
  for (const char* method : {"f-prune", "s-prune", "reap", "ean", "random"}) {
    const LayerPlan plan = plan_layer(example(), recipe_of(method, 5));
    EXPECT_EQ(kept(plan), (Experts{0, 1, 2, 3, 4}));
    EXPECT_TRUE(plan.dropped.empty());
  }
}

TEST(Pruning, MergeAndRouterDoNotMatter) {
  Recipe recipe = recipe_of("ean", 3);
  recipe.merge = Merge::average;
  recipe.router = RouterMerge::representative;
  EXPECT_EQ(plan_layer(example(), recipe), plan_layer(example(), recipe_of("ean", 3)));
}

TEST(Pruning, ProtectedExpertsAreKept) {
  EXPECT_EQ(kept_by("f-prune", 2, {{1}, 0}), (Experts{1, 2}));
  EXPECT_EQ(kept_by("f-prune", 1, {{1}, 0}), (Experts{1}));
  EXPECT_EQ(kept_by("s-prune", 3, {{}, 2}), (Experts{0, 1, 3}));  // 0 and 3 have the largest mean norms
  for (uint64_t seed = 0; seed < 20; seed++) {
    Recipe recipe = recipe_of("random", 2);
    recipe.seed = seed;
    recipe.protect.experts = {4};
    EXPECT_EQ(kept(plan_layer(example(), recipe)).back(), 4);
  }
}

TEST(Pruning, RefusesWhatCannotBeProtected) {
  Recipe recipe = recipe_of("f-prune", 2);
  recipe.protect.experts = {0, 1, 2};
  EXPECT_HAS(error_of(example(), recipe), "layer 3: 2 experts are to be kept, and 3 are protected");
  recipe.protect.experts = {5};
  EXPECT_HAS(error_of(example(), recipe), "layer 3 has no expert 5 to protect");
  recipe.protect = {{}, 6};
  EXPECT_HAS(error_of(example(), recipe), "layer 3 has 5 experts: 6 cannot be protected");
}

TEST(Pruning, RefusesStatisticsThatLackWhatItNeeds) {
  const ExpertStatistics counts = statistics_with_counts({1, 2});
  EXPECT_HAS(error_of(counts, recipe_of("s-prune", 1)), "layer 3 have no router_probability_sum of 2 experts");
  EXPECT_HAS(error_of(counts, recipe_of("reap", 1)), "no weighted_output_norm_sum");
  EXPECT_HAS(error_of(counts, recipe_of("ean", 1)), "no routed_output_norm_sum");
  ExpertStatistics bad = example();
  bad.routed_output_norm_sum.mutable_data_ptr<double>()[3] = HUGE_VAL;
  EXPECT_HAS(error_of(bad, recipe_of("ean", 1)), "layer 3: the routed_output_norm_sum of expert 3 is not finite");
  bad = example();
  bad.routed_count = at::Tensor();
  EXPECT_HAS(error_of(bad, recipe_of("f-prune", 1)), "layer 3 have no routed_count");
}

TEST(Draws, AreSplitMix64) {
  EXPECT_EQ(split_mix(0), 0xe220a8397b1dcdafu);  // the generator's published first output
  const std::vector<uint64_t> draws = expert_draws(42, 3, 4);
  EXPECT_EQ(draws[2], split_mix(split_mix(split_mix(42) ^ 3) ^ 2));
}

TEST(Draws, KeepEveryExpertEquallyOften) {
  std::vector<int> times(5, 0);
  std::set<Experts> sets;
  for (uint64_t seed = 0; seed < 4000; seed++) {
    Recipe recipe = recipe_of("random", 2);
    recipe.seed = seed;
    const Experts experts = kept(plan_layer(example(), recipe));
    for (const int64_t e : experts) times[e]++;
    sets.insert(experts);
  }
  for (const int count : times) EXPECT_NEAR(count, 1600, 150);  // almost five standard deviations
  EXPECT_EQ(sets.size(), 10u);
}

TEST(Draws, LayersDiffer) {
  std::set<Experts> sets;
  for (int64_t layer = 0; layer < 100; layer++) {
    ExpertStatistics statistics = example();
    statistics.layer = layer;
    sets.insert(kept(plan_layer(statistics, recipe_of("random", 2))));
  }
  EXPECT_EQ(sets.size(), 10u);
}

}  // namespace
}  // namespace hcsmoe

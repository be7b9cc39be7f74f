// plan.json: there and back, and what a hand-edited file may get wrong.
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include "hcsmoe/error.h"
#include "hcsmoe/families.h"
#include "hcsmoe/plan.h"
#include "support/temporary_folder.h"

namespace hcsmoe {
namespace {

using nlohmann::ordered_json;

Plan example() {
  Plan plan;
  plan.recipe.experts.count = 2;
  plan.recipe.metric = Metric::cosine;
  plan.recipe.linkage = Linkage::ward;
  plan.origin = {"0123abcd", "ffee", "float32"};
  LayerPlan layer;
  layer.layer = 3;
  layer.experts = 5;
  layer.clusters = {{{0, 4}, {0.1, 0.9}, {0.5, 0.5}, 4}, {{1, 2}, {1.0 / 3, 2.0 / 3}, {0, 1}, 2}};
  layer.dropped = {3};
  layer.tree = {{1, 2, 0.1, 2}, {0, 4, 1e-300, 2}, {3, 6, 1.0 / 3, 3}, {5, 7, 12345.678901234567, 5}};
  plan.layers.push_back(layer);
  layer.layer = 5;
  layer.tree.clear();
  plan.layers.push_back(layer);
  return plan;
}

std::string error_of(const std::string& text) {
  try {
    plan_from_json(text, "plan.json");
  } catch (const UserError& error) {
    return error.what();
  }
  return "accepted";
}

/// Of the example after an edit of its first layer.
std::string error_after(const std::function<void(ordered_json&)>& edit_layer) {
  ordered_json json = ordered_json::parse(plan_to_json(example()));
  edit_layer(json["layers"][0]);
  return error_of(json.dump());
}

#define EXPECT_HAS(text, part) EXPECT_NE(std::string(text).find(part), std::string::npos) << (text)

/// Two clusters that share experts.
Plan soft_example() {
  Plan plan = example();
  plan.recipe.method = "fuzzy-cmeans";
  for (LayerPlan& layer : plan.layers) {
    layer.soft = true;
    layer.clusters = {{{0, 1, 4}, {0.1, 0.2, 0.7}, {0.1, 0.2, 0.7}, 4}, {{0, 2}, {0.25, 0.75}, {0.25, 0.75}, 2}};
    layer.tree.clear();
  }
  return plan;
}

TEST(PlanJson, SoftPlans) {
  const Plan plan = soft_example();
  const Plan back = plan_from_json(plan_to_json(plan), "plan.json");
  EXPECT_EQ(back.layers, plan.layers);
  EXPECT_EQ(layer_plan_from_json(layer_plan_to_json(plan.layers[0]), "a layer"), plan.layers[0]);
  EXPECT_EQ(plan_to_json(example()).find("soft"), std::string::npos);
  const auto error_after_edit = [&](const std::function<void(ordered_json&)>& edit) {
    ordered_json json = ordered_json::parse(plan_to_json(plan));
    edit(json["layers"][0]);
    return error_of(json.dump());
  };
  EXPECT_HAS(error_after_edit([](auto& layer) { layer.erase("soft"); }), "layer 3, cluster 1: expert 0 is also in cluster 0");
  EXPECT_HAS(error_after_edit([](auto& layer) { layer["soft"] = false; }), "expert 0 is also in cluster 0");
  EXPECT_HAS(error_after_edit([](auto& layer) { layer["soft"] = 1; }), "\"soft\" must be true or false, found 1");
  EXPECT_HAS(error_after_edit([](auto& layer) { layer["dropped"] = {3, 4}; }), "\"dropped\": expert 4 is also in cluster 0");
  EXPECT_HAS(error_after_edit([](auto& layer) { layer["dropped"] = ordered_json::array(); }), "expert 3 is in no cluster");
  EXPECT_HAS(error_after_edit([](auto& layer) { layer["clusters"][0]["members"] = {1, 2, 4}; }), "ordered by their smallest member");
  EXPECT_HAS(error_after_edit([](auto& layer) { layer["clusters"][0]["weights"] = {0.1, 0.2, 0.6}; }), "sum to 0.9, not to 1");
}

TEST(PlanJson, IsReadable) {
  const std::string expected = R"({
  "format": "hcsmoe-plan/1",
  "recipe": {"method": "hc-smoe", "experts": 2, "feature": "expert_output", "metric": "cosine", "linkage": "ward", "merge": "frequency", "router": "frequency", "reconstruction": "none", "propagate": "original", "rounds": 1, "init": "farthest", "seed": 42, "max_cluster_size": 0, "candidates": 10000, "protect": []},
  "origin": {"checkpoint": "0123abcd", "calibration": "ffee", "dtype": "float32"},
  "layers": [
    {
      "layer": 3,
      "experts": 5,
      "clusters": [
        {"members": [0, 4], "weights": [0.1, 0.9], "router_weights": [0.5, 0.5], "dominant": 4},
        {"members": [1, 2], "weights": [0.3333333333333333, 0.6666666666666666], "router_weights": [0.0, 1.0], "dominant": 2}
      ],
      "dropped": [3],
      "tree": [[1, 2, 0.1, 2], [0, 4, 1e-300, 2], [3, 6, 0.3333333333333333, 3], [5, 7, 12345.678901234567, 5]]
    },
    {
      "layer": 5,
      "experts": 5,
      "clusters": [
        {"members": [0, 4], "weights": [0.1, 0.9], "router_weights": [0.5, 0.5], "dominant": 4},
        {"members": [1, 2], "weights": [0.3333333333333333, 0.6666666666666666], "router_weights": [0.0, 1.0], "dominant": 2}
      ],
      "dropped": [3],
      "tree": []
    }
  ]
}
)";
  EXPECT_EQ(plan_to_json(example()), expected);
}

TEST(PlanJson, ThereAndBack) {
  const Plan plan = example(), back = plan_from_json(plan_to_json(plan), "plan.json");
  EXPECT_EQ(back.layers, plan.layers);
  EXPECT_EQ(back.origin, plan.origin);
  EXPECT_EQ(plan_to_json(back), plan_to_json(plan));
  EXPECT_EQ(layer_plan_from_json(layer_plan_to_json(plan.layers[0]), "layer"), plan.layers[0]);

  Plan by_share = plan;
  by_share.recipe.experts = {0, 1.0};
  EXPECT_EQ(plan_from_json(plan_to_json(by_share), "plan.json").recipe.experts.share, 1.0);
  EXPECT_EQ(plan_from_json(plan_to_json(by_share), "plan.json").recipe.experts.count, 0);
}

TEST(PlanJson, RecipeThereAndBack) {
  Plan plan = example();
  const auto back = [&] { return plan_from_json(plan_to_json(plan), "plan.json").recipe; };
  plan.recipe.method = "kmeans";
  plan.recipe.feature = Feature::router_logits;
  plan.recipe.merge = Merge::zipit;
  plan.recipe.router = RouterMerge::fitted;
  plan.recipe.reconstruction = Reconstruction::full;
  plan.recipe.propagate = Propagate::compressed;
  plan.recipe.rounds = 3;
  plan.recipe.init = Init::random;
  plan.recipe.seed = std::numeric_limits<uint64_t>::max();
  plan.recipe.max_cluster_size = 7;
  plan.recipe.protect.experts = {1, 4};
  EXPECT_EQ(back().method, "kmeans");
  EXPECT_EQ(back().feature, Feature::router_logits);
  EXPECT_EQ(back().merge, Merge::zipit);
  EXPECT_EQ(back().router, RouterMerge::fitted);
  EXPECT_EQ(back().reconstruction, Reconstruction::full);
  EXPECT_EQ(back().propagate, Propagate::compressed);
  EXPECT_EQ(back().rounds, 3);
  EXPECT_EQ(back().init, Init::random);
  EXPECT_EQ(back().seed, std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(back().max_cluster_size, 7);
  EXPECT_EQ(back().protect, plan.recipe.protect);
  plan.recipe.protect = {{}, 3};
  EXPECT_EQ(back().protect, plan.recipe.protect);
}

// Plans of before these keys were there.
TEST(PlanJson, MissingRecipeKeysAreDefaults) {
  ordered_json json = ordered_json::parse(plan_to_json(example()));
  for (const char* key : {"reconstruction", "propagate", "rounds", "init", "seed", "max_cluster_size", "protect"})
    json["recipe"].erase(key);
  const Recipe recipe = plan_from_json(json.dump(), "plan.json").recipe;
  EXPECT_EQ(recipe.reconstruction, Reconstruction::none);
  EXPECT_EQ(recipe.propagate, Propagate::original);
  EXPECT_EQ(recipe.rounds, 1);
  EXPECT_EQ(recipe.init, Init::farthest);
  EXPECT_EQ(recipe.seed, 42u);
  EXPECT_EQ(recipe.max_cluster_size, 0);
  EXPECT_EQ(recipe.protect, Protect());
}

TEST(PlanJson, ThereAndBackAsAFile) {
  const TemporaryFolder folder;
  save_plan(folder / "plan.json", example());
  EXPECT_EQ(load_plan(folder / "plan.json").layers, example().layers);
  EXPECT_THROW(load_plan(folder / "absent.json"), UserError);
}

TEST(PlanJson, OneExpertNeedsNoTree) {
  LayerPlan layer;
  layer.experts = 1;
  layer.clusters = {{{0}, {1}, {1}, 0}};
  EXPECT_EQ(layer_plan_from_json(layer_plan_to_json(layer), "layer"), layer);
}

TEST(PlanJson, MuchMayBeLeftOut) {
  const Plan plan = plan_from_json(R"({"format": "hcsmoe-plan/1", "layers": [{"layer": 3, "experts": 3,
      "clusters": [{"members": [2, 0], "weights": [0.25, 0.75]}, {"members": [1], "weights": [1]}]}]})",
                                   "plan.json");
  ASSERT_EQ(plan.layers.size(), 1u);
  // Members are sorted with their weights; router weights are the weights; the largest weight dominates.
  EXPECT_EQ(plan.layers[0].clusters[0], (Cluster{{0, 2}, {0.75, 0.25}, {0.75, 0.25}, 0}));
  EXPECT_EQ(plan.layers[0].clusters[1], (Cluster{{1}, {1}, {1}, 1}));
  EXPECT_EQ(plan.recipe.experts.count, 2);
}

TEST(PlanJson, MembersAndWeightsAreSortedTogether) {
  const LayerPlan plan = layer_plan_from_json(R"({"layer": 0, "experts": 4, "dropped": [3], "clusters":
      [{"members": [2, 1, 0], "weights": [0.5, 0.5, 0], "router_weights": [0.2, 0.3, 0.5], "dominant": 2}]})",
                                              "layer");
  EXPECT_EQ(plan.clusters[0], (Cluster{{0, 1, 2}, {0, 0.5, 0.5}, {0.5, 0.3, 0.2}, 2}));
}

TEST(MalformedPlan, Document) {
  EXPECT_HAS(error_of(""), "plan.json");
  EXPECT_HAS(error_of("{\"format\": \"hcsmoe-plan/1\",\n \"layers\": [}"), "plan.json:2:");
  EXPECT_HAS(error_of("[]"), "expected an object with the keys format, recipe, origin, layers");
  EXPECT_HAS(error_of(R"({"layers": []})"), "the key \"format\" is missing");
  EXPECT_HAS(error_of(R"({"format": "hcsmoe-plan/2", "layers": []})"),
             "\"format\" is \"hcsmoe-plan/2\", this program reads \"hcsmoe-plan/1\"");
  EXPECT_HAS(error_of(R"({"format": "hcsmoe-plan/1"})"), "the key \"layers\" is missing");
  EXPECT_HAS(error_of(R"({"format": "hcsmoe-plan/1", "layers": []})"), "\"layers\" is empty");
  EXPECT_HAS(error_of(R"({"format": "hcsmoe-plan/1", "layers": 7})"), "\"layers\" must be a list, found 7");
  EXPECT_HAS(error_of(R"({"format": "hcsmoe-plan/1", "layer": []})"), "unknown key \"layer\"; did you mean \"layers\"?");
  EXPECT_HAS(error_of(R"({"format": "hcsmoe-plan/1", "layers": [], "layers": []})"), "twice");
}

TEST(MalformedPlan, Layers) {
  Plan plan = example();
  std::swap(plan.layers[0], plan.layers[1]);
  EXPECT_HAS(error_of(plan_to_json(plan)), "layer 3 comes after layer 5");
  plan.layers[0].layer = 3;
  EXPECT_HAS(error_of(plan_to_json(plan)), "layer 3 is there twice");
  EXPECT_HAS(error_after([](auto& layer) { layer = 1; }), "\"layers\", entry 0: expected an object");
  EXPECT_HAS(error_after([](auto& layer) { layer.erase("layer"); }), "entry 0: the key \"layer\" is missing");
  EXPECT_HAS(error_after([](auto& layer) { layer["layer"] = -1; }), "\"layer\" must be a whole number from 0");
  EXPECT_HAS(error_after([](auto& layer) { layer.erase("experts"); }), "layer 3: the key \"experts\" is missing");
  EXPECT_HAS(error_after([](auto& layer) { layer["experts"] = 5.0; }), "layer 3: \"experts\" must be a whole number");
  EXPECT_HAS(error_after([](auto& layer) { layer["experts"] = 1e15; }), "\"experts\" must be a whole number from 1 to 1000000");
  EXPECT_HAS(error_after([](auto& layer) { layer["experts"] = std::numeric_limits<uint64_t>::max(); }), "must be a whole number");
  EXPECT_HAS(error_after([](auto& layer) { layer["clusters"] = ordered_json::array(); }), "layer 3: \"clusters\" is empty");
  EXPECT_HAS(error_after([](auto& layer) { layer["clusters"] = "all"; }), "layer 3: \"clusters\" must be a list, found \"all\"");
  EXPECT_HAS(error_after([](auto& layer) { layer["droped"] = {1}; }), "unknown key \"droped\"; did you mean \"dropped\"?");
}

TEST(MalformedPlan, Experts) {
  EXPECT_HAS(error_after([](auto& layer) {
               layer["clusters"][1]["members"] = {2, 4};
             }),
             "layer 3, cluster 1: expert 4 is also in cluster 0");
  EXPECT_HAS(error_after([](auto& layer) { layer["clusters"][1]["members"] = {1, 1}; }), "layer 3, cluster 1: expert 1 is listed twice");
  EXPECT_HAS(error_after([](auto& layer) {
               layer["clusters"][1]["members"] = {1, 5};
             }),
             "layer 3, cluster 1: an expert must be a whole number from 0 to 4, found 5");
  EXPECT_HAS(error_after([](auto& layer) { layer["clusters"][1]["members"] = {1, "2"}; }), "found \"2\"");
  EXPECT_HAS(error_after([](auto& layer) { layer["clusters"][1]["members"] = 1; }), "\"members\" must be a list, found 1");
  EXPECT_HAS(error_after([](auto& layer) { layer["clusters"][1]["members"] = ordered_json::array(); }), "cluster 1: \"members\" is empty");
  EXPECT_HAS(error_after([](auto& layer) { layer["clusters"][1].erase("members"); }), "cluster 1: the key \"members\" is missing");
  EXPECT_HAS(error_after([](auto& layer) { layer.erase("dropped"); }), "layer 3: expert 3 is in no cluster and not in \"dropped\"");
  EXPECT_HAS(error_after([](auto& layer) {
               layer["experts"] = 7;
               layer["tree"] = ordered_json::array();
             }),
             "layer 3: 2 experts are in no cluster and not in \"dropped\": 5, 6");
  EXPECT_HAS(error_after([](auto& layer) { layer["dropped"] = {3, 1}; }), "layer 3, \"dropped\": expert 1 is also in cluster 1");
  EXPECT_HAS(error_after([](auto& layer) { layer["dropped"] = {3, 3}; }), "expert 3 is also in \"dropped\"");
  EXPECT_HAS(error_after([](auto& layer) { layer["dropped"] = {5}; }), "an expert of \"dropped\" must be a whole number from 0 to 4");
  EXPECT_HAS(error_after([](auto& layer) { std::swap(layer["clusters"][0], layer["clusters"][1]); }),
             "layer 3, cluster 1: its smallest member is expert 0, that of the cluster before it is expert 1");
  EXPECT_HAS(error_after([](auto& layer) { std::swap(layer["clusters"][0], layer["clusters"][1]); }),
             "the order gives the new experts their numbers; expected the clusters of the experts 0, 1");
}

TEST(MalformedPlan, Weights) {
  const auto with = [](const char* key, ordered_json value) {
    return error_after([&](auto& layer) { layer["clusters"][1][key] = value; });
  };
  EXPECT_HAS(with("weights", {0.5, 0.25}), "layer 3, cluster 1: \"weights\" sum to 0.75, not to 1");
  EXPECT_HAS(with("weights", {0.5, 0.500002}), "sum to 1.00000");
  EXPECT_EQ(with("weights", {0.5, 0.5000005}), "accepted");
  EXPECT_HAS(with("weights", {1}), "\"weights\" has 1 values for 2 members");
  EXPECT_HAS(with("weights", {-0.5, 1.5}), "must be a number that is not negative, found -0.5");
  EXPECT_HAS(with("weights", {nullptr, 1}), "found null");
  EXPECT_HAS(with("weights", 1), "\"weights\" must be a list, found 1");
  EXPECT_HAS(with("router_weights", {0.5, 0.6}), "\"router_weights\" sum to 1.1, not to 1");
  EXPECT_HAS(with("router_weights", {1, 0, 0}), "\"router_weights\" has 3 values for 2 members");
  EXPECT_HAS(with("dominant", 0), "\"dominant\" is expert 0, which is not a member");
  EXPECT_HAS(with("dominant", "2"), "\"dominant\" must be a whole number");
  EXPECT_HAS(with("weight", {1, 0}), "unknown key \"weight\"; did you mean \"weights\"?");
  EXPECT_HAS(error_after([](auto& layer) { layer["clusters"][1].erase("weights"); }), "the key \"weights\" is missing");
  std::string text = plan_to_json(example());
  text.replace(text.find("0.9"), 3, "1e999");
  EXPECT_HAS(error_of(text), "plan.json");
}

TEST(MalformedPlan, Tree) {
  const auto with = [](size_t row, ordered_json value) { return error_after([&](auto& layer) { layer["tree"][row] = value; }); };
  EXPECT_HAS(with(1, {0, 4, 1}), "layer 3, tree row 1: expected [cluster, cluster, height, size]");
  EXPECT_HAS(with(1, {0, 1, 1, 2}), "tree row 1: cluster 1 was merged before");
  EXPECT_HAS(with(1, {0, 6, 1, 2}), "tree row 1: a cluster must be a whole number from 0 to 5");
  EXPECT_HAS(with(1, {4, 0, 1, 2}), "the smaller cluster number comes first");
  EXPECT_HAS(with(1, {0, 4, 1, 3}), "tree row 1: the size is 3, the merged clusters have 2 experts");
  EXPECT_HAS(with(1, {0, 4, -1, 2}), "the height must be a number that is not negative");
  EXPECT_HAS(with(4, {0, 4, 1, 2}), "\"tree\" has more than 4 rows");
  EXPECT_HAS(error_after([](auto& layer) { layer["tree"].erase(3); }), "\"tree\" has 3 rows instead of 4");
}

TEST(MalformedPlan, RecipeAndOrigin) {
  const auto with = [](const char* part, const char* key, ordered_json value) {
    ordered_json json = ordered_json::parse(plan_to_json(example()));
    json[part][key] = value;
    return error_of(json.dump());
  };
  EXPECT_HAS(with("recipe", "linkage", "wards"), "plan.json: \"recipe\": \"linkage\": ");
  EXPECT_HAS(with("recipe", "linkage", "wards"), "single, complete, average, ward");
  EXPECT_HAS(with("recipe", "method", "k-means"), "\"method\": 'k-means' is not allowed; allowed: auto, hc-smoe, kmeans, fuzzy-cmeans");
  EXPECT_HAS(with("recipe", "experts", 0), "\"experts\" must be a whole number from 1");
  EXPECT_HAS(with("recipe", "experts", 1.5), "as a share must be above 0 and at most 1, found 1.5");
  EXPECT_HAS(with("recipe", "metrics", "cosine"), "unknown key \"metrics\"; did you mean \"metric\"?");
  EXPECT_HAS(with("recipe", "init", "first"), "\"init\": 'first' is not allowed; allowed: farthest, random");
  EXPECT_HAS(with("recipe", "seed", -1), "\"seed\" must be a whole number from 0 to 18446744073709551615, found -1");
  EXPECT_HAS(with("recipe", "max_cluster_size", -1), "\"max_cluster_size\" must be a whole number from 0");
  EXPECT_HAS(with("recipe", "protect", 3), "\"protect\": the list of experts must be a list, found 3");
  EXPECT_HAS(with("recipe", "protect", {{"top", "x"}}), "\"protect\": \"top\" must be a whole number from 0");
  EXPECT_HAS(with("recipe", "protect", {{"first", 1}}), "\"protect\": unknown key \"first\"");
  EXPECT_HAS(with("recipe", "merge", 1), "\"merge\" must be a string, found 1");
  EXPECT_HAS(with("origin", "checkpoint", 1), "plan.json: \"origin\": \"checkpoint\" must be a string");
  EXPECT_HAS(with("origin", "type", "x"), "unknown key \"type\"");
}

// Whatever one character of a plan becomes, reading it ends in a plan or in a UserError, and what is read can be written and read again.
TEST(MalformedPlan, EveryCharacterReplaced) {
  const std::string text = plan_to_json(example());
  int accepted = 0, refused = 0;
  for (size_t at = 0; at < text.size(); at++) {
    for (const char c : {'0', '9', '-', 'e', '"', '[', '}', ' ', '\x80'}) {
      std::string broken = text;
      broken[at] = c;
      try {
        const Plan plan = plan_from_json(broken, "plan.json");
        ASSERT_EQ(plan_from_json(plan_to_json(plan), "again").layers, plan.layers);
        accepted++;
      } catch (const UserError&) {
        refused++;
      }
    }
  }
  std::printf("%d of %d plans with one changed character were refused\n", refused, refused + accepted);
  EXPECT_GT(refused, accepted);
}

ModelDescription model_of_example() {
  ModelDescription model;
  model.family = "mixtral";
  model.layers = 6;
  model.experts = 5;
  model.routing.top_k = 2;
  for (int64_t l = 0; l < 6; l++) model.layer.push_back({l, l == 3 || l == 5, std::nullopt});
  return model;
}

std::string check_error(const Plan& plan, const ModelDescription& model) {
  try {
    check_plan(plan, model, "plan.json");
  } catch (const UserError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(CheckPlan, AgainstTheModel) {
  EXPECT_EQ(check_error(example(), model_of_example()), "accepted");
  Plan plan = example();
  plan.layers.pop_back();
  EXPECT_HAS(check_error(plan, model_of_example()), "plan.json: layer 5 has experts, but is not in the plan");
  plan = example();
  plan.layers.insert(plan.layers.begin(), plan.layers[0]);
  plan.layers[0].layer = 0;
  EXPECT_HAS(check_error(plan, model_of_example()), "layer 0 is in the plan, but is no MoE layer");
  ModelDescription model = model_of_example();
  model.experts = 8;
  EXPECT_HAS(check_error(example(), model), "layer 3 has 5 experts in the plan, 8 in the model");
  model = model_of_example();
  model.routing.top_k = 3;
  EXPECT_HAS(check_error(example(), model), "layer 3 keeps 2 experts, but a token goes to the best 3");
  plan = example();
  plan.layers[1].clusters.pop_back();
  plan.layers[1].dropped = {1, 2, 3};
  EXPECT_HAS(check_error(plan, model_of_example()), "layer 5 has 1 clusters, layer 3 has 2");
}

TEST(Fingerprint, FollowsWhatDecidesTheWeights) {
  const std::string original = plan_fingerprint(example());
  EXPECT_EQ(original.size(), 32u);
  const auto after = [](const std::function<void(Plan&)>& edit) {
    Plan plan = example();
    edit(plan);
    return plan_fingerprint(plan);
  };
  EXPECT_EQ(after([](Plan& p) { p.layers[0].tree.clear(); }), original);
  EXPECT_EQ(after([](Plan& p) { p.recipe.linkage = Linkage::single; }), original);
  EXPECT_EQ(plan_fingerprint(plan_from_json(plan_to_json(example()), "plan.json")), original);
  EXPECT_NE(after([](Plan& p) { p.layers[0].clusters[0].weights = {0.1000000001, 0.8999999999}; }), original);
  EXPECT_NE(after([](Plan& p) { p.layers[0].clusters[0].router_weights = {0, 1}; }), original);
  EXPECT_NE(after([](Plan& p) { p.layers[0].clusters[1].members = {1, 3}; }), original);
  EXPECT_NE(after([](Plan& p) { p.layers[0].layer = 2; }), original);
  EXPECT_NE(after([](Plan& p) { p.layers.pop_back(); }), original);
}

}  // namespace
}  // namespace hcsmoe

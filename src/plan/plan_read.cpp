#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <string>
#include <utility>

#include "hcsmoe/error.h"
#include "hcsmoe/plan.h"
#include "plan/plan_format.h"
#include "support/files.h"
#include "support/json.h"
#include "support/nearest_name.h"

// Every function takes `where`, the place in the file as a message begins: "plan.json: layer 3, cluster 5".

namespace hcsmoe {
namespace {

using nlohmann::ordered_json;

constexpr uint64_t most_bytes = 100'000'000;
constexpr int64_t most_experts = 1'000'000;

std::string quoted(const std::string& text) { return "\"" + text + "\""; }

/// Shortened, so that a message stays one.
std::string shown(const ordered_json& value) {
  const std::string text = value.dump(-1, ' ', true);
  return text.size() <= 60 ? text : text.substr(0, 57) + "...";
}

std::string listed(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

void check_object(const ordered_json& json, const std::vector<std::string>& keys, const std::string& where) {
  if (!json.is_object()) throw UserError(where + ": expected an object with the keys " + listed(keys) + ", found " + shown(json));
  for (const auto& item : json.items()) {
    if (std::find(keys.begin(), keys.end(), item.key()) != keys.end()) continue;
    const std::string nearest = nearest_name(item.key(), keys);
    throw UserError(where + ": unknown key " + shown(item.key()) + (nearest.empty() ? "" : "; did you mean " + quoted(nearest) + "?"),
                    "allowed keys: " + listed(keys));
  }
}

const ordered_json& required(const ordered_json& json, const char* key, const std::string& where) {
  const auto found = json.find(key);
  if (found == json.end()) throw UserError(where + ": the key " + quoted(key) + " is missing");
  return *found;
}

const ordered_json& array(const ordered_json& value, std::string_view what, const std::string& where) {
  if (!value.is_array()) throw UserError(where + ": " + std::string(what) + " must be a list, found " + shown(value));
  return value;
}

int64_t integer(const ordered_json& value, int64_t least, int64_t most, const std::string& what, const std::string& where) {
  const bool whole = value.is_number_integer() &&
                     !(value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()));
  if (!whole || value.get<int64_t>() < least || value.get<int64_t>() > most) {
    throw UserError(where + ": " + what + " must be a whole number from " + std::to_string(least) + " to " + std::to_string(most) +
                    ", found " + shown(value));
  }
  return value.get<int64_t>();
}

double number(const ordered_json& value, const std::string& what, const std::string& where) {
  if (!value.is_number() || !std::isfinite(value.get<double>()) || value.get<double>() < 0) {
    throw UserError(where + ": " + what + " must be a number that is not negative, found " + shown(value));
  }
  return value.get<double>();
}

std::string text(const ordered_json& value, const std::string& what, const std::string& where) {
  if (!value.is_string()) throw UserError(where + ": " + what + " must be a string, found " + shown(value));
  return value.get<std::string>();
}

std::vector<double> read_weights(const ordered_json& value, const std::string& key, size_t members, const std::string& where) {
  std::vector<double> weights;
  for (const auto& weight : array(value, quoted(key), where)) weights.push_back(number(weight, "each of " + quoted(key), where));
  if (weights.size() != members) {
    throw UserError(where + ": " + quoted(key) + " has " + std::to_string(weights.size()) + " values for " + std::to_string(members) +
                    " members");
  }
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  if (!(std::abs(sum - 1) <= 1e-6)) {
    throw UserError(where + ": " + quoted(key) + " sum to " + shown(sum) + ", not to 1", "divide each of them by their sum");
  }
  return weights;
}

Cluster read_cluster(const ordered_json& json, int64_t experts, const std::string& where) {
  check_object(json, {"members", "weights", "router_weights", "dominant"}, where);
  std::vector<int64_t> members;
  for (const auto& member : array(required(json, "members", where), "\"members\"", where)) {
    members.push_back(integer(member, 0, experts - 1, "an expert", where));
  }
  if (members.empty())
    throw UserError(where + ": \"members\" is empty", "a cluster becomes an expert; remove the cluster if it is not wanted");
  const auto weights = read_weights(required(json, "weights", where), "weights", members.size(), where);
  const auto router_weights =
      json.contains("router_weights") ? read_weights(json["router_weights"], "router_weights", members.size(), where) : weights;

  std::vector<size_t> order(members.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return members[a] < members[b]; });
  Cluster cluster;
  for (const size_t i : order) {
    if (!cluster.members.empty() && cluster.members.back() == members[i]) {
      throw UserError(where + ": expert " + std::to_string(members[i]) + " is listed twice");
    }
    cluster.members.push_back(members[i]);
    cluster.weights.push_back(weights[i]);
    cluster.router_weights.push_back(router_weights[i]);
  }
  if (json.contains("dominant")) {
    cluster.dominant = integer(json["dominant"], 0, experts - 1, "\"dominant\"", where);
    if (!std::binary_search(cluster.members.begin(), cluster.members.end(), cluster.dominant)) {
      throw UserError(where + ": \"dominant\" is expert " + std::to_string(cluster.dominant) + ", which is not a member");
    }
  } else {
    cluster.dominant = cluster.members[std::max_element(cluster.weights.begin(), cluster.weights.end()) - cluster.weights.begin()];
  }
  return cluster;
}

Tree read_tree(const ordered_json& json, int64_t experts, const std::string& where) {
  Tree tree;
  std::vector<int64_t> sizes(static_cast<size_t>(experts), 1);  // of the clusters that are there; 0: merged into another
  for (const auto& row : array(json, "\"tree\"", where)) {
    const auto i = static_cast<int64_t>(tree.size());
    const std::string at = where + ", tree row " + std::to_string(i);
    if (i == experts - 1) throw UserError(where + ": \"tree\" has more than " + std::to_string(experts - 1) + " rows");
    if (!row.is_array() || row.size() != 4) throw UserError(at + ": expected [cluster, cluster, height, size], found " + shown(row));
    TreeMerge merge;
    merge.a = integer(row[0], 0, experts + i - 1, "a cluster", at);
    merge.b = integer(row[1], 0, experts + i - 1, "a cluster", at);
    merge.height = number(row[2], "the height", at);
    merge.size = integer(row[3], 2, experts, "the size", at);
    if (merge.a >= merge.b) throw UserError(at + ": the smaller cluster number comes first");
    for (const int64_t part : {merge.a, merge.b}) {
      if (sizes[part] == 0) throw UserError(at + ": cluster " + std::to_string(part) + " was merged before");
    }
    sizes.push_back(sizes[merge.a] + sizes[merge.b]);
    sizes[merge.a] = sizes[merge.b] = 0;
    if (merge.size != sizes.back()) {
      throw UserError(at + ": the size is " + std::to_string(merge.size) + ", the merged clusters have " + std::to_string(sizes.back()) +
                      " experts");
    }
    tree.push_back(merge);
  }
  if (!tree.empty() && static_cast<int64_t>(tree.size()) != experts - 1) {
    throw UserError(where + ": \"tree\" has " + std::to_string(tree.size()) + " rows instead of " + std::to_string(experts - 1),
                    "the tree may be left out");
  }
  return tree;
}

/// soft: clusters may have their smallest member in common.
void check_cluster_order(const std::vector<Cluster>& clusters, bool soft, const std::string& where) {
  for (size_t k = 1; k < clusters.size(); k++) {
    const int64_t before = clusters[k - 1].members.front(), now = clusters[k].members.front();
    if (before < now || (soft && before == now)) continue;
    std::vector<int64_t> smallest;
    for (const Cluster& cluster : clusters) smallest.push_back(cluster.members.front());
    std::sort(smallest.begin(), smallest.end());
    constexpr size_t most_shown = 64;
    std::string order;
    for (size_t i = 0; i < std::min(smallest.size(), most_shown); i++) order += (i == 0 ? "" : ", ") + std::to_string(smallest[i]);
    if (smallest.size() > most_shown) order += ", ...";
    throw UserError(where + ", cluster " + std::to_string(k) + ": its smallest member is expert " +
                        std::to_string(clusters[k].members.front()) + ", that of the cluster before it is expert " +
                        std::to_string(clusters[k - 1].members.front()),
                    "clusters are ordered by their smallest member, because the order gives the new experts their numbers; expected "
                    "the clusters of the experts " +
                        order);
  }
}

/// That every expert is in one place; where the plan is soft, in one cluster at least, or dropped.
void check_every_expert_once(const LayerPlan& plan, const std::string& where) {
  const std::string rule = plan.soft ? "every expert of a soft plan is in a cluster or in \"dropped\""
                                     : "every expert is in one cluster or in \"dropped\", once";
  const auto cluster_name = [](size_t k) { return "cluster " + std::to_string(k); };
  std::vector<std::string> place(static_cast<size_t>(plan.experts));
  const auto put = [&](int64_t expert, const std::string& here, bool again) {
    if (!place[expert].empty() && !again) {
      throw UserError(where + ", " + here + ": expert " + std::to_string(expert) + " is also in " + place[expert], rule);
    }
    place[expert] = here;
  };
  for (size_t k = 0; k < plan.clusters.size(); k++) {
    for (const int64_t expert : plan.clusters[k].members) put(expert, cluster_name(k), plan.soft);
  }
  for (const int64_t expert : plan.dropped) put(expert, "\"dropped\"", false);
  std::vector<std::string> missing;
  for (int64_t expert = 0; expert < plan.experts; expert++) {
    if (place[expert].empty()) missing.push_back(std::to_string(expert));
  }
  if (missing.empty()) return;
  const size_t count = missing.size();
  if (count > 10) missing.resize(10), missing.push_back("...");
  throw UserError(where + ": " + (count == 1 ? "expert " + missing[0] + " is" : std::to_string(count) + " experts are") +
                      " in no cluster and not in \"dropped\"" + (count == 1 ? "" : ": " + listed(missing)),
                  rule);
}

LayerPlan read_layer(const ordered_json& json, const std::string& source, const std::string& place) {
  const std::string unnamed = source + ": " + place;
  check_object(json, {"layer", "experts", "soft", "clusters", "dropped", "tree", "method", "scores"}, unnamed);
  LayerPlan plan;
  plan.layer = integer(required(json, "layer", unnamed), 0, most_experts, "\"layer\"", unnamed);
  const std::string where = source + ": layer " + std::to_string(plan.layer);
  plan.experts = integer(required(json, "experts", where), 1, most_experts, "\"experts\"", where);
  if (json.contains("soft")) {
    if (!json["soft"].is_boolean()) throw UserError(where + ": \"soft\" must be true or false, found " + shown(json["soft"]));
    plan.soft = json["soft"].get<bool>();
  }
  for (const auto& cluster : array(required(json, "clusters", where), "\"clusters\"", where)) {
    plan.clusters.push_back(read_cluster(cluster, plan.experts, where + ", cluster " + std::to_string(plan.clusters.size())));
  }
  if (plan.clusters.empty()) throw UserError(where + ": \"clusters\" is empty: no expert would be left");
  if (json.contains("dropped")) {
    for (const auto& expert : array(json["dropped"], "\"dropped\"", where)) {
      plan.dropped.push_back(integer(expert, 0, plan.experts - 1, "an expert of \"dropped\"", where));
    }
    std::sort(plan.dropped.begin(), plan.dropped.end());
  }
  check_every_expert_once(plan, where);
  check_cluster_order(plan.clusters, plan.soft, where);
  if (json.contains("method")) plan.method = text(json["method"], "\"method\"", where);
  if (json.contains("scores")) {
    for (const auto& score : array(json["scores"], "\"scores\"", where)) {
      const std::string in = where + ", \"scores\"";
      check_object(score, {"method", "start_error", "first_error", "error"}, in);
      plan.scores.push_back({text(required(score, "method", in), "\"method\"", in),
                             number(required(score, "start_error", in), "\"start_error\"", in),
                             number(required(score, "first_error", in), "\"first_error\"", in), std::nullopt});
      if (score.contains("error")) plan.scores.back().error = number(score["error"], "\"error\"", in);
    }
  }
  if (json.contains("tree")) plan.tree = read_tree(json["tree"], plan.experts, where);
  return plan;
}

ExpertBudget read_budget(const ordered_json& value, const std::string& where) {
  if (value.is_number_integer()) return {integer(value, 1, most_experts, "\"experts\"", where), 0};
  const double share = number(value, "\"experts\"", where);
  if (share == 0 || share > 1) throw UserError(where + ": \"experts\" as a share must be above 0 and at most 1, found " + shown(value));
  return {0, share};
}

uint64_t read_seed(const ordered_json& value, const std::string& where) {
  if (!value.is_number_unsigned()) {
    throw UserError(where + ": \"seed\" must be a whole number from 0 to " + std::to_string(std::numeric_limits<uint64_t>::max()) +
                    ", found " + shown(value));
  }
  return value.get<uint64_t>();
}

Protect read_protect(const ordered_json& value, const std::string& where) {
  Protect protect;
  if (value.is_object()) {
    check_object(value, {"top"}, where);
    protect.top = integer(required(value, "top", where), 0, most_experts, "\"top\"", where);
    return protect;
  }
  for (const auto& expert : array(value, "the list of experts", where)) {
    protect.experts.push_back(integer(expert, 0, most_experts, "an expert", where));
  }
  std::sort(protect.experts.begin(), protect.experts.end());
  return protect;
}

Recipe read_recipe(const ordered_json& json, const std::string& where) {
  check_object(json,
               {"method", "experts", "feature", "metric", "linkage", "merge", "router", "reconstruction", "propagate", "rounds", "init",
                "seed", "max_cluster_size", "candidates", "protect"},
               where);
  Recipe recipe;
  const auto choose = [&](const char* key, auto& field, auto parse) {
    if (!json.contains(key)) return;
    const std::string name = text(json[key], quoted(key), where);
    try {
      field = parse(name);
    } catch (const UserError& error) {
      throw UserError(where + ": " + quoted(key) + ": " + error.what());
    }
  };
  choose("method", recipe.method, parse_method);
  recipe = default_recipe(recipe.method);
  choose("feature", recipe.feature, parse_feature);
  choose("metric", recipe.metric, parse_metric);
  choose("linkage", recipe.linkage, parse_linkage);
  choose("merge", recipe.merge, parse_merge);
  choose("router", recipe.router, parse_router_merge);
  choose("reconstruction", recipe.reconstruction, parse_reconstruction);
  choose("propagate", recipe.propagate, parse_propagate);
  if (json.contains("rounds")) recipe.rounds = integer(json["rounds"], 1, 100, "\"rounds\"", where);
  choose("init", recipe.init, parse_init);
  if (json.contains("experts")) recipe.experts = read_budget(json["experts"], where);
  if (json.contains("seed")) recipe.seed = read_seed(json["seed"], where);
  if (json.contains("max_cluster_size")) {
    recipe.max_cluster_size = integer(json["max_cluster_size"], 0, most_experts, "\"max_cluster_size\"", where);
  }
  if (json.contains("candidates")) {
    recipe.candidates = integer(json["candidates"], 1, std::numeric_limits<int64_t>::max(), "\"candidates\"", where);
  }
  if (json.contains("protect")) recipe.protect = read_protect(json["protect"], where + ": \"protect\"");
  return recipe;
}

StatisticsOrigin read_origin(const ordered_json& json, const std::string& where) {
  check_object(json, {"checkpoint", "calibration", "dtype"}, where);
  StatisticsOrigin origin;
  if (json.contains("checkpoint")) origin.checkpoint = text(json["checkpoint"], "\"checkpoint\"", where);
  if (json.contains("calibration")) origin.calibration = text(json["calibration"], "\"calibration\"", where);
  if (json.contains("dtype")) origin.dtype = text(json["dtype"], "\"dtype\"", where);
  return origin;
}

}  // namespace

LayerPlan layer_plan_from_json(const std::string& document, const std::string& source_name) {
  return read_layer(parse_json(document, source_name), source_name, "the layer");
}

Plan plan_from_json(const std::string& document, const std::string& source_name) {
  const ordered_json json = parse_json(document, source_name);
  check_object(json, {"format", "recipe", "origin", "layers"}, source_name);
  const ordered_json& format = required(json, "format", source_name);
  if (format != plan_format) {
    throw UserError(source_name + ": \"format\" is " + shown(format) + ", this program reads " + quoted(plan_format));
  }
  Plan plan;
  for (const auto& layer : array(required(json, "layers", source_name), "\"layers\"", source_name)) {
    plan.layers.push_back(read_layer(layer, source_name, "\"layers\", entry " + std::to_string(plan.layers.size())));
    if (plan.layers.size() < 2) continue;
    const int64_t before = plan.layers[plan.layers.size() - 2].layer, now = plan.layers.back().layer;
    if (now == before) throw UserError(source_name + ": layer " + std::to_string(now) + " is there twice");
    if (now < before) {
      throw UserError(source_name + ": layer " + std::to_string(now) + " comes after layer " + std::to_string(before),
                      "layers are in ascending order");
    }
  }
  if (plan.layers.empty()) throw UserError(source_name + ": \"layers\" is empty");
  // A plan made by other means may lack what only tells where it comes from.
  if (json.contains("recipe")) plan.recipe = read_recipe(json["recipe"], source_name + ": \"recipe\"");
  if (plan.recipe.experts.count == 0 && plan.recipe.experts.share == 0) {
    plan.recipe.experts.count = static_cast<int64_t>(plan.layers[0].clusters.size());
  }
  if (json.contains("origin")) plan.origin = read_origin(json["origin"], source_name + ": \"origin\"");
  return plan;
}

Plan load_plan(const std::filesystem::path& file) { return plan_from_json(read_file(file, most_bytes), file.string()); }

}  // namespace hcsmoe

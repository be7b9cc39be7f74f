#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "hcsmoe/plan.h"
#include "plan/plan_format.h"
#include "support/files.h"

namespace hcsmoe {
namespace {

using nlohmann::ordered_json;

/// On one line, with spaces after commas and colons. Numbers as shortest round-trip decimals.
std::string one_line(const ordered_json& value) {
  if (!value.is_structured()) return value.dump();
  std::string text = value.is_object() ? "{" : "[";
  for (const auto& item : value.items()) {
    if (text.size() > 1) text += ", ";
    if (value.is_object()) text += ordered_json(item.key()).dump() + ": ";
    text += one_line(item.value());
  }
  return text + (value.is_object() ? "}" : "]");
}

ordered_json to_json(const Recipe& recipe) {
  ordered_json json = {{"method", recipe.method}};
  if (recipe.experts.count != 0) {
    json["experts"] = recipe.experts.count;
  } else {
    json["experts"] = recipe.experts.share;
  }
  json["feature"] = to_string(recipe.feature);
  json["metric"] = to_string(recipe.metric);
  json["linkage"] = to_string(recipe.linkage);
  json["merge"] = to_string(recipe.merge);
  json["router"] = to_string(recipe.router);
  json["reconstruction"] = to_string(recipe.reconstruction);
  json["propagate"] = to_string(recipe.propagate);
  json["rounds"] = recipe.rounds;
  json["init"] = to_string(recipe.init);
  json["seed"] = recipe.seed;
  json["max_cluster_size"] = recipe.max_cluster_size;
  json["candidates"] = recipe.candidates;
  if (recipe.protect.top > 0) {
    json["protect"] = {{"top", recipe.protect.top}};
  } else {
    json["protect"] = recipe.protect.experts;
  }
  return json;
}

std::string layer_text(const LayerPlan& plan, const std::string& indent) {
  const std::string inner = indent + "  ";
  std::string text = "{\n";
  text += inner + "\"layer\": " + std::to_string(plan.layer) + ",\n";
  text += inner + "\"experts\": " + std::to_string(plan.experts) + ",\n";
  if (plan.soft) text += inner + "\"soft\": true,\n";
  if (!plan.method.empty()) text += inner + "\"method\": " + ordered_json(plan.method).dump() + ",\n";
  for (size_t i = 0; i < plan.scores.size(); i++) {
    const CandidateScore& score = plan.scores[i];
    ordered_json json = {{"method", score.method}, {"start_error", score.start_error}, {"first_error", score.first_error}};
    if (score.error) json["error"] = *score.error;
    text += (i == 0 ? inner + "\"scores\": [\n" : "") + inner + "  " + one_line(json) +
            (i + 1 < plan.scores.size() ? ",\n" : "\n" + inner + "],\n");
  }
  text += inner + "\"clusters\": [";
  for (size_t k = 0; k < plan.clusters.size(); k++) {
    const Cluster& cluster = plan.clusters[k];
    text += k == 0 ? "\n" : ",\n";
    text += inner + "  " +
            one_line({{"members", cluster.members},
                      {"weights", cluster.weights},
                      {"router_weights", cluster.router_weights},
                      {"dominant", cluster.dominant}});
  }
  text += "\n" + inner + "],\n";
  text += inner + "\"dropped\": " + one_line(plan.dropped) + ",\n";
  ordered_json tree = ordered_json::array();
  for (const TreeMerge& merge : plan.tree) tree.push_back(ordered_json::array({merge.a, merge.b, merge.height, merge.size}));
  text += inner + "\"tree\": " + one_line(tree) + "\n";
  return text + indent + "}";
}

}  // namespace

std::string recipe_to_json(const Recipe& recipe) { return one_line(to_json(recipe)); }

std::string layer_plan_to_json(const LayerPlan& plan) { return layer_text(plan, "") + "\n"; }

std::string plan_to_json(const Plan& plan) {
  std::string text = "{\n  \"format\": " + ordered_json(plan_format).dump() + ",\n";
  text += "  \"recipe\": " + recipe_to_json(plan.recipe) + ",\n";
  text += "  \"origin\": " +
          one_line({{"checkpoint", plan.origin.checkpoint}, {"calibration", plan.origin.calibration}, {"dtype", plan.origin.dtype}}) +
          ",\n";
  text += "  \"layers\": [";
  for (size_t i = 0; i < plan.layers.size(); i++) text += (i == 0 ? "\n    " : ",\n    ") + layer_text(plan.layers[i], "    ");
  return text + "\n  ]\n}\n";
}

void save_plan(const std::filesystem::path& file, const Plan& plan) { write_file_atomically(file, plan_to_json(plan)); }

std::string plan_fingerprint(const Plan& plan) {
  Hasher hasher;
  const auto add = [&](const auto& values) { hasher.add(std::as_bytes(std::span(values))); };
  // Counts come before values, so that no two plans give the same bytes.
  const auto add_numbers = [&](std::initializer_list<int64_t> numbers) { add(numbers); };
  for (const LayerPlan& layer : plan.layers) {
    add_numbers({layer.layer, layer.experts, static_cast<int64_t>(layer.clusters.size())});
    for (const Cluster& cluster : layer.clusters) {
      add_numbers({static_cast<int64_t>(cluster.members.size())});
      add(cluster.members);
      add(cluster.weights);
      add(cluster.router_weights);
    }
  }
  return hasher.hex();
}

}  // namespace hcsmoe

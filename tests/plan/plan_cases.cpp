// Plans the cases of a file, for test_against_numpy.py, which makes them and judges the answers.
//   plan_cases CASES ANSWERS
// A JSON object a line. A case:    {"layer", "tokens", "recipe" (as in plan.json), "routing" {"top_k", "renormalise", "scale"}, and
//                                  statistics by their names}
//                       An answer: the layer of plan.json, or {"error": what}
#include <ATen/ops/empty.h>

#include <algorithm>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "hcsmoe/error.h"
#include "hcsmoe/plan.h"

namespace {

using nlohmann::ordered_json;

/// Undefined where the case has none.
template <typename T>
at::Tensor read(const ordered_json& json, const char* name, at::ScalarType type) {
  if (!json.contains(name)) return {};
  std::vector<int64_t> shape;
  std::vector<T> values;
  for (const ordered_json& row : json[name]) {
    if (row.is_array()) {
      for (const ordered_json& value : row) values.push_back(value.get<T>());
    } else {
      values.push_back(row.get<T>());
    }
  }
  shape.push_back(static_cast<int64_t>(json[name].size()));
  if (json[name][0].is_array()) shape.push_back(static_cast<int64_t>(json[name][0].size()));
  at::Tensor tensor = at::empty(shape, type);
  std::copy(values.begin(), values.end(), tensor.mutable_data_ptr<T>());
  return tensor;
}

/// As plan.json is read: a plan of one expert carries it.
hcsmoe::Recipe read_recipe(const ordered_json& recipe) {
  const ordered_json cluster = {{"members", {0}}, {"weights", {1}}};
  const ordered_json layer = {{"layer", 0}, {"experts", 1}, {"clusters", ordered_json::array({cluster})}};
  const ordered_json plan = {{"format", "hcsmoe-plan/1"}, {"recipe", recipe}, {"layers", ordered_json::array({layer})}};
  return hcsmoe::plan_from_json(plan.dump(), "the case").recipe;
}

std::string answer(const ordered_json& json) {
  hcsmoe::ExpertStatistics statistics;
  statistics.layer = json["layer"];
  statistics.tokens = json["tokens"];
  statistics.routed_count = read<int64_t>(json, "routed_count", at::kLong);
  statistics.experts = statistics.routed_count.numel();
  statistics.router_probability_sum = read<double>(json, "router_probability_sum", at::kDouble);
  statistics.output_sum = read<double>(json, "output_sum", at::kDouble);
  statistics.routed_output_norm_sum = read<double>(json, "routed_output_norm_sum", at::kDouble);
  statistics.weighted_output_norm_sum = read<double>(json, "weighted_output_norm_sum", at::kDouble);
  statistics.router_logit_gram = read<double>(json, "router_logit_gram", at::kDouble);
  statistics.sample_logits = read<float>(json, "sample_logits", at::kFloat);
  statistics.token_output_gram = read<float>(json, "token_output_gram", at::kFloat);
  statistics.output_cka = read<double>(json, "output_cka", at::kDouble);
  statistics.weight_gram = read<double>(json, "weight_gram", at::kDouble);
  statistics.weight_cka = read<double>(json, "weight_cka", at::kDouble);
  hcsmoe::RoutingRule routing;
  if (json.contains("routing")) {
    routing.top_k = json["routing"]["top_k"];
    routing.renormalise = json["routing"]["renormalise"];
    routing.scale = json["routing"]["scale"];
    if (json["routing"].contains("correction")) {
      routing.score = hcsmoe::RoutingRule::Score::sigmoid;
      routing.correction = json["routing"]["correction"].get<std::vector<float>>();
      routing.groups = json["routing"]["groups"];
      routing.top_groups = json["routing"]["top_groups"];
    }
  }
  try {
    const hcsmoe::LayerPlan plan = hcsmoe::plan_layer(statistics, read_recipe(json["recipe"]), routing);
    return ordered_json::parse(hcsmoe::layer_plan_to_json(plan)).dump();
  } catch (const hcsmoe::UserError& error) {
    return ordered_json{{"error", error.what()}}.dump();
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: plan_cases CASES ANSWERS\n";
    return 2;
  }
  try {
    std::ifstream in(argv[1]);
    std::ofstream out(argv[2]);
    for (std::string line; std::getline(in, line);) out << answer(ordered_json::parse(line)) << "\n";
    out.close();
    return out ? 0 : 1;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}

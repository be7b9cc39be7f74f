// A report of random experts, as large as asked for, with every part that a report can have.
//   report_of_size LAYERS EXPERTS PRUNED OUT.html     PRUNED: 1 drops experts instead of merging them
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>

#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "hcsmoe/error.h"
#include "hcsmoe/report.h"

namespace {

using namespace hcsmoe;
using nlohmann::ordered_json;

ExpertStatistics random_statistics(int64_t layer, int64_t E) {
  ExpertStatistics statistics;
  statistics.layer = layer;
  statistics.experts = E;
  statistics.tokens = 100000;
  statistics.routed_count = at::randint(10, 12345, {E}, at::kLong);
  statistics.weighted_output_norm_sum = at::randn({E}, at::kDouble).abs();
  const at::Tensor groups = at::randn({E / 4 + 1, 48}, at::kDouble);
  statistics.output_sum =
      groups.index_select(0, at::randint(0, E / 4 + 1, {E}, at::kLong)).add(at::randn({E, 48}, at::kDouble).mul(0.4)).mul(1e5);
  return statistics;
}

ordered_json step(const std::string& name) { return {{"step", name}, {"error", 0.123456789}, {"kept", true}, {"seconds", 12.3456789}}; }

/// What must come out as text.
std::string hostile(const std::string& name) { return name + "</script><img src=x onerror='document.title=1'><!-- & \xff"; }

ordered_json estimate(double value) { return {{"value", value}, {"standard_error", 0.012}}; }

ordered_json measured(const std::string& name, int64_t experts, double perplexity) {
  ordered_json model = {{"name", hostile(name)}, {"folder", "/somewhere/" + name}, {"experts", experts}, {"bytes", 1}};
  model["perplexity"].push_back({{"file", "/data/" + hostile("text")},
                                 {"length", 256},
                                 {"tokens", 10000},
                                 {"perplexity", perplexity},
                                 {"perplexity_standard_error", nullptr},
                                 {"kl_divergence", estimate(0.1)},
                                 {"top1_agreement", estimate(0.9)}});
  for (int i = 0; i < 8; i++) {
    model["tasks"].push_back(
        {{"name", hostile("task")}, {"file", "t.jsonl"}, {"items", 200}, {"acc", estimate(0.9 - 0.05 * i)}, {"acc_norm", estimate(0.8)}});
  }
  model["mean"] = {{"acc", estimate(0.7)}, {"acc_norm", estimate(0.6)}};
  return model;
}

void write(int64_t layers, int64_t E, bool pruned, const std::string& out) {
  Recipe recipe;
  recipe.method = pruned ? "reap" : "hc-smoe";
  recipe.experts.count = E / 2;
  recipe.linkage = Linkage::ward;
  RoutingRule routing;
  routing.top_k = 4;
  ordered_json run = {{"format", "hcsmoe-run/1"}, {"ranks", 8}, {"seconds", {{"sweep", 1234.5}, {"total", 2345.6}}}};
  for (int64_t l = 0; l < layers; l++) {
    ordered_json steps = ordered_json::array();
    for (int i = 0; i < 12; i++) steps.push_back(step("gate, up and down projections, round 1"));
    run["reconstruction"].push_back({{"layer", l}, {"start_error", 0.5}, {"error", 0.1}, {"steps", steps}});
  }
  ReportFacts facts;
  facts.version = "0";
  facts.model = hostile("model");
  facts.output = hostile("output");
  facts.notes = {hostile("a note")};
  facts.layers = facts.moe_layers = layers;
  facts.top_k = 4;
  facts.model_bytes = 1'300'000'000'000;
  facts.output_bytes = 700'000'000'000;
  const ordered_json evaluation = {{"models", {measured("original", E, 2.5), measured("compressed", E / 2, 3.5)}}};
  Report report(facts, recipe, run, evaluation);
  for (int64_t l = 0; l < layers; l++) {
    const ExpertStatistics statistics = random_statistics(l, E);
    const LayerPlan plan = plan_layer(statistics, recipe, routing);
    report.add(plan, layer_figures(plan, recipe, statistics, routing));
  }
  std::ofstream(out, std::ios::binary) << report.html();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  try {
    write(std::stoll(argv[1]), std::stoll(argv[2]), std::stoi(argv[3]) != 0, argv[4]);
  } catch (const Error& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}

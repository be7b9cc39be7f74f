#pragma once
// The plan: which experts of each layer become one, with which weights. A value that is made from statistics, printed, saved, edited by
// hand, checked, and executed later by the merging stage.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "hcsmoe/clustering.h"
#include "hcsmoe/config.h"
#include "hcsmoe/families.h"
#include "hcsmoe/statistics.h"

namespace hcsmoe {

struct Cluster {
  std::vector<int64_t> members;        // ascending
  std::vector<double> weights;         // of the members in the merged expert; sum 1
  std::vector<double> router_weights;  // of the members' rows in the router row; sum 1
  int64_t dominant = 0;                // the most used member, in a soft plan that of the largest weight; ties towards the smaller index
  bool operator==(const Cluster&) const = default;
};

/// A plan that method auto tried: held-out errors of its block, relative to the block's output.
struct CandidateScore {
  std::string method;           // with what it was made
  double start_error = 0;       // merged or pruned only
  double first_error = 0;       // after the steps that see some of the tokens, by which candidates are ranked
  std::optional<double> error;  // after all of the reconstruction, of the best ranked
  bool operator==(const CandidateScore&) const = default;
};

/// Every expert is in one cluster or dropped. In a soft plan it may be in several clusters, with a weight in each.
struct LayerPlan {
  int64_t layer = 0;
  int64_t experts = 0;            // E of the original
  std::vector<Cluster> clusters;  // K, ordered by smallest member: cluster k becomes expert k
  std::vector<int64_t> dropped;   // experts in no cluster (pruned), ascending
  Tree tree;                      // empty for methods without one
  bool soft = false;
  std::string method;                  // which one method auto chose; else empty
  std::vector<CandidateScore> scores;  // of method auto
  bool operator==(const LayerPlan&) const = default;
};

struct Plan {
  Recipe recipe;
  StatisticsOrigin origin;
  std::vector<LayerPlan> layers;  // the MoE layers, ascending
};

/// What a method plans a layer from.
struct PlanInput {
  const ExpertStatistics& statistics;
  const Recipe& recipe;
  const RoutingRule& routing;  // of the model
  int64_t clusters = 0;        // K
};
/// A method that plans a layer from its statistics. A new method is one file in src/plan/methods/, a line in plan_methods(), which names
/// its function and the statistics that it needs, and a line in methods() (config.h), which names the keys that it reads.
struct PlanMethod {
  std::string name;  // as in methods()
  LayerPlan (*plan)(const PlanInput&);
  StatisticSet needs = {};  // besides those that the recipe's feature needs
};
const std::vector<PlanMethod>& plan_methods();
/// The recipes between which method auto chooses, layer by layer, and what to call them.
std::vector<Recipe> auto_candidates(const Recipe&);
std::string candidate_name(const Recipe&);
/// The optional statistics that planning and executing this recipe take.
StatisticSet statistics_needed(const Recipe&);
/// Plans one layer by recipe.method with recipe.experts resolved for this layer. UserError where a statistic was not collected.
/// routing: the model's; only o-prune reads it.
LayerPlan plan_layer(const ExpertStatistics&, const Recipe&, const RoutingRule& routing = {});

/// plan.json (docs/architecture.md shows the format); weights as shortest round-trip decimals. from_json checks everything that can be
/// checked without the model, and throws UserErrors that name the layer, the cluster and what is wrong.
std::string plan_to_json(const Plan&);
Plan plan_from_json(const std::string& text, const std::string& source_name);
std::string recipe_to_json(const Recipe&);  // on one line; also in run.json
std::string layer_plan_to_json(const LayerPlan&);
LayerPlan layer_plan_from_json(const std::string& text, const std::string& source_name);
void save_plan(const std::filesystem::path& file, const Plan&);  // atomic
Plan load_plan(const std::filesystem::path& file);
/// That the plan fits the model: the same MoE layers and expert counts, one K for all layers, K >= top-k. UserError.
void check_plan(const Plan&, const ModelDescription&, const std::string& source_name);
/// 32 hex digits of everything that decides the merged weights: the layers, without trees.
std::string plan_fingerprint(const Plan&);

}  // namespace hcsmoe

#pragma once
// The report: one self-contained HTML file that shows what became of every layer's experts and what it cost (docs/report.md). It is made
// from what the work folder holds, without running the model. Letters: E experts of a layer, K experts kept, S sampled tokens, D hidden
// size.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "hcsmoe/plan.h"
#include "hcsmoe/statistics.h"

namespace hcsmoe {

/// Where the merge tree of a layer's figures is from.
enum class TreeSource {
  none,
  plan,      // the plan's clusters are a cut of its own tree
  reference  // made for the report, with average linkage, where the method makes none
};

/// What the figures of one layer show. Parts that the statistics do not give are empty.
struct LayerFigures {
  std::vector<std::vector<int64_t>> members;  // [K] of the clusters; in a soft plan an expert is where its weight is largest
  /// [E] experts as the figures show them: the leaves of the tree, if it is the plan's or nothing was merged, else cluster by cluster.
  std::vector<int64_t> order;
  bool order_of_tree = false;

  Recipe compared;                // its feature and metric: what the distances are of
  bool compared_by_plan = false;  // whether the method compared experts by that; else it is shown because it was collected
  std::vector<double> distances;  // condensed, as pairwise_distances gives them
  TreeSource tree_source = TreeSource::none;
  Linkage linkage = Linkage::average;  // of the tree
  Tree tree;
  std::vector<double> spread;           // [E]: of 1 .. E clusters of the tree, their cluster_spread as a share of that of all experts
  int64_t knee = 0;                     // knee_of(spread)
  std::vector<double> cluster_spreads;  // [K] of the plan's clusters, as shares; empty where experts are dropped

  std::vector<int64_t> usage;       // [E] tokens that the router sent to each expert
  std::vector<double> usage_after;  // [K] shares of all choices
  bool usage_measured = false;      // usage_after: of the new router on the sampled tokens; else of the members before

  int64_t sampled_tokens = 0;                             // that the predicted errors are of
  std::optional<double> output_error;                     // predicted_output_error of the plan
  std::vector<std::pair<int64_t, double>> output_errors;  // K and that of the tree's cut, or of the same pruning
  std::vector<std::pair<int64_t, double>> kept_share;     // of a pruning: K and the share of the router's choices that go to kept experts
};

/// How far a cluster's members are from each other: the sum over their pairs of f_e f_g q_eg, divided by the sum of their f. f: usage. q:
/// the squared distance, or the distance itself where it is half a squared one of normalised vectors (cosine, CKA). For Euclidean distances
/// that is the sum of f_e |x_e - mean|^2. 0 where no member was used.
double cluster_spread(const std::vector<int64_t>& members, std::span<const double> condensed, const Recipe& compared,
                      std::span<const int64_t> usage);
/// The number of clusters, 1 .. values.size(), at which the curve lies deepest below the straight line between its ends; of equals the
/// smallest. 0: nowhere below.
int64_t knee_of(std::span<const double> values);

/// Of at most 512 of the sampled tokens, evenly spaced: sum of |y - y'|^2 / sum of |y|^2. y: the routed experts' output. y': what the
/// clusters give, if a merged expert answers with the weighted mean of its members' outputs and a merged router row is the weighted mean
/// of its members' rows (true of the rows, and of experts that are kept as they are). Needs token_output_gram.
double predicted_output_error(const ExpertStatistics&, const std::vector<Cluster>&, RouterMerge, const RoutingRule&);

/// The router of the compressed layer, as its shard has it; undefined where there is no shard.
struct CompressedRouter {
  at::Tensor rows;  // [K, D]
  at::Tensor correction_bias;
};

/// recipe: the plan's. statistics: of the plan's layer. routing: of the layer, with its correction biases.
LayerFigures layer_figures(const LayerPlan&, const Recipe&, const ExpertStatistics&, const RoutingRule& routing,
                           const CompressedRouter& = {});
/// Where there are no statistics: what the plan says alone.
LayerFigures layer_figures(const LayerPlan&, const Recipe&);

/// What the report is about besides its layers.
struct ReportFacts {
  std::string version;                // of the program
  std::string model, family, output;  // names of folders; output may be empty
  int64_t layers = 0, moe_layers = 0, top_k = 0;
  uint64_t model_bytes = 0, output_bytes = 0;  // of weights; output 0: not known
  std::vector<std::string> notes;              // what could not be shown, and why
};

/// Collects the layers and makes the page.
class Report {
 public:
  /// run, evaluation: run.json and evaluation.json as docs/architecture.md and docs/configuration.md show them; null where there are none.
  Report(ReportFacts, Recipe, nlohmann::ordered_json run, nlohmann::ordered_json evaluation);
  ~Report();
  Report(const Report&) = delete;
  void add(const LayerPlan&, const LayerFigures&);
  /// The data that the page shows.
  nlohmann::ordered_json data() const;
  /// The whole file. What comes from files and paths is data in it, never markup.
  std::string html() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hcsmoe

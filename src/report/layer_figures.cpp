#include <algorithm>
#include <numeric>

#include "hcsmoe/error.h"
#include "hcsmoe/report.h"
#include "plan/cluster_weights.h"
#include "plan/feature_distances.h"
#include "report/usage.h"

namespace hcsmoe {
namespace {

constexpr int64_t most_predictions = 16;  // of K, that output_errors has

/// The recipe that made this layer's plan: of method auto, the candidate that won.
Recipe layer_recipe(const LayerPlan& plan, const Recipe& recipe) {
  if (recipe.method != "auto") return recipe;
  for (const Recipe& candidate : auto_candidates(recipe)) {
    if (candidate_name(candidate) == plan.method) return candidate;
  }
  return recipe;
}

bool is_pruning(const LayerPlan& plan) { return !plan.dropped.empty(); }

/// Of a soft plan, each expert where its weight is largest, of equals the first.
std::vector<std::vector<int64_t>> hard_members(const LayerPlan& plan) {
  std::vector<std::vector<int64_t>> members(plan.clusters.size());
  std::vector<std::pair<double, size_t>> best(static_cast<size_t>(plan.experts), {-1, 0});
  for (size_t k = 0; k < plan.clusters.size(); k++) {
    const Cluster& cluster = plan.clusters[k];
    if (!plan.soft) {
      members[k] = cluster.members;
      continue;
    }
    for (size_t i = 0; i < cluster.members.size(); i++) {
      auto& found = best[cluster.members[i]];
      if (cluster.weights[i] > found.first) found = {cluster.weights[i], k};
    }
  }
  for (int64_t e = 0; plan.soft && e < plan.experts; e++) members[best[e].second].push_back(e);
  return members;
}

std::vector<int64_t> leaves_of(const Tree& tree, int64_t E) {
  std::vector<int64_t> leaves, open{E + static_cast<int64_t>(tree.size()) - 1};
  while (!open.empty()) {
    const int64_t node = open.back();
    open.pop_back();
    if (node < E) {
      leaves.push_back(node);
    } else {
      open.push_back(tree[node - E].b);
      open.push_back(tree[node - E].a);
    }
  }
  return leaves;
}

/// Whether a distance is half a squared one of normalised vectors.
bool half_squared(const Recipe& compared) { return !has_metric(compared.feature) || compared.metric == Metric::cosine; }

/// By what the experts are shown to differ: by what the method compared, else by what was collected.
void compare(LayerFigures& figures, const LayerPlan& plan, const Recipe& recipe, const ExpertStatistics& statistics) {
  const Recipe made_by = layer_recipe(plan, recipe);
  std::vector<Recipe> choices;
  const auto add = [&](Feature feature, Metric metric) {
    choices.push_back(made_by);
    choices.back().feature = feature;
    choices.back().metric = metric;
  };
  if (!method_named(made_by.method).features.empty()) add(made_by.feature, made_by.metric);
  if (made_by.method == "m-smoe") add(Feature::router_logits, Metric::cosine);
  const size_t own = choices.size();
  add(Feature::expert_output, Metric::euclidean);
  add(Feature::expert_output_tokens, Metric::euclidean);
  add(Feature::router_logits, Metric::euclidean);
  for (size_t i = 0; i < choices.size(); i++) {
    try {
      figures.distances = feature_distances(statistics, choices[i]);
      figures.compared = choices[i];
      figures.compared_by_plan = i < own;
      return;
    } catch (const UserError&) {
      continue;  // not collected
    }
  }
}

void find_tree(LayerFigures& figures, const LayerPlan& plan, const Recipe& made_by) {
  const int64_t E = plan.experts, K = static_cast<int64_t>(plan.clusters.size());
  if (!plan.tree.empty() && !plan.soft && cut_tree(plan.tree, E, K) == figures.members) {
    figures.tree = plan.tree;
    figures.tree_source = TreeSource::plan;
    figures.linkage = made_by.method == "dek" ? Linkage::single : made_by.linkage;
  } else if (!figures.distances.empty()) {
    figures.tree = linkage_tree(figures.distances, E, Linkage::average);
    figures.tree_source = TreeSource::reference;
  }
  const bool merges = std::any_of(figures.members.begin(), figures.members.end(), [](const auto& members) { return members.size() > 1; });
  figures.order_of_tree = figures.tree_source == TreeSource::plan || (figures.tree_source == TreeSource::reference && !merges);
  if (figures.order_of_tree) {
    figures.order = leaves_of(figures.tree, E);
    return;
  }
  figures.order.clear();
  for (const auto& members : figures.members) figures.order.insert(figures.order.end(), members.begin(), members.end());
  figures.order.insert(figures.order.end(), plan.dropped.begin(), plan.dropped.end());
}

/// Of E, E - 1, ... 1 clusters, merge by merge.
void measure_spread(LayerFigures& figures, const LayerPlan& plan) {
  if (figures.distances.empty()) return;
  const int64_t E = plan.experts;
  std::vector<int64_t> all(static_cast<size_t>(E));
  std::iota(all.begin(), all.end(), 0);
  const auto spread = [&](const std::vector<int64_t>& members) {
    return cluster_spread(members, figures.distances, figures.compared, figures.usage);
  };
  const double whole = spread(all);
  const auto share = [&](double value) { return whole > 0 ? value / whole : 0; };
  if (!is_pruning(plan)) {
    for (const auto& members : figures.members) figures.cluster_spreads.push_back(share(spread(members)));
  }
  if (figures.tree.empty()) return;
  std::vector<std::vector<int64_t>> members;
  std::vector<double> inside(static_cast<size_t>(E), 0.0);
  for (int64_t e = 0; e < E; e++) members.push_back({e});
  figures.spread.assign(static_cast<size_t>(E), 0.0);
  for (size_t i = 0; i < figures.tree.size(); i++) {
    const TreeMerge& merge = figures.tree[i];
    std::vector<int64_t> joined;
    std::merge(members[merge.a].begin(), members[merge.a].end(), members[merge.b].begin(), members[merge.b].end(),
               std::back_inserter(joined));
    inside.push_back(spread(joined));
    members.push_back(std::move(joined));
    const size_t K = static_cast<size_t>(E) - i - 1;
    inside[merge.a] = inside[merge.b] = 0;
    figures.spread[K - 1] = share(std::accumulate(inside.begin(), inside.end(), 0.0));
  }
  figures.knee = knee_of(figures.spread);
}

/// The same method's plan for another number of experts. Nothing where it makes none.
std::optional<LayerPlan> pruned_to(int64_t K, const LayerPlan& plan, const Recipe& recipe, const ExpertStatistics& statistics,
                                   const RoutingRule& routing) {
  Recipe other = layer_recipe(plan, recipe);
  if (other.method == "o-prune") return std::nullopt;  // searches every K anew, for seconds
  other.experts = {K, 0};
  other.merge = Merge::frequency;  // prunings merge nothing
  try {
    return plan_layer(statistics, other, routing);
  } catch (const UserError&) {
    return std::nullopt;  // too few for the protected experts, or a plan edited by hand
  }
}

void predict(LayerFigures& figures, const LayerPlan& plan, const Recipe& recipe, const ExpertStatistics& statistics,
             const RoutingRule& routing) {
  const int64_t E = plan.experts, own = static_cast<int64_t>(plan.clusters.size()), k = std::max<int64_t>(1, routing.top_k);
  const bool prunes = is_pruning(plan), samples = collected(statistics).has(Statistic::token_output_gram) && own >= k;
  const auto total = static_cast<double>(std::accumulate(figures.usage.begin(), figures.usage.end(), int64_t{0}));
  if (samples) {
    figures.sampled_tokens = std::min<int64_t>(statistics.sample_logits.size(0), 512);
    figures.output_error = predicted_output_error(statistics, plan.clusters, recipe.router, routing);
  }
  const int64_t steps = std::min(most_predictions, E - k + 1);
  std::vector<int64_t> predicted{own};
  for (int64_t i = 0; i < steps; i++) predicted.push_back(steps == 1 ? E : k + (E - k) * i / (steps - 1));
  for (int64_t K = k; K <= E; K++) {
    const bool here = samples && std::find(predicted.begin(), predicted.end(), K) != predicted.end();
    std::vector<Cluster> clusters;
    if (prunes) {
      const std::optional<LayerPlan> other = K == own ? plan : pruned_to(K, plan, recipe, statistics, routing);
      if (!other) continue;
      double kept = 0;
      for (const Cluster& cluster : other->clusters) kept += static_cast<double>(figures.usage[cluster.members.front()]);
      if (total > 0) figures.kept_share.emplace_back(K, kept / total);
      clusters = other->clusters;
    } else if (here && figures.tree_source != TreeSource::none) {
      for (auto& members : cut_tree(figures.tree, E, K)) {
        clusters.push_back(weighted_cluster(std::move(members), figures.usage, recipe.merge, recipe.router));
      }
    }
    if (here && !clusters.empty()) {
      figures.output_errors.emplace_back(K, predicted_output_error(statistics, clusters, recipe.router, routing));
    }
  }
}

}  // namespace

double cluster_spread(const std::vector<int64_t>& members, std::span<const double> condensed, const Recipe& compared,
                      std::span<const int64_t> usage) {
  const auto E = static_cast<int64_t>(usage.size());
  double sum = 0, weight = 0;
  for (size_t i = 0; i < members.size(); i++) {
    const int64_t e = members[i];
    weight += static_cast<double>(usage[e]);
    for (size_t j = i + 1; j < members.size(); j++) {
      const double d = condensed[e * E - e * (e + 1) / 2 + members[j] - e - 1];
      sum += static_cast<double>(usage[e]) * static_cast<double>(usage[members[j]]) * (half_squared(compared) ? d : d * d);
    }
  }
  return weight > 0 ? sum / weight : 0;
}

int64_t knee_of(std::span<const double> values) {
  const auto n = static_cast<int64_t>(values.size());
  int64_t knee = 0;
  double deepest = 0;
  for (int64_t i = 1; i + 1 < n; i++) {
    const double line = values.front() + (values.back() - values.front()) * static_cast<double>(i) / static_cast<double>(n - 1);
    if (line - values[i] > deepest) {
      deepest = line - values[i];
      knee = i + 1;
    }
  }
  return knee;
}

LayerFigures layer_figures(const LayerPlan& plan, const Recipe& recipe, const ExpertStatistics& statistics, const RoutingRule& routing,
                           const CompressedRouter& router) {
  LayerFigures figures;
  figures.members = hard_members(plan);
  const auto counts = routed_counts(statistics);
  figures.usage.assign(counts.begin(), counts.end());
  compare(figures, plan, recipe, statistics);
  find_tree(figures, plan, layer_recipe(plan, recipe));
  measure_spread(figures, plan);
  predict(figures, plan, recipe, statistics, routing);
  if (router.rows.defined() && statistics.sample_input.defined()) {
    figures.usage_after = measured_usage(statistics.sample_input, router, routing, plan.experts);
    figures.usage_measured = true;
  } else {
    figures.usage_after = usage_of_members(figures);
  }
  return figures;
}

LayerFigures layer_figures(const LayerPlan& plan, const Recipe& recipe) {
  LayerFigures figures;
  figures.members = hard_members(plan);
  find_tree(figures, plan, layer_recipe(plan, recipe));
  return figures;
}

}  // namespace hcsmoe

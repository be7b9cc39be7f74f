#include "hcsmoe/report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "hcsmoe/error.h"
#include "report/page_text.h"
#include "report/words.h"

namespace hcsmoe {
namespace {

using nlohmann::ordered_json;

/// Five significant digits: more cannot be seen, and would make the page larger.
ordered_json number(double value) {
  if (!std::isfinite(value)) return nullptr;
  char text[32];
  std::snprintf(text, sizeof text, "%.5g", value);
  return std::strtod(text, nullptr);
}

template <class Values>
ordered_json numbers(const Values& values) {
  ordered_json list = ordered_json::array();
  for (const double value : values) list.push_back(number(value));
  return list;
}

ordered_json points(const std::vector<std::pair<int64_t, double>>& values) {
  ordered_json list = ordered_json::array();
  for (const auto& [K, value] : values) list.push_back({K, number(value)});
  return list;
}

std::string base64(const std::vector<uint8_t>& bytes) {
  constexpr char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t left = std::min<size_t>(3, bytes.size() - i);
    uint32_t group = 0;
    for (size_t j = 0; j < 3; j++) group = group << 8 | (j < left ? bytes[i + j] : 0u);
    for (size_t j = 0; j < 4; j++) text += j <= left ? digits[group >> (18 - 6 * j) & 63] : '=';
  }
  return text;
}

/// A byte a pair: low + code / 255 (high - low).
ordered_json quantised(const std::vector<double>& distances) {
  const auto [low, high] = std::minmax_element(distances.begin(), distances.end());
  const double range = *high - *low;
  std::vector<uint8_t> codes;
  for (const double d : distances) codes.push_back(range > 0 ? static_cast<uint8_t>(std::lround((d - *low) / range * 255)) : 0);
  return {{"low", number(*low)}, {"high", number(*high)}, {"codes", base64(codes)}};
}

ordered_json tree_of(const Tree& tree) {
  ordered_json list = ordered_json::array();
  for (const TreeMerge& merge : tree) list.push_back({merge.a, merge.b, number(merge.height), merge.size});
  return list;
}

const char* name_of(TreeSource source) {
  return source == TreeSource::plan ? "plan" : source == TreeSource::reference ? "reference" : "none";
}

/// The last part of a path: the page may be shown to others, whom this machine's folders do not concern.
std::string last_part(const std::string& path) {
  std::filesystem::path p(path);
  if (!p.has_filename()) p = p.parent_path();
  return p.filename().string();
}

void shorten_paths(ordered_json& evaluation) {
  for (ordered_json& model : evaluation["models"]) {
    for (const char* key : {"folder", "plan"}) {
      if (model.contains(key) && model[key].is_string()) model[key] = last_part(model[key]);
    }
    if (model["name"].is_string() && model.contains("plan")) model["name"] = last_part(model["name"]);
    for (const char* list : {"perplexity", "tasks"}) {
      if (!model.contains(list)) continue;
      for (ordered_json& entry : model[list]) entry["file"] = last_part(entry["file"]);
    }
  }
}

const ordered_json* find_layer(const ordered_json& run, int64_t layer) {
  if (!run.is_object() || !run.contains("reconstruction")) return nullptr;
  for (const ordered_json& entry : run["reconstruction"]) {
    if (entry["layer"] == layer) return &entry;
  }
  return nullptr;
}

/// The median of the layers' knees, rounded; 0 where some layer was pruned, or there are none.
int64_t median_knee(const ordered_json& layers) {
  std::vector<int64_t> knees;
  for (const ordered_json& layer : layers) {
    if (layer.contains("dropped")) return 0;
    if (layer.contains("knee")) knees.push_back(layer["knee"]);
  }
  if (knees.empty()) return 0;
  std::sort(knees.begin(), knees.end());
  const size_t n = knees.size();
  return (knees[(n - 1) / 2] + knees[n / 2] + 1) / 2;
}

/// Text in HTML, outside of tags. What is no UTF-8 becomes U+FFFD, as in the data.
std::string escaped(const std::string& text) {
  std::string out;
  for (const char c :
       ordered_json::parse(ordered_json(text).dump(-1, ' ', false, ordered_json::error_handler_t::replace)).get<std::string>()) {
    if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '&') {
      out += "&amp;";
    } else {
      out += c;
    }
  }
  return out;
}

/// JSON inside a script element: nothing in it can end the element or begin a comment.
std::string embedded(const ordered_json& data) {
  const std::string text = data.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    if (c == '<' || c == '>' || c == '&') {  // only ever inside strings
      out += c == '<' ? "\\u003c" : c == '>' ? "\\u003e" : "\\u0026";
    } else {
      out += c;
    }
  }
  return out;
}

/// The template with its marks replaced. What is put in is not looked at again.
std::string fill(const std::string& page, const std::vector<std::pair<std::string, std::string>>& marks) {
  std::string out;
  size_t at = 0;
  for (const auto& [mark, text] : marks) {
    const size_t found = page.find(mark, at);
    if (found == std::string::npos) throw Error("page.html has no " + mark + " where it is expected");
    out.append(page, at, found - at).append(text);
    at = found + mark.size();
  }
  return out.append(page, at);
}

}  // namespace

struct Report::State {
  ReportFacts facts;
  Recipe recipe;
  ordered_json run, evaluation;
  int64_t experts = 0, kept = 0;
  ordered_json layers = ordered_json::array();
};

Report::Report(ReportFacts facts, Recipe recipe, ordered_json run, ordered_json evaluation)
    : state_(std::make_unique<State>(State{std::move(facts), std::move(recipe), std::move(run), std::move(evaluation)})) {
  if (state_->evaluation.is_object()) shorten_paths(state_->evaluation);
}

Report::~Report() = default;

void Report::add(const LayerPlan& plan, const LayerFigures& figures) {
  state_->experts = plan.experts;
  state_->kept = static_cast<int64_t>(plan.clusters.size());
  ordered_json layer = {{"layer", plan.layer}, {"experts", plan.experts}};
  ordered_json clusters = ordered_json::array();
  for (size_t k = 0; k < plan.clusters.size(); k++) {
    const Cluster& cluster = plan.clusters[k];
    ordered_json entry = {{"members", figures.members[k]}, {"dominant", cluster.dominant}};
    if (!plan.soft && cluster.members.size() > 1) entry["weights"] = numbers(cluster.weights);
    clusters.push_back(std::move(entry));
  }
  layer["clusters"] = std::move(clusters);
  if (!plan.dropped.empty()) layer["dropped"] = plan.dropped;
  if (plan.soft) layer["soft"] = true;
  if (!plan.method.empty()) layer["method"] = plan.method;
  for (const CandidateScore& score : plan.scores) {
    layer["scores"].push_back({{"method", score.method},
                               {"start_error", number(score.start_error)},
                               {"first_error", number(score.first_error)},
                               {"error", score.error ? number(*score.error) : ordered_json(nullptr)}});
  }
  layer["order"] = figures.order;
  layer["order_of_tree"] = figures.order_of_tree;
  layer["tree_source"] = name_of(figures.tree_source);
  if (!figures.tree.empty()) layer["tree"] = tree_of(figures.tree);
  if (!figures.distances.empty()) {
    layer["feature"] = to_string(figures.compared.feature);
    if (has_metric(figures.compared.feature)) layer["metric"] = to_string(figures.compared.metric);
    if (!figures.tree.empty()) layer["linkage"] = to_string(figures.linkage);
    layer["compared_by_plan"] = figures.compared_by_plan;
    layer["distances"] = quantised(figures.distances);
  }
  if (!figures.spread.empty()) layer["spread"] = numbers(figures.spread);
  if (figures.knee > 0) layer["knee"] = figures.knee;
  if (!figures.cluster_spreads.empty()) layer["cluster_spreads"] = numbers(figures.cluster_spreads);
  if (!figures.usage.empty()) {
    layer["usage"] = figures.usage;
    layer["usage_after"] = numbers(figures.usage_after);
    layer["usage_measured"] = figures.usage_measured;
  }
  if (figures.output_error) {
    layer["sampled_tokens"] = figures.sampled_tokens;
    layer["output_error"] = number(*figures.output_error);
    layer["output_errors"] = points(figures.output_errors);
  }
  if (!figures.kept_share.empty()) layer["kept_share"] = points(figures.kept_share);
  if (const ordered_json* fitted = find_layer(state_->run, plan.layer)) {
    layer["held_out"] = {number((*fitted)["start_error"]), number((*fitted)["error"])};
    for (const ordered_json& step : (*fitted)["steps"]) {
      layer["steps"].push_back(
          {{"step", step["step"]}, {"error", number(step["error"])}, {"kept", step["kept"]}, {"seconds", number(step["seconds"])}});
    }
  } else {
    for (const CandidateScore& score : plan.scores) {
      if (score.method == plan.method && score.error) layer["held_out"] = {number(score.start_error), number(*score.error)};
    }
  }
  state_->layers.push_back(std::move(layer));
}

ordered_json Report::data() const {
  const ReportFacts& facts = state_->facts;
  const auto kept_bytes = facts.output_bytes > 0 ? ordered_json(facts.output_bytes) : ordered_json(nullptr);
  ordered_json data = {{"format", "hcsmoe-report/1"},
                       {"program", "hcsmoe_dist " + facts.version},
                       {"model",
                        {{"name", facts.model},
                         {"family", facts.family},
                         {"output", facts.output},
                         {"layers", facts.layers},
                         {"moe_layers", facts.moe_layers},
                         {"experts", state_->experts},
                         {"kept", state_->kept},
                         {"top_k", facts.top_k},
                         {"bytes", facts.model_bytes},
                         {"output_bytes", kept_bytes}}},
                       {"recipe", ordered_json::parse(recipe_to_json(state_->recipe))}};
  ordered_json run = ordered_json::object();
  if (state_->run.is_object()) {
    for (const char* key : {"seconds", "ranks", "threads", "dtype", "tokens", "peak_memory_bytes"}) {
      if (state_->run.contains(key)) run[key] = state_->run[key];
    }
  }
  data["run"] = run;
  if (const int64_t knee = median_knee(state_->layers); knee > 0) data["knee"] = knee;
  data["evaluation"] = state_->evaluation;
  data["layers"] = state_->layers;
  data["notes"] = facts.notes;
  const Words words = words_of(data);
  data["facts"] = words.facts;
  data["advice"] = words.advice;
  return data;
}

std::string Report::html() const {
  const std::string experts = std::to_string(state_->experts) + " to " + std::to_string(state_->kept) + " experts";
  return fill(page_html, {{"{{title}}", escaped(state_->facts.model + ": " + experts)},
                          {"{{style}}", page_css},
                          {"{{data}}", embedded(data())},
                          {"{{script}}", page_js}});
}

}  // namespace hcsmoe

#include "report/words.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "hcsmoe/log.h"

namespace hcsmoe {
namespace {

using nlohmann::ordered_json;

constexpr double few_tokens = 65536;  // docs/quality.md shows what four times as many gain below that

std::string printed(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

std::string percent(double share) {
  const double value = 100 * std::abs(share);
  return printed(value < 9.95 && value > 0 ? "%.1f %%" : "%.0f %%", value);
}

std::string counted(int64_t count, const std::string& one, const std::string& several) {
  return std::to_string(count) + " " + (count == 1 ? one : several);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

std::optional<double> value_of(const ordered_json& json, const char* key) {
  if (!json.contains(key) || !json[key].is_number()) return std::nullopt;
  return json[key].get<double>();
}

class Writer {
 public:
  explicit Writer(const ordered_json& data) : data_(data), model_(data["model"]), recipe_(data["recipe"]), layers_(data["layers"]) {
    bytes_ = model_["bytes"].get<double>();
    kept_ = model_["kept"].get<int64_t>();
    experts_ = model_["experts"].get<int64_t>();
    if (const auto output = value_of(model_, "output_bytes"); output && kept_ < experts_) {
      expert_bytes_ = (bytes_ - *output) / static_cast<double>(experts_ - kept_);
    }
    for (const ordered_json& layer : layers_) {
      if (layer.contains("held_out") && layer["held_out"][0].is_number() && layer["held_out"][1].is_number()) {
        before_.push_back(layer["held_out"][0]);
        after_.push_back(layer["held_out"][1]);
      }
    }
    if (data["evaluation"].is_object() && data["evaluation"].contains("models") && data["evaluation"]["models"].size() > 1) {
      original_ = &data["evaluation"]["models"].front();
      compressed_ = &data["evaluation"]["models"].back();
    }
  }

  Words words() {
    size();
    method();
    fitting();
    quality();
    cost();
    advise_quality();
    advise_fitting();
    advise_knee();
    advise_layers();
    advise_clusters();
    advise_calibration();
    advise(
        "The statistics are kept: another number of experts, or another method on them, needs no new collection. Name another output "
        "folder and "
        "call \"run\" again.");
    return std::move(words_);
  }

 private:
  void fact(const std::string& sentence) { words_.facts.push_back(sentence); }
  void advise(const std::string& sentence) { words_.advice.push_back(sentence); }

  std::string size_at(int64_t K) const {
    return expert_bytes_ > 0 ? " (" + format_bytes(bytes_ - static_cast<double>(experts_ - K) * expert_bytes_) + ")" : "";
  }

  void size() {
    const auto layers = model_["moe_layers"].get<int64_t>();
    std::string text = (layers == 1 ? "The MoE layer keeps " : "Each of the " + std::to_string(layers) + " MoE layers keeps ") +
                       std::to_string(kept_) + " of " + counted(experts_, "expert", "experts");
    if (const auto output = value_of(model_, "output_bytes")) {
      text += "; the weights went from " + format_bytes(bytes_) + " to " + format_bytes(*output) + ", " + percent(1 - *output / bytes_) +
              (*output <= bytes_ ? " smaller" : " larger");
    }
    fact(text + ".");
  }

  void method() {
    if (recipe_["method"] != "auto") {
      return fact("In each layer, " + method_words(recipe_) + ".");
    }
    std::map<std::string, int64_t> winners;
    for (const ordered_json& layer : layers_) winners[layer.contains("method") ? layer["method"] : "unknown"]++;
    std::string list;
    for (const auto& [name, count] : winners) list += (list.empty() ? "" : "; ") + name + " in " + counted(count, "layer", "layers");
    fact("Several ways to merge or drop experts were tried in each layer, and the one stayed whose block was closest to the original: " +
         list + ".");
  }

  void fitting() {
    if (before_.empty()) return;
    const auto mean = [](const std::vector<double>& values) {
      double sum = 0;
      for (const double value : values) sum += value;
      return sum / static_cast<double>(values.size());
    };
    fact("Each block was then fitted to the original's output on calibration text: its error on tokens that were held out went from " +
         percent(mean(before_)) + " to " + percent(mean(after_)) + " (mean over layers).");
  }

  /// The text's measures in both models, if both have them.
  template <class Use>
  void each_text(Use use) const {
    if (!compressed_ || !original_->contains("perplexity") || !compressed_->contains("perplexity")) return;
    const ordered_json &before = (*original_)["perplexity"], &after = (*compressed_)["perplexity"];
    for (size_t i = 0; i < std::min(before.size(), after.size()); i++) use(before[i], after[i]);
  }

  void quality() {
    each_text([&](const ordered_json& before, const ordered_json& after) {
      const auto from = value_of(before, "perplexity"), to = value_of(after, "perplexity");
      if (!from || !to) return;
      const double change = *to / *from - 1;
      worst_change_ = std::max(worst_change_.value_or(change), change);
      std::string text = "Perplexity on " + before["file"].get<std::string>() + " went from " + printed("%.3g", *from) + " to " +
                         printed("%.3g", *to) + " (" + (change < 0 ? "-" : "+") + percent(change) + ")";
      if (after.contains("top1_agreement")) {
        if (const auto agreement = value_of(after["top1_agreement"], "value")) {
          text += "; both models find the same next token the likeliest in " + percent(*agreement) + " of places";
        }
      }
      fact(text + ".");
    });
    if (!compressed_ || !original_->contains("mean") || !compressed_->contains("mean")) return;
    const ordered_json &before = (*original_)["mean"], &after = (*compressed_)["mean"];
    if (!before.contains("acc") || !after.contains("acc")) return;
    const auto from = value_of(before["acc"], "value"), to = value_of(after["acc"], "value");
    if (!from || !to) return;
    std::string text = "Accuracy, mean over " + counted(static_cast<int64_t>((*original_)["tasks"].size()), "task", "tasks") +
                       ", went from " + printed("%.3f", *from) + " to " + printed("%.3f", *to);
    const auto error = value_of(before["acc"], "standard_error"), other = value_of(after["acc"], "standard_error");
    if (error && other) {
      const double both = std::hypot(*error, *other);
      text += std::abs(*to - *from) <= 2 * both ? ", a difference within two standard errors" : ", more than two standard errors apart";
    }
    fact(text + ".");
  }

  void cost() {
    const ordered_json& run = data_["run"];
    if (!run.contains("seconds") || !run["seconds"].contains("total")) return;
    std::string text = "It took " + format_duration(run["seconds"]["total"]);
    if (run.contains("ranks")) text += " on " + counted(run["ranks"], "rank", "ranks");
    if (run["seconds"].contains("evaluation")) text += ", of which measuring took " + format_duration(run["seconds"]["evaluation"]);
    if (run.contains("tokens")) text += "; " + format_count(run["tokens"]) + " calibration tokens";
    fact(text + ".");
  }

  void advise_quality() {
    if (!worst_change_) {
      return advise(
          "Quality was not measured. Name a text in evaluation.perplexity and questions in evaluation.tasks; `evaluate` compares both "
          "models.");
    }
    const auto top_k = model_["top_k"].get<int64_t>();
    if (*worst_change_ > 0.05 && kept_ < experts_) {
      const int64_t more = kept_ + (experts_ - kept_ + 1) / 2;
      if (more < experts_) {
        advise("Perplexity rose by " + percent(*worst_change_) +
               ". More experts are the surest remedy: try compression.experts: " + std::to_string(more) + size_at(more) + ".");
      }
    } else if (*worst_change_ < 0.02 && kept_ > std::max<int64_t>(1, top_k)) {
      const int64_t fewer = std::max(std::max<int64_t>(1, top_k), kept_ - std::max<int64_t>(1, kept_ / 4));
      advise("Perplexity hardly changed. Fewer experts may do as well: try compression.experts: " + std::to_string(fewer) + size_at(fewer) +
             ".");
    }
  }

  void advise_fitting() {
    const auto tokens = value_of(data_["run"], "tokens");
    const bool full = recipe_.contains("reconstruction") && recipe_["reconstruction"] == "full";
    if (full && tokens && *tokens < few_tokens) {
      advise("The blocks were fitted on " + format_count(*tokens) +
             " tokens. Fitting gains from more text: try a larger calibration.sequences.");
    }
    if (full && recipe_["method"] != "auto" && worst_change_.value_or(0) > 0.02) {
      return advise("compression.method: auto also tries other ways to merge and to drop experts in each layer, and keeps the best.");
    }
    if (full) return;
    advise(
        "The experts were not fitted afterwards. compression.method: auto, or compression.reconstruction: full with this method, wins back "
        "much "
        "of what merging or dropping loses.");
  }

  void advise_knee() {
    if (!data_.contains("knee")) return;
    const auto knee = data_["knee"].get<int64_t>();
    const auto top_k = std::max<int64_t>(1, model_["top_k"].get<int64_t>());
    const std::string bend = "The differences inside clusters grow fastest below about " + counted(knee, "cluster", "clusters") +
                             " (the bend of their curve, median over layers)";
    if (kept_ < knee) {
      advise(bend + ": with " + std::to_string(kept_) + ", experts that differ were merged. Compare " + std::to_string(knee) +
             size_at(knee) + ".");
    } else if (kept_ > knee && knee >= top_k && !(worst_change_ && *worst_change_ > 0.02)) {
      advise(bend + ": there may be room below " + std::to_string(kept_) + ". Compare " + std::to_string(knee) + size_at(knee) + ".");
    }
  }

  void advise_layers() {
    if (after_.size() < 3) return;
    const double middle = median(after_);
    const auto worst = std::max_element(after_.begin(), after_.end());
    if (!(*worst > 1.5 * middle)) return;
    size_t index = static_cast<size_t>(worst - after_.begin());
    for (const ordered_json& layer : layers_) {
      if (!layer.contains("held_out")) continue;
      if (index-- == 0) {
        return advise("Layer " + std::to_string(layer["layer"].get<int64_t>()) + " stands out: its output error is " + percent(*worst) +
                      ", that of the middle layer " + percent(middle) + ". Look at its figures below.");
      }
    }
  }

  void advise_clusters() {
    size_t largest = 0;
    int64_t where = 0;
    for (const ordered_json& layer : layers_) {
      for (const ordered_json& cluster : layer["clusters"]) {
        if (layer.contains("soft") || cluster["members"].size() <= largest) continue;
        largest = cluster["members"].size();
        where = layer["layer"];
      }
    }
    const double even = static_cast<double>(experts_) / static_cast<double>(kept_);
    if (static_cast<double>(largest) < 4 * even || kept_ < 2) return;
    std::string how = "compression.max_cluster_size limits that";
    if (recipe_["method"] == "hc-smoe" && recipe_["linkage"] != "ward") how = "compression.linkage: ward makes clusters more even, " + how;
    if (recipe_["method"] != "hc-smoe" && recipe_["method"] != "dek") return;
    advise("In layer " + std::to_string(where) + " one cluster took " + std::to_string(largest) + " of " + std::to_string(experts_) +
           " experts; " + how + ".");
  }

  void advise_calibration() {
    int64_t unused = 0, all = 0;
    for (const ordered_json& layer : layers_) {
      if (!layer.contains("usage")) continue;
      for (const ordered_json& count : layer["usage"]) unused += count == 0;
      all += static_cast<int64_t>(layer["usage"].size());
    }
    if (unused == 0) return;
    advise(std::to_string(unused) + " of " + std::to_string(all) +
           " experts were never chosen on the calibration text. More varied text (calibration.files) shows whether they are idle or only "
           "not needed there.");
  }

  const ordered_json &data_, &model_, &recipe_, &layers_;
  double bytes_ = 0, expert_bytes_ = 0;  // expert_bytes_: of one expert in every layer; 0: not known
  int64_t kept_ = 0, experts_ = 0;
  std::vector<double> before_, after_;  // held-out errors of the layers that have them
  const ordered_json *original_ = nullptr, *compressed_ = nullptr;
  std::optional<double> worst_change_;  // of perplexity
  Words words_;
};

}  // namespace

std::string method_words(const ordered_json& recipe) {
  const std::string method = recipe["method"];
  const auto name = [&](const char* key) { return recipe.contains(key) ? recipe[key].get<std::string>() : std::string(); };
  static const std::map<std::string, std::string> features = {{"expert_output", "average outputs"},
                                                              {"expert_output_tokens", "outputs on sampled tokens"},
                                                              {"router_logits", "router logits"},
                                                              {"weight", "weights"},
                                                              {"cka", "outputs by CKA"},
                                                              {"weight_cka", "weights by CKA"}};
  const auto feature = [&] {
    const auto found = features.find(name("feature"));
    return found == features.end() ? name("feature") : found->second;
  };
  if (method == "hc-smoe") return "experts with similar " + feature() + " were merged, closest first (" + name("linkage") + " linkage)";
  if (method == "kmeans") return "experts were grouped by k-means of their average outputs and merged";
  if (method == "fuzzy-cmeans") return "every new expert is a weighted mean of all (fuzzy c-means of average outputs)";
  if (method == "dek") return "experts with similar " + feature() + " were merged";
  if (method == "m-smoe") return "the most used experts took in the others, each the ones whose router logits resemble its own";
  if (method == "f-prune") return "the experts that the router chose most often were kept, the others dropped";
  if (method == "s-prune") return "the experts with the highest router scores were kept, the others dropped";
  if (method == "o-prune") return "the set of experts that changes the block's output least was kept, the others dropped";
  if (method == "reap") return "the experts with the largest weighted outputs (REAP) were kept, the others dropped";
  if (method == "ean") return "the experts with the largest outputs (EAN) were kept, the others dropped";
  if (method == "random") return "experts were kept at random, as a control";
  return "experts were compressed by " + method;
}

Words words_of(const ordered_json& data) { return Writer(data).words(); }

}  // namespace hcsmoe

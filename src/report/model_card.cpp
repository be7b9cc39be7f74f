#include "hcsmoe/model_card.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "hcsmoe/log.h"
#include "report/metadata.h"
#include "report/words.h"

namespace hcsmoe {
namespace {

using nlohmann::ordered_json;

constexpr size_t longest_name = 200;

/// Text that Markdown and HTML take as text, on one line.
std::string plain(const std::string& text) {
  static constexpr std::string_view markup = "\\`*_{}[]<>()#|&~$!@:.+=\"'";
  // Malformed UTF-8 is replaced by the way through JSON.
  const std::string valid = ordered_json::parse(ordered_json(text).dump(-1, ' ', false, ordered_json::error_handler_t::replace));
  std::string out;
  size_t taken = 0;
  for (const char c : valid) {
    const auto byte = static_cast<unsigned char>(c);
    if ((byte & 0xC0) != 0x80 && ++taken > longest_name) return out + "...";
    if (byte < 0x20 || byte == 0x7f) {
      out += ' ';
    } else {
      if (markup.find(c) != std::string_view::npos) out += '\\';
      out += c;
    }
  }
  return out;
}

std::string printed(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

double number(const ordered_json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_number() ? found->get<double>() : NAN;
}

/// "2.572 ± 0.014"; "-" where the value is not known.
std::string estimate(double value, double error, const char* format) {
  if (std::isnan(value)) return "-";
  return printed(format, value) + (std::isnan(error) ? "" : " ± " + printed(format, error));
}
std::string estimate(const ordered_json& json, const char* key, const char* format) {
  const auto found = json.find(key);
  if (found == json.end()) return "-";
  return estimate(number(*found, "value"), number(*found, "standard_error"), format);
}

std::string row(const std::vector<std::string>& cells) {
  std::string line = "|";
  for (const std::string& cell : cells) line += " " + cell + " |";
  return line + "\n";
}

std::string table_head(const std::vector<std::string>& cells) {
  std::string rule = "|---|";
  for (size_t i = 1; i < cells.size(); ++i) rule += "---:|";
  return row(cells) + rule + "\n";
}

std::string file_of(const ordered_json& measures) { return std::filesystem::path(measures["file"].get<std::string>()).filename().string(); }

class Card {
 public:
  Card(const CardFacts& facts, const Plan& plan, const ordered_json& evaluation) : facts_(facts), plan_(plan), evaluation_(evaluation) {}

  std::string text() {
    metadata();
    what();
    results();
    loading();
    reproduction();
    verification();
    return std::move(text_);
  }

 private:
  size_t kept() const { return plan_.layers.front().clusters.size(); }
  int64_t experts() const { return plan_.layers.front().experts; }
  bool prunes() const {
    return std::all_of(plan_.layers.begin(), plan_.layers.end(), [](const LayerPlan& layer) {
      return std::all_of(layer.clusters.begin(), layer.clusters.end(), [](const Cluster& cluster) { return cluster.members.size() == 1; });
    });
  }

  void metadata() {
    std::vector<std::string> tags = {"moe", prunes() ? "expert-pruning" : "expert-merging", "hcsmoe_dist"};
    std::string pipeline = "text-generation";
    text_ += "---\nlibrary_name: transformers\n";
    if (!facts_.base_model.empty()) text_ += "base_model: " + yaml_text(facts_.base_model) + "\n";
    for (const CarriedKey& carried : carried_metadata(facts_.original_card)) {
      if (carried.key == "pipeline_tag") {
        pipeline = carried.values.front();
      } else if (carried.key == "tags") {
        for (const std::string& tag : carried.values) {
          if (std::find(tags.begin(), tags.end(), tag) == tags.end()) tags.push_back(tag);
        }
      } else {
        key(carried.key, carried.values, carried.list);
      }
    }
    key("pipeline_tag", {pipeline}, false);
    key("tags", tags, true);
    text_ += "---\n\n";
  }

  void key(const std::string& name, const std::vector<std::string>& values, bool list) {
    text_ += name + ":";
    if (!list) text_ += " " + yaml_text(values.front());
    text_ += "\n";
    if (!list) return;
    for (const std::string& value : values) text_ += "  - " + yaml_text(value) + "\n";
  }

  void what() {
    const auto size = [](uint64_t bytes) { return format_bytes(static_cast<double>(bytes)); };
    const std::string counts = std::to_string(kept()) + " of " + std::to_string(experts()) + " experts";
    text_ += "# " + plain(facts_.model) + " with " + counts + " a layer\n\n";
    text_ += "Made from " + plain(facts_.base_model.empty() ? facts_.model : facts_.base_model) + " (" + plain(facts_.family) +
             ") without retraining, by `hcsmoe_dist` " + facts_.version + ". Each of the " + std::to_string(plan_.layers.size()) +
             " MoE layers keeps " + counts + ", of which a token uses " + std::to_string(facts_.top_k) + "; the weights went from " +
             size(facts_.model_bytes) + " to " + size(facts_.output_bytes) + ". " + method() +
             " [report.html](report.html) shows every layer.\n\n";
    if (!facts_.original_card.empty()) {
      text_ +=
          "The original's own card, with its intended use, limits and terms, is kept as [README.original.md](README.original.md). Its "
          "licence holds for this model too.\n\n";
    }
  }

  std::string method() const {
    std::string text;
    if (plan_.recipe.method == "auto") {
      std::map<std::string, int64_t> winners;
      for (const LayerPlan& layer : plan_.layers) winners[layer.method]++;
      for (const auto& [name, layers] : winners) {
        text += (text.empty() ? "" : "; ") + plain(name) + " in " + std::to_string(layers) + (layers == 1 ? " layer" : " layers");
      }
      text =
          "Several ways to merge or drop experts were tried in each layer, and the one stayed whose block was closest to the original: " +
          text + ".";
    } else {
      text = "In each layer, " + method_words(ordered_json::parse(recipe_to_json(plan_.recipe))) + ".";
    }
    if (plan_.recipe.reconstruction == Reconstruction::full) {
      text += " Each block was then fitted to the original's output on calibration text.";
    } else if (needs_tokens(plan_.recipe)) {
      text += " The router was then fitted to the original's on calibration text.";
    }
    return text;
  }

  void results() {
    if (!evaluation_.is_object() || evaluation_["models"].size() != 2) return;
    const ordered_json &before = evaluation_["models"][0], &after = evaluation_["models"][1];
    text_ += "## Results\n\nOriginal and this model, measured by `hcsmoe_dist` in " + plain(evaluation_["dtype"].get<std::string>()) +
             ", with standard errors.\n\n";
    if (!before["perplexity"].empty()) {
      text_ += table_head({"text", "windows", "perplexity, original", "perplexity", "KL divergence (nats)", "top-1 agreement"});
      for (size_t i = 0; i < before["perplexity"].size(); ++i) {
        const ordered_json &was = before["perplexity"][i], &is = after["perplexity"][i];
        const auto perplexity = [](const ordered_json& of) {
          return estimate(number(of, "perplexity"), number(of, "perplexity_standard_error"), "%.4f");
        };
        text_ += row({plain(file_of(was)), was["windows"].dump() + " of " + was["length"].dump() + " tokens", perplexity(was),
                      perplexity(is), estimate(is, "kl_divergence", "%.4f"), estimate(is, "top1_agreement", "%.3f")});
      }
      text_ += "\n";
    }
    if (!before["tasks"].empty()) {
      text_ += table_head({"task", "items", "acc, original", "acc", "acc\\_norm, original", "acc\\_norm"});
      const auto cells = [&](const std::string& name, const std::string& items, const ordered_json& was, const ordered_json& is) {
        text_ += row({name, items, estimate(was, "acc", "%.3f"), estimate(is, "acc", "%.3f"), estimate(was, "acc_norm", "%.3f"),
                      estimate(is, "acc_norm", "%.3f")});
      };
      for (size_t i = 0; i < before["tasks"].size(); ++i) {
        const ordered_json& task = before["tasks"][i];
        cells(plain(task["name"].get<std::string>()), task["items"].dump(), task, after["tasks"][i]);
      }
      if (before["tasks"].size() > 1) cells("mean", "", before["mean"], after["mean"]);
      text_ += "\n";
    }
  }

  void loading() {
    text_ +=
        "## How to load it\n\nLike the original, with the same tokenizer:\n\n```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        "folder = \"THIS_FOLDER\"\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=\"auto\")\n```\n\n"
        "or, where vLLM supports the original: `vllm serve THIS_FOLDER`.\n\n";
  }

  /// The recipe's keys that its method reads, as a configuration has them.
  std::string compression() const {
    const Recipe& recipe = plan_.recipe;
    const Method& method = method_named(recipe.method);
    const ordered_json all = ordered_json::parse(recipe_to_json(recipe));
    const auto read = [&](const std::string& key) {
      if (key == "feature") return !method.features.empty();
      if (key == "metric") return method.metric && has_metric(recipe.feature);
      if (key == "linkage") return method.linkage;
      if (key == "init") return method.init;
      if (key == "max_cluster_size") return method.max_cluster_size;
      if (key == "candidates") return method.candidates;
      if (key == "merge" || key == "router") return method.merge_and_router;
      return true;
    };
    std::string text = "compression:\n";
    for (const auto& [key, value] : all.items()) {
      if (read(key)) text += "  " + key + ": " + value.dump() + "\n";
    }
    return text;
  }

  void reproduction() {
    text_ += "## How it was made\n\n```yaml\n" + compression();
    if (facts_.calibration) {
      const CalibrationConfig& calibration = *facts_.calibration;
      text_ += "calibration:\n  files:\n";
      for (const auto& file : calibration.files) text_ += "    - " + yaml_text(file.filename().string()) + "\n";
      text_ += "  text_key: " + yaml_text(calibration.text_key) + "\n  sequences: " + std::to_string(calibration.sequences) +
               "\n  length: " + std::to_string(calibration.length) + "\n  seed: " + std::to_string(calibration.seed) + "\n  add_bos: " +
               (calibration.add_bos == AddBos::automatic ? "auto"
                : calibration.add_bos == AddBos::yes     ? "true"
                                                         : "false") +
               "\n  sample: " + std::to_string(calibration.sample) + "\n";
    }
    text_ += "```\n\n" + table_head({"", "fingerprint"});
    const auto fingerprint = [&](const std::string& name, const std::string& value) {
      if (!value.empty()) text_ += row({name, "`" + code(value) + "`"});
    };
    fingerprint("plan (`hcsmoe_plan.json`)", plan_fingerprint(plan_));
    fingerprint("original checkpoint", plan_.origin.checkpoint);
    fingerprint("calibration tokens", plan_.origin.calibration);
    text_ += "\n";
    if (!plan_.origin.dtype.empty()) text_ += "Statistics were computed in " + plain(plan_.origin.dtype) + ".\n\n";
  }

  void verification() {
    text_ +=
        "## How to verify it\n\n`hcsmoe_dist verify THIS_FOLDER --original ORIGINAL` checks every file against `checksums.xxh128`, every "
        "tensor's name, type and shape against the plan and the original, that tensors which were not compressed are the original's bit "
        "by bit, and ";
    text_ += plan_.recipe.reconstruction == Reconstruction::full
                 ? "compares fitted blocks with the shards of the work folder where it is there: they cannot be made again without the "
                   "calibration text.\n"
                 : "makes a draw of the merged experts again.\n";
  }

  /// Fingerprints of a plan that was edited by hand may be any text.
  static std::string code(const std::string& text) {
    std::string out;
    for (const char c : text.substr(0, longest_name)) {
      const auto byte = static_cast<unsigned char>(c);
      out += byte < 0x20 || byte > 0x7e || c == '`' || c == '|' ? '?' : c;
    }
    return out;
  }

  const CardFacts& facts_;
  const Plan& plan_;
  const ordered_json& evaluation_;
  std::string text_;
};

bool is_hub_part(std::string_view text) {
  return !text.empty() && text.size() <= 96 && text.front() != '-' && text.front() != '.' && text.back() != '-' && text.back() != '.' &&
         text.find("--") == std::string_view::npos && text.find("..") == std::string_view::npos && !text.ends_with(".git") &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '_' || c == '.';
         });
}

/// NAME or OWNER/NAME
bool is_hub_name(std::string_view text) {
  const size_t slash = text.find('/');
  if (text.size() > 96) return false;
  if (slash == std::string_view::npos) return is_hub_part(text);
  return is_hub_part(text.substr(0, slash)) && is_hub_part(text.substr(slash + 1));
}

}  // namespace

std::string hub_name(const std::string& absolute_folder, const std::string& name_or_path) {
  const std::filesystem::path folder = absolute_folder;
  std::string name = folder.filename().string();
  static constexpr std::string_view cached = "models--";
  const std::filesystem::path snapshots = folder.parent_path();
  if (const std::string of_cache = snapshots.parent_path().filename().string();
      snapshots.filename() == "snapshots" && of_cache.starts_with(cached)) {
    name = of_cache.substr(cached.size());
    if (const size_t at = name.find("--"); at != std::string::npos) name.replace(at, 2, "/");
  } else if (name_or_path.ends_with("/" + name) && is_hub_name(name_or_path)) {
    name = name_or_path;
  }
  return is_hub_name(name) ? name : "";
}

std::string model_card(const CardFacts& facts, const Plan& plan, const ordered_json& evaluation) {
  return Card(facts, plan, evaluation).text();
}

}  // namespace hcsmoe

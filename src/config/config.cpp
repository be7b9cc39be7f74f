#include "hcsmoe/config.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "config/names.h"
#include "config/section.h"
#include "support/files.h"

namespace hcsmoe {
namespace {

constexpr uint64_t max_file_bytes = 1'000'000;
constexpr int64_t max_sequences = int64_t{1} << 31;
constexpr int64_t max_length = int64_t{1} << 24;
constexpr int64_t max_tokens = int64_t{1} << 40;
constexpr int64_t max_sample = int64_t{1} << 20;
constexpr int64_t max_experts = 65536;
constexpr int64_t max_candidates = 10'000'000;
constexpr int64_t max_threads = 4096;

/// Every key there is. docs/configuration.md describes them.
const std::vector<SectionKeys>& known_keys() {
  static const std::vector<SectionKeys> keys = {
      {"", {"model", "output", "work", "save_every", "output_shard_size", "calibration", "compression", "device", "evaluation"}},
      {"calibration", {"files", "text_key", "sequences", "length", "seed", "add_bos", "sample"}},
      {"compression",
       {"method", "experts", "feature", "metric", "linkage", "merge", "router", "reconstruction", "propagate", "rounds", "init", "seed",
        "max_cluster_size", "candidates", "protect"}},
      {"device", {"type", "dtype", "threads", "memory", "read_ahead", "wait_limit"}},
      {"evaluation", {"perplexity", "tasks", "length", "batch_tokens", "reference"}},
  };
  return keys;
}

bool is_one_of(Command command, std::initializer_list<Command> commands) {
  return std::find(commands.begin(), commands.end(), command) != commands.end();
}

std::optional<double> parse_number(const std::string& text) {
  double number = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (failure != std::errc() || end != text.data() + text.size() || !std::isfinite(number)) return std::nullopt;
  return number;
}

ExpertBudget read_experts(const Section& section) {
  const YamlNode* value = section.find("experts");
  if (!value) return {};
  if (value->kind == YamlNode::Kind::scalar && !value->quoted) {
    const std::string& text = value->text;
    if (const auto count = parse_integer(text)) {
      if (*count >= 1 && *count <= max_experts) return {*count, 0};
    } else if (text.ends_with('%')) {
      const auto percent = parse_number(text.substr(0, text.size() - 1));
      if (percent && *percent > 0 && *percent <= 100) return {0, *percent / 100};
    } else if (const auto share = parse_number(text)) {
      if (*share > 0 && *share <= 1) return {0, *share};
    }
  }
  throw section.error(*value, "experts",
                      "expected a count from 1 to " + std::to_string(max_experts) +
                          ", or a share above 0 and up to 1 written with a point, found " + value->found(),
                      "30 keeps 30 experts a layer; 0.5 or 50% keeps half of them");
}

int64_t read_size(const Section& section, const std::string& key, int64_t default_value, const std::string& example) {
  const YamlNode* value = section.find(key);
  if (!value) return default_value;
  if (value->kind == YamlNode::Kind::scalar) {
    struct Unit {
      const char* name;
      double bytes;
    };
    constexpr Unit units[] = {{"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}, {"KB", 1e3},
                              {"MB", 1e6},     {"GB", 1e9},     {"TB", 1e12},    {"", 1}};
    for (const auto& [name, bytes] : units) {
      const std::string unit(name);
      if (!value->text.ends_with(unit)) continue;
      const auto number = parse_number(value->text.substr(0, value->text.size() - unit.size()));
      if (number && *number * bytes >= 1e3 && *number * bytes <= 1e15) return static_cast<int64_t>(*number * bytes);
      break;
    }
  }
  throw section.error(*value, key,
                      "expected a size from 1KB to 1000TB (units KB, MB, GB, TB, KiB, MiB, GiB, TiB, or bytes), found " + value->found(),
                      "as in " + example);
}

void check_file(const Section& section, const std::string& key, const Section::Path& file, const std::vector<std::string>& endings) {
  const std::string name = file.path.filename().string();
  if (std::none_of(endings.begin(), endings.end(), [&](const std::string& ending) { return name.ends_with(ending); })) {
    std::string allowed;
    for (const std::string& ending : endings) allowed += (allowed.empty() ? "" : ", ") + ending;
    throw section.error(*file.value, key, "the type of " + file.path.string() + " is not known; allowed: " + allowed);
  }
  std::error_code failure;
  const auto status = std::filesystem::status(file.path, failure);
  if (!std::filesystem::exists(status)) throw section.error(*file.value, key, "no file " + file.path.string());
  if (std::filesystem::is_directory(status)) throw section.error(*file.value, key, file.path.string() + " is a folder; expected a file");
}

CalibrationConfig read_calibration(const YamlNode& root, bool needs_files) {
  const Section section(root, "calibration");
  CalibrationConfig config;
  for (const Section::Path& file : section.paths("files")) {
    if (needs_files) check_file(section, "files", file, {".jsonl", ".jsonl.gz", ".json", ".json.gz", ".txt", ".txt.gz", ".npy"});
    config.files.push_back(file.path);
  }
  const auto token_ids =
      std::find_if(config.files.begin(), config.files.end(), [](const auto& file) { return file.extension() == ".npy"; });
  if (token_ids != config.files.end() && config.files.size() > 1) {
    throw section.error(*section.find("files"), "files", token_ids->string() + " holds token ids and must be the only file");
  }
  config.text_key = section.text("text_key", config.text_key);
  config.sequences = section.integer("sequences", config.sequences, 1, max_sequences);
  config.length = section.integer("length", config.length, 1, max_length);
  if (config.sequences * config.length > max_tokens) {
    const YamlNode* value = section.find("sequences") ? section.find("sequences") : section.find("length");
    throw section.error(*value, "sequences",
                        std::to_string(config.sequences) + " sequences of " + std::to_string(config.length) + " tokens are more than " +
                            std::to_string(max_tokens) + " tokens",
                        "a few hundred thousand tokens are plenty");
  }
  config.seed = section.unsigned_integer("seed", config.seed);
  config.add_bos = section.choice("add_bos", config.add_bos, parse_add_bos);
  config.sample = section.integer("sample", config.sample, 2, max_sample);
  return config;
}

Protect read_protect(const Section& section) {
  const YamlNode* value = section.find("protect");
  if (!value) return {};
  const auto whole = [](const YamlNode& node) {
    return node.kind == YamlNode::Kind::scalar && !node.quoted ? parse_integer(node.text) : std::nullopt;
  };
  const std::string expected = "expected a list of experts, or {top: N} for the N experts of the largest mean output norm, found ";
  Protect protect;
  if (value->kind == YamlNode::Kind::list) {
    for (const YamlNode& item : value->items) {
      const auto expert = whole(item);
      if (!expert || *expert < 0 || *expert >= max_experts) {
        throw section.error(*value, "protect", "expected experts from 0 to " + std::to_string(max_experts - 1) + ", found " + item.found());
      }
      protect.experts.push_back(*expert);
    }
    std::sort(protect.experts.begin(), protect.experts.end());
    const auto twice = std::adjacent_find(protect.experts.begin(), protect.experts.end());
    if (twice != protect.experts.end()) throw section.error(*value, "protect", "expert " + std::to_string(*twice) + " is listed twice");
    return protect;
  }
  if (value->kind != YamlNode::Kind::mapping || value->keys != std::vector<std::string>{"top"}) {
    throw section.error(*value, "protect", expected + value->found());
  }
  const auto top = whole(value->items[0]);
  if (!top || *top < 0 || *top > max_experts) {
    throw section.error(*value, "protect",
                        "expected top as an integer from 0 to " + std::to_string(max_experts) + ", found " + value->items[0].found());
  }
  protect.top = *top;
  return protect;
}

/// That the keys that were written mean something to the method.
void check_method_keys(const Section& section, const Recipe& recipe) {
  const auto& all = methods();
  const Method& method = method_named(recipe.method);
  const auto names = [&](auto uses) {
    std::string text;
    for (const Method& m : all) {
      if (uses(m)) text += (text.empty() ? "" : ", ") + m.name;
    }
    return text;
  };
  const auto check = [&](const std::string& key, auto uses) {
    const YamlNode* value = section.find(key);
    if (!value || uses(method)) return;
    throw section.error(*value, key, "method " + method.name + " does not use it; methods that do: " + names(uses),
                        "leave it out, or set it to null");
  };
  check("feature", [](const Method& m) { return !m.features.empty(); });
  check("metric", [](const Method& m) { return m.metric; });
  check("linkage", [](const Method& m) { return m.linkage; });
  check("init", [](const Method& m) { return m.init; });
  check("max_cluster_size", [](const Method& m) { return m.max_cluster_size; });
  check("candidates", [](const Method& m) { return m.candidates; });
  for (const char* key : {"merge", "router"}) check(key, [](const Method& m) { return m.merge_and_router; });
  if (!method.merge_and_router && recipe.reconstruction != Reconstruction::none) {
    throw section.error(*section.find("reconstruction"), "reconstruction",
                        "method " + method.name + " puts an expert in several clusters, which " + to_string(recipe.reconstruction) +
                            " cannot fit; reconstructions for " + method.name + ": none",
                        "leave it out, or set it to null");
  }
  const auto takes = [&](const Method& m) { return std::find(m.features.begin(), m.features.end(), recipe.feature) != m.features.end(); };
  if (section.find("feature") && !takes(method)) {
    std::string allowed;
    for (const Feature feature : method.features) allowed += (allowed.empty() ? "" : ", ") + to_string(feature);
    throw section.error(*section.find("feature"), "feature",
                        "method " + method.name + " cannot use " + to_string(recipe.feature) + "; features for " + method.name + ": " +
                            allowed + "; methods for " + to_string(recipe.feature) + ": " + names(takes));
  }
  if (section.find("metric") && !has_metric(recipe.feature)) {
    throw section.error(*section.find("metric"), "metric",
                        "the feature " + to_string(recipe.feature) + " is a similarity of its own, which no metric applies to",
                        "leave it out, or set it to null");
  }
}

Recipe read_compression(const YamlNode& root) {
  const Section section(root, "compression");
  Recipe recipe = default_recipe(section.choice("method", std::string("auto"), parse_method));
  recipe.experts = read_experts(section);
  recipe.feature = section.choice("feature", recipe.feature, parse_feature);
  recipe.metric = section.choice("metric", recipe.metric, parse_metric);
  recipe.linkage = section.choice("linkage", recipe.linkage, parse_linkage);
  recipe.merge = section.choice("merge", recipe.merge, parse_merge);
  recipe.router = section.choice("router", recipe.router, parse_router_merge);
  recipe.reconstruction = section.choice("reconstruction", recipe.reconstruction, parse_reconstruction);
  recipe.propagate = section.choice("propagate", recipe.propagate, parse_propagate);
  recipe.rounds = section.integer("rounds", recipe.rounds, 1, 100);
  recipe.init = section.choice("init", recipe.init, parse_init);
  recipe.seed = section.unsigned_integer("seed", recipe.seed);
  recipe.max_cluster_size = section.integer("max_cluster_size", recipe.max_cluster_size, 0, max_experts);
  recipe.candidates = section.integer("candidates", recipe.candidates, 1, max_candidates);
  recipe.protect = read_protect(section);
  if (recipe.method == "auto" && recipe.reconstruction != Reconstruction::full) {
    throw section.error(*section.find("reconstruction"), "reconstruction",
                        "method auto chooses by the error of reconstructed blocks; allowed with it: full",
                        "name a method (hc-smoe, reap, ...) for a plan without reconstruction");
  }
  check_method_keys(section, recipe);
  return recipe;
}

DeviceConfig read_device(const YamlNode& root) {
  const Section section(root, "device");
  DeviceConfig config;
  config.type = section.choice("type", config.type, parse_device_type);
  config.dtype = section.choice("dtype", config.dtype, parse_compute_dtype);
  config.threads = static_cast<int>(section.integer("threads", config.threads, 0, max_threads));
  config.memory = read_size(section, "memory", config.memory, "80GB");
  config.read_ahead = read_size(section, "read_ahead", config.read_ahead, "64GB");
  config.wait_limit = section.integer("wait_limit", config.wait_limit, 1, 1'000'000);
  return config;
}

EvaluationConfig read_evaluation(const YamlNode& root, bool needs_files) {
  const Section section(root, "evaluation");
  EvaluationConfig config;
  for (const Section::Path& file : section.paths("perplexity")) {
    if (needs_files) check_file(section, "perplexity", file, {".jsonl", ".jsonl.gz", ".json", ".json.gz", ".txt", ".txt.gz"});
    config.perplexity.push_back(file.path);
  }
  for (const Section::Path& file : section.paths("tasks")) {
    if (needs_files) check_file(section, "tasks", file, {".jsonl", ".jsonl.gz"});
    config.tasks.push_back(file.path);
  }
  config.length = section.integer("length", config.length, 0, max_length);
  config.batch_tokens = section.integer("batch_tokens", config.batch_tokens, 0, max_tokens);
  config.reference = section.path("reference");
  return config;
}

/// Whether `path` is `folder` or lies inside it, by name and through links as far as they exist.
bool within(const std::filesystem::path& path, const std::filesystem::path& folder) {
  std::error_code ignored;
  const auto inner = std::filesystem::weakly_canonical(path, ignored), outer = std::filesystem::weakly_canonical(folder, ignored);
  return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
}

void check_folders(const Config& config, const YamlNode& root, Command command) {
  const Section top(root, "");
  std::error_code failure;
  const auto status = std::filesystem::status(config.model, failure);
  if (!std::filesystem::is_directory(status)) {
    throw top.error(*top.find("model"), "model",
                    std::filesystem::exists(status) ? config.model.string() + " is not a folder" : "no folder " + config.model.string(),
                    "give the Hugging Face folder that holds config.json and the *.safetensors files");
  }
  if (command == Command::evaluate && !config.evaluation.reference.empty() && !std::filesystem::is_directory(config.evaluation.reference)) {
    const Section section(root, "evaluation");
    throw section.error(*section.find("reference"), "reference", "no folder " + config.evaluation.reference.string(),
                        "give the Hugging Face folder of the original");
  }
  for (const auto& [key, folder] : {std::pair("output", config.output), std::pair("work", config.work)}) {
    if (command == Command::evaluate && key == std::string("output")) continue;  // it may be the model, made by an earlier run
    if (top.find(key) && within(folder, config.model)) {
      throw top.error(*top.find(key), key, folder.string() + " lies inside the model's folder " + config.model.string(),
                      "choose a folder outside it");
    }
  }
  if (top.find("work") && !config.output.empty() && within(config.work, config.output)) {
    throw top.error(*top.find("work"), "work", config.work.string() + " lies inside the output folder " + config.output.string(),
                    "choose a folder outside it; null means OUTPUT.work");
  }
}

/// That the keys without a default are there, as far as the command uses them.
void check_required(const Config& config, const std::string& file, Command command) {
  using enum Command;
  const auto require = [&](bool given, const std::string& key, const std::string& hint) {
    if (!given) throw UserError(file + ": the key '" + key + "' is missing; the command '" + to_string(command) + "' needs it", hint);
  };
  require(!config.model.empty() || command == verify, "model", "add the Hugging Face folder, as in\n    model: /models/Qwen1.5-MoE-A2.7B");
  if (is_one_of(command, {run, apply, verify})) {
    require(!config.output.empty(), "output", "add the folder to make, as in\n    output: /models/Qwen1.5-MoE-A2.7B-30e");
  }
  if (is_one_of(command, {collect, plan, report})) {
    require(!config.work.empty(), "work", "add the folder for statistics and plans, or 'output': then the folder is OUTPUT.work");
  }
  if (is_one_of(command, {run, collect})) {
    require(!config.calibration.files.empty(), "calibration.files", "add text files, as in\n    calibration:\n      files: [c4.jsonl.gz]");
  }
  if (is_one_of(command, {run, plan, inspect})) {
    const bool given = config.compression.experts.count > 0 || config.compression.experts.share > 0;
    require(given, "compression.experts", "add how many experts to keep a layer, as in\n    compression:\n      experts: 30");
  }
  if (command == evaluate) {
    require(config.evaluation.any(), "evaluation.perplexity",
            "add text files, or multiple-choice files in evaluation.tasks, as in\n    evaluation:\n      perplexity: [wikitext.txt]");
  }
}

}  // namespace

std::vector<std::string> configuration_keys() {
  std::vector<std::string> keys;
  for (const SectionKeys& section : known_keys()) {
    for (const std::string& key : section.keys) {
      const std::string full = section.section.empty() ? key : section.section + "." + key;
      const auto is_section = [&](const SectionKeys& other) { return other.section == full; };
      if (std::none_of(known_keys().begin(), known_keys().end(), is_section)) keys.push_back(full);
    }
  }
  return keys;
}

int64_t ExpertBudget::resolve(int64_t experts) const {
  if (count > 0) return count;
  return std::max<int64_t>(1, static_cast<int64_t>(std::floor(share * static_cast<double>(experts) + 0.5)));
}

Config read_config(const std::filesystem::path& file, const std::vector<std::string>& overrides, Command command) {
  std::error_code failure;
  const auto status = std::filesystem::status(file, failure);
  if (!std::filesystem::exists(status)) throw UserError("no configuration file " + file.string());
  const bool folder = std::filesystem::is_directory(status);
  if (folder && command != Command::verify) throw UserError(file.string() + " is a folder; expected a configuration file (YAML)");

  const std::string name = file.string();
  YamlNode root = parse_yaml(folder ? "{}" : read_file(file, max_file_bytes), name, std::filesystem::absolute(file).parent_path());
  check_keys(root, known_keys());
  for (const std::string& override : overrides) apply_override(root, override, std::filesystem::current_path());
  check_keys(root, known_keys());

  const Section top(root, "");
  Config config;
  config.source = file;
  config.model = top.path("model");
  config.output = folder ? (file.has_filename() ? file : file.parent_path()) : top.path("output");
  config.work = top.path("work");
  if (config.work.empty() && !config.output.empty()) config.work = config.output.string() + ".work";
  config.save_every = top.integer("save_every", config.save_every, 0, 1'000'000'000);
  config.output_files.max_shard_bytes = read_size(top, "output_shard_size", config.output_files.max_shard_bytes, "5GB");
  config.calibration = read_calibration(root, is_one_of(command, {Command::run, Command::collect}));
  config.compression = read_compression(root);
  config.device = read_device(root);
  config.evaluation = read_evaluation(root, is_one_of(command, {Command::run, Command::apply, Command::evaluate}));
  check_required(config, name, command);
  if (command != Command::verify) check_folders(config, root, command);  // which finds its folders itself
  return config;
}

}  // namespace hcsmoe

#pragma once
// The configuration: what the user asks for. Read from a YAML file, overridden by --set key.path=value, checked in full, and never changed
// afterwards. docs/configuration.md describes every key.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace hcsmoe {

enum class AddBos { automatic, yes, no };
enum class DeviceType { cpu, cuda };
enum class ComputeDtype { automatic, float32, bfloat16 };

/// What an expert is compared by; docs/methods.md has the distances.
enum class Feature { expert_output, expert_output_tokens, router_logits, weight, cka, weight_cka };
/// cka and weight_cka are similarities of their own, which no metric applies to.
bool has_metric(Feature);
enum class Metric { euclidean, cosine };
enum class Linkage { single, complete, average, ward };
/// How the experts of a cluster become one: weighted by how often the router chose them, all equal, or only the most used one; the first
/// two also with the intermediate units aligned. fix_dominant and zipit weight all equally and match units many to one.
enum class Merge { frequency, average, dominant, frequency_aligned, average_aligned, fix_dominant, zipit };
/// Whether a merge decides which units of a cluster's experts belong together, which needs ExpertStatistics::sample_input.
bool aligns(Merge);
/// How the K router rows are made of the members' rows. alias: all members' rows stay and lead to the cluster's expert, as in HC-SMoE's own
/// evaluation; no stock checkpoint can hold that, so it is for `evaluate --plan` only. fitted: from the frequency rows, fitted to the
/// members' logits on calibration tokens.
enum class RouterMerge { frequency, average, representative, alias, fitted };
/// What of a compressed block is fitted to the output of the block it replaces: nothing, the router rows, or also the experts.
enum class Reconstruction { none, router, full };
/// What a block is reconstructed on: the inputs it has in the original model, or those of the model whose earlier layers are compressed.
enum class Propagate { original, compressed };
/// The first centres of k-means and fuzzy c-means.
enum class Init { farthest, random };

/// Experts kept a layer: a count (integer in the file) or a share of the layer's experts (a number with a point, 0 < share <= 1).
struct ExpertBudget {
  int64_t count = 0;  // 0: use share
  double share = 0;
  /// The count for a layer of `experts` experts: count, or floor(share * experts + 0.5), at least 1.
  int64_t resolve(int64_t experts) const;
};

/// Experts that are never merged and never dropped: these, or the `top` ones by mean norm of their output over the tokens routed to them.
struct Protect {
  std::vector<int64_t> experts;  // ascending
  int64_t top = 0;
  bool operator==(const Protect&) const = default;
};

/// What is done to a layer's experts. Part of plan.json, so that a plan can be replayed.
struct Recipe {
  std::string method = "hc-smoe";  // a name from methods()
  ExpertBudget experts;
  Feature feature = Feature::expert_output;
  Metric metric = Metric::euclidean;
  Linkage linkage = Linkage::average;
  Merge merge = Merge::frequency;
  RouterMerge router = RouterMerge::frequency;
  Reconstruction reconstruction = Reconstruction::none;
  Propagate propagate = Propagate::original;
  int64_t rounds = 1;  // of reconstruction: full
  Init init = Init::farthest;
  uint64_t seed = 42;            // of whatever is drawn
  int64_t max_cluster_size = 0;  // 0: no limit
  int64_t candidates = 10000;    // sets that o-prune tries where it cannot try all
  Protect protect;
};

/// Whether making a layer's shard takes the calibration tokens, and not its plan alone.
bool needs_tokens(const Recipe&);

/// Which keys of the recipe a method reads, besides experts, protect and seed, which all take, and what it takes for keys that are not
/// given. docs/methods.md describes the methods.
struct Method {
  std::string name;                    // compression.method
  std::vector<Feature> features = {};  // the first is the default; empty: it compares no features
  bool metric = false;
  bool linkage = false;
  bool init = false;
  bool max_cluster_size = false;
  bool candidates = false;
  bool merge_and_router = true;  // false: its clusters come with weights of their own
  Merge merge = Merge::frequency;
  RouterMerge router = RouterMerge::frequency;
  Reconstruction reconstruction = Reconstruction::none;
  Propagate propagate = Propagate::original;
  int64_t rounds = 1;
};
const std::vector<Method>& methods();
const Method& method_named(const std::string& name);  // Error: there is none
/// The recipe of a method where no other key is given.
Recipe default_recipe(const std::string& method);

struct CalibrationConfig {
  std::vector<std::filesystem::path> files;  // .jsonl[.gz], .json[.gz], .txt[.gz], .npy
  std::string text_key = "text";
  int64_t sequences = 32;
  int64_t length = 2048;  // tokens a sequence
  uint64_t seed = 42;
  AddBos add_bos = AddBos::automatic;
  int64_t sample = 2048;  // tokens, evenly spaced over all of them, that the statistics of single tokens are collected on
};

struct DeviceConfig {
  DeviceType type = DeviceType::cpu;
  ComputeDtype dtype = ComputeDtype::automatic;
  int threads = 0;            // a rank; 0 = cores of the node / ranks on the node
  int64_t memory = 0;         // bytes of a GPU that `inspect` plans for; 0 = 80 GB
  int64_t read_ahead = 0;     // bytes of weights read ahead on a node; 0 = a quarter of its free memory
  int64_t wait_limit = 1800;  // seconds that a rank waits for the others at most
};

struct EvaluationConfig {
  std::vector<std::filesystem::path> perplexity;  // text files, as calibration.files
  std::vector<std::filesystem::path> tasks;       // multiple-choice .jsonl[.gz]
  int64_t length = 0;                             // tokens a window; 0 = calibration.length
  int64_t batch_tokens = 0;                       // of a rank at a time; 0 = as many as take about 4 GB
  std::filesystem::path reference;                // evaluate: the original that the model is compared with; may be empty

  bool any() const { return !perplexity.empty() || !tasks.empty(); }
};

struct OutputConfig {
  int64_t max_shard_bytes = 5'000'000'000;  // of a safetensors file, as in save_pretrained
};

struct Config {
  std::filesystem::path source;  // the YAML file; relative paths are relative to its folder
  std::filesystem::path model;   // required
  std::filesystem::path output;  // required by run and apply
  std::filesystem::path work;    // default OUTPUT.work
  int64_t save_every = 0;        // seconds between saved states that a run can go on from; 0: after each layer
  CalibrationConfig calibration;
  Recipe compression;
  DeviceConfig device;
  EvaluationConfig evaluation;
  OutputConfig output_files;  // key `output_shard_size`
};

enum class Command { run, inspect, collect, plan, apply, evaluate, report, verify };

/// Reads and checks a configuration for a command (each command requires other keys).
/// For verify the file may also be an output folder, which is then all that the configuration says.
/// overrides: "key.path=value" strings of --set, in order. Every error is a UserError with file, line, key, allowed values, nearest key.
Config read_config(const std::filesystem::path& file, const std::vector<std::string>& overrides, Command command);

// Names as in the YAML file and in plan.json; parse_* throw UserError that lists the allowed names.
std::string to_string(Feature);
std::string to_string(Metric);
std::string to_string(Linkage);
std::string to_string(Merge);
std::string to_string(RouterMerge);
std::string to_string(Reconstruction);
std::string to_string(Propagate);
std::string to_string(Init);
std::string to_string(ComputeDtype);
std::string to_string(Command);
Feature parse_feature(const std::string&);
Metric parse_metric(const std::string&);
Linkage parse_linkage(const std::string&);
Merge parse_merge(const std::string&);
RouterMerge parse_router_merge(const std::string&);
Reconstruction parse_reconstruction(const std::string&);
Propagate parse_propagate(const std::string&);
Init parse_init(const std::string&);
std::string parse_method(const std::string&);  // the name itself, if it is one of methods()

}  // namespace hcsmoe

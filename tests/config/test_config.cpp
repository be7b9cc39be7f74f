// The configuration: defaults, every value, paths, overrides, and what each mistake says.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "config/names.h"
#include "hcsmoe/config.h"
#include "hcsmoe/error.h"

namespace fs = std::filesystem;
using namespace hcsmoe;

namespace {

/// A folder with a model folder and text files; configurations are written as config.yaml in it.
class ConfigTest : public testing::Test {
 protected:
  void SetUp() override {
    folder = fs::temp_directory_path() / ("hcsmoe_config_" + std::to_string(std::random_device()()));
    fs::create_directories(folder / "model");
    for (const char* name : {"a.txt", "b.jsonl.gz", "ids.npy", "text.pdf"}) std::ofstream(folder / name) << "text";
  }
  void TearDown() override { fs::remove_all(folder); }

  Config read(const std::string& yaml, Command command = Command::run, const std::vector<std::string>& overrides = {}) const {
    std::ofstream(folder / "config.yaml", std::ios::binary) << yaml;
    return read_config(folder / "config.yaml", overrides, command);
  }
  /// The message of the UserError that reading must throw, without the folder; "" if it throws none.
  std::string message(const std::string& yaml, Command command = Command::run, const std::vector<std::string>& overrides = {}) const {
    try {
      read(yaml, command, overrides);
    } catch (const UserError& error) {
      std::string text = error.what();
      for (size_t at; (at = text.find(folder.string() + "/")) != std::string::npos;) text.erase(at, folder.string().size() + 1);
      return text;
    }
    return "";
  }

  fs::path folder;
  const std::string smallest = "model: model\noutput: small\ncalibration:\n  files: [a.txt]\ncompression:\n  experts: 30\n";
  const std::string hc_smoe = smallest + "  method: hc-smoe\n";
};

void expect_has(const std::string& message, std::initializer_list<std::string> parts) {
  for (const std::string& part : parts) {
    EXPECT_NE(message.find(part), std::string::npos) << "message: " << message << "\nlacks: " << part;
  }
}

}  // namespace

TEST_F(ConfigTest, SmallestFileTakesDefaults) {
  const Config config = read(smallest);
  EXPECT_EQ(config.source, folder / "config.yaml");
  EXPECT_EQ(config.model, folder / "model");
  EXPECT_EQ(config.output, folder / "small");
  EXPECT_EQ(config.work, folder / "small.work");
  EXPECT_EQ(config.save_every, 0);
  EXPECT_EQ(config.device.wait_limit, 1800);
  EXPECT_EQ(config.output_files.max_shard_bytes, 5'000'000'000);
  EXPECT_EQ(config.calibration.files, std::vector<fs::path>{folder / "a.txt"});
  EXPECT_EQ(config.calibration.text_key, "text");
  EXPECT_EQ(config.calibration.sequences, 32);
  EXPECT_EQ(config.calibration.length, 2048);
  EXPECT_EQ(config.calibration.seed, 42u);
  EXPECT_EQ(config.calibration.add_bos, AddBos::automatic);
  EXPECT_EQ(config.compression.method, "auto");
  EXPECT_EQ(config.compression.experts.count, 30);
  EXPECT_EQ(config.compression.feature, Feature::expert_output);
  EXPECT_EQ(config.compression.metric, Metric::euclidean);
  EXPECT_EQ(config.compression.linkage, Linkage::average);
  EXPECT_EQ(config.compression.merge, Merge::frequency_aligned);
  EXPECT_EQ(config.compression.router, RouterMerge::fitted);
  EXPECT_EQ(config.compression.reconstruction, Reconstruction::full);
  EXPECT_EQ(config.compression.propagate, Propagate::compressed);
  EXPECT_EQ(config.compression.rounds, 3);
  EXPECT_EQ(config.compression.init, Init::farthest);
  EXPECT_EQ(config.compression.seed, 42u);
  EXPECT_EQ(config.compression.max_cluster_size, 0);
  EXPECT_EQ(config.compression.protect, Protect());
  EXPECT_EQ(config.device.type, DeviceType::cpu);
  EXPECT_EQ(config.device.dtype, ComputeDtype::automatic);
  EXPECT_EQ(config.device.threads, 0);
  EXPECT_EQ(config.device.memory, 0);
  EXPECT_EQ(config.device.read_ahead, 0);
  EXPECT_TRUE(config.evaluation.perplexity.empty());
  EXPECT_TRUE(config.evaluation.tasks.empty());
  EXPECT_EQ(config.evaluation.length, 0);
  EXPECT_EQ(config.evaluation.batch_tokens, 0);
  EXPECT_TRUE(config.evaluation.reference.empty());
}

TEST_F(ConfigTest, EveryKeyIsRead) {
  const Config config = read(R"(
model: ./model/
output: out/../small
work: elsewhere/
save_every: 90
output_shard_size: 1.5GB
calibration: {files: [a.txt, b.jsonl.gz], text_key: content, sequences: 7, length: 99, seed: 18446744073709551615, add_bos: no}
compression:
  method: hc-smoe
  experts: 0.5
  feature: expert_output
  metric: cosine
  linkage: ward
  merge: dominant
  router: representative
  reconstruction: router
  propagate: compressed
  rounds: 5
  seed: 18446744073709551615
  max_cluster_size: 4
  protect: [9, 2]
device: {type: cuda, dtype: bfloat16, threads: 3, memory: 40GB, read_ahead: 16GiB, wait_limit: 77}
evaluation: {perplexity: a.txt, tasks: b.jsonl.gz, length: 512, batch_tokens: 4096, reference: model}
)");
  EXPECT_EQ(config.model, folder / "model");
  EXPECT_EQ(config.output, folder / "small");
  EXPECT_EQ(config.work, folder / "elsewhere");
  EXPECT_EQ(config.save_every, 90);
  EXPECT_EQ(config.device.wait_limit, 77);
  EXPECT_EQ(config.output_files.max_shard_bytes, 1'500'000'000);
  EXPECT_EQ(config.calibration.files, (std::vector<fs::path>{folder / "a.txt", folder / "b.jsonl.gz"}));
  EXPECT_EQ(config.calibration.text_key, "content");
  EXPECT_EQ(config.calibration.sequences, 7);
  EXPECT_EQ(config.calibration.length, 99);
  EXPECT_EQ(config.calibration.seed, 18446744073709551615u);
  EXPECT_EQ(config.calibration.add_bos, AddBos::no);
  EXPECT_EQ(config.compression.experts.count, 0);
  EXPECT_EQ(config.compression.experts.share, 0.5);
  EXPECT_EQ(config.compression.metric, Metric::cosine);
  EXPECT_EQ(config.compression.linkage, Linkage::ward);
  EXPECT_EQ(config.compression.merge, Merge::dominant);
  EXPECT_EQ(config.compression.router, RouterMerge::representative);
  EXPECT_EQ(config.compression.reconstruction, Reconstruction::router);
  EXPECT_EQ(config.compression.propagate, Propagate::compressed);
  EXPECT_EQ(config.compression.rounds, 5);
  EXPECT_EQ(config.compression.seed, 18446744073709551615u);
  EXPECT_EQ(config.compression.max_cluster_size, 4);
  EXPECT_EQ(config.compression.protect, (Protect{{2, 9}, 0}));
  EXPECT_EQ(config.device.dtype, ComputeDtype::bfloat16);
  EXPECT_EQ(config.device.threads, 3);
  EXPECT_EQ(config.device.memory, 40'000'000'000);
  EXPECT_EQ(config.device.read_ahead, int64_t{1} << 34);
  EXPECT_EQ(config.evaluation.perplexity, std::vector<fs::path>{folder / "a.txt"});
  EXPECT_EQ(config.evaluation.length, 512);
  EXPECT_EQ(config.evaluation.tasks, std::vector<fs::path>{folder / "b.jsonl.gz"});
  EXPECT_EQ(config.evaluation.batch_tokens, 4096);
  EXPECT_EQ(config.evaluation.reference, folder / "model");
}

TEST_F(ConfigTest, NullMeansDefault) {
  const Config config = read(smallest + "work: null\noutput_shard_size: ~\ndevice:\nevaluation: {perplexity: null, length: }\n");
  EXPECT_EQ(config.work, folder / "small.work");
  EXPECT_EQ(config.output_files.max_shard_bytes, 5'000'000'000);
  EXPECT_EQ(config.evaluation.length, 0);
}

TEST_F(ConfigTest, ExpertBudgets) {
  const auto budget = [&](const std::string& text) {
    return read(smallest, Command::run, {"compression.experts=" + text}).compression.experts;
  };
  EXPECT_EQ(budget("1").resolve(60), 1);
  EXPECT_EQ(budget("1.0").resolve(60), 60);
  EXPECT_EQ(budget("0.5").resolve(60), 30);
  EXPECT_EQ(budget("50%").resolve(60), 30);
  EXPECT_EQ(budget("37.5%").resolve(8), 3);
  EXPECT_EQ(budget("0.5").resolve(7), 4);     // 3.5 rounds up
  EXPECT_EQ(budget("0.001").resolve(60), 1);  // at least one
  EXPECT_EQ(budget("64").resolve(60), 64);    // K above E is refused where E is known
}

TEST_F(ConfigTest, ShardSizes) {
  const auto bytes = [&](const std::string& text) {
    return read(smallest, Command::run, {"output_shard_size=" + text}).output_files.max_shard_bytes;
  };
  EXPECT_EQ(bytes("123456"), 123456);
  EXPECT_EQ(bytes("5GB"), 5'000'000'000);
  EXPECT_EQ(bytes("2GiB"), int64_t{2} << 30);
  EXPECT_EQ(bytes("\"10KB\""), 10'000);
  for (const std::string text : {"5 GB", "5gb", "GB", "-5GB", "0", "999", "1e30", "nan", "[5GB]"}) {
    expect_has(message(smallest, Command::run, {"output_shard_size=" + text}), {"output_shard_size: expected a size", "as in 5GB"});
  }
}

TEST_F(ConfigTest, Overrides) {
  const Config config = read(hc_smoe, Command::run,
                             {"compression.linkage=single", "compression.linkage=ward", "device.threads=2", "calibration.text_key=a=b"});
  EXPECT_EQ(config.compression.linkage, Linkage::ward);  // the last one counts
  EXPECT_EQ(config.compression.experts.count, 30);
  EXPECT_EQ(config.device.threads, 2);
  EXPECT_EQ(config.calibration.text_key, "a=b");
}

TEST_F(ConfigTest, PathsOfTheFileAndOfOverrides) {
  const fs::path before = fs::current_path();
  fs::create_directories(folder / "here");
  std::ofstream(folder / "here" / "c.txt") << "text";
  std::ofstream(folder / "here" / "d.txt") << "text";
  fs::current_path(folder / "here");
  const Config config = read(smallest, Command::run, {"calibration.files=[c.txt, d.txt]", "work=w"});
  const Config absolute = read(smallest, Command::run, {"output=/nowhere/small"});
  fs::current_path(folder);
  const Config relative_file = read_config("config.yaml", {}, Command::run);
  fs::current_path(before);
  EXPECT_EQ(config.model, folder / "model");  // relative to the file
  EXPECT_EQ(config.calibration.files, (std::vector<fs::path>{folder / "here" / "c.txt", folder / "here" / "d.txt"}));
  EXPECT_EQ(config.work, folder / "here" / "w");  // relative to the current folder
  EXPECT_EQ(absolute.output, "/nowhere/small");
  EXPECT_EQ(absolute.work, "/nowhere/small.work");
  EXPECT_EQ(relative_file.model, folder / "model");
}

TEST_F(ConfigTest, EachCommandRequiresItsKeys) {
  const std::string model = "model: model\n";
  using enum Command;
  for (const Command command : {run, inspect, collect, plan, apply, evaluate}) {
    expect_has(message("output: small\n", command), {"config.yaml: the key 'model' is missing", "'" + to_string(command) + "'", "hint:"});
  }
  expect_has(message(model), {"'output' is missing"});
  expect_has(message(model, apply), {"'output' is missing"});
  expect_has(message(model, collect), {"'work' is missing", "OUTPUT.work"});
  expect_has(message(model, plan), {"'work' is missing"});
  expect_has(message(model + "work: w\n", collect), {"'calibration.files' is missing"});
  expect_has(message(model + "output: o\ncalibration: {files: []}\n"), {"'calibration.files' is missing"});
  expect_has(message(model + "work: w\n", plan), {"'compression.experts' is missing", "experts: 30"});
  expect_has(message(model, inspect), {"'compression.experts' is missing"});
  expect_has(message(model, evaluate), {"'evaluation.perplexity' is missing"});

  EXPECT_EQ(message(model + "compression: {experts: 2}", inspect), "");
  EXPECT_EQ(message(model + "work: w\ncalibration: {files: a.txt}", collect), "");
  EXPECT_EQ(message(model + "work: w\ncompression: {experts: 2}", plan), "");
  EXPECT_EQ(message(model + "output: o", apply), "");
  EXPECT_EQ(message(model + "evaluation: {perplexity: a.txt}", evaluate), "");
  EXPECT_EQ(message(model + "evaluation: {tasks: b.jsonl.gz}", evaluate), "");
  EXPECT_EQ(message(model + "output: model\nevaluation: {perplexity: a.txt}", evaluate), "");  // an output, evaluated as the model
  EXPECT_EQ(message(model + "work: w\ncompression: {experts: 2}\ncalibration: {files: gone.txt}", plan), "");  // not used, not looked for
}

TEST_F(ConfigTest, UnknownKeys) {
  expect_has(message(smallest + "device:\n  thread: 3\n"), {"config.yaml:8: unknown key 'device.thread'", "nearest: device.threads",
                                                            "allowed here: type, dtype, threads, memory, read_ahead"});
  expect_has(message(smallest + "compresion:\n  metod: x\n"),
             {"config.yaml:7: unknown key 'compresion'", "nearest: compression", "allowed here: model, output, work"});
  expect_has(message(smallest + "linkage: ward\n"), {"config.yaml:7: unknown key 'linkage'", "nearest: compression.linkage"});
  expect_has(message(smallest + "modle: x\n"), {"unknown key 'modle'", "nearest: model"});
  const std::string far = message(smallest + "zzzzzzzz: 1\n");
  expect_has(far, {"config.yaml:7: unknown key 'zzzzzzzz'", "allowed here"});
  EXPECT_EQ(far.find("nearest"), std::string::npos) << far;
  expect_has(message(smallest + "<<: {a: 1}\n"), {"unknown key '<<'"});
  expect_has(message(smallest, Command::run, {"compression.linkge=ward"}),
             {"--set compression.linkge=ward: unknown key 'compression.linkge'", "nearest: compression.linkage"});
  expect_has(message(smallest, Command::run, {"compresion.linkage=ward"}), {"--set compresion.linkage=ward: unknown key 'compresion'"});
}

TEST_F(ConfigTest, WrongTypes) {
  expect_has(message("[model, output]\n"), {"config.yaml:1: a configuration is a mapping", "found a list", "model"});
  expect_has(message("just words\n"), {"found 'just words'"});
  expect_has(message(""), {"'model' is missing"});
  expect_has(message(smallest + "device: cpu\n"), {"config.yaml:7: 'device' is a mapping", "found 'cpu'", "type, dtype, threads"});
  expect_has(message("model: [a]\n"), {"config.yaml:1: model: expected a path, found a list"});
  expect_has(message("model: model\ncalibration:\n  files: {a: b}\n"),
             {"config.yaml:3: calibration.files: expected a list of paths, found a mapping"});
  expect_has(message("model: model\ncalibration:\n  files:\n    - a.txt\n    - [b]\n"),
             {"config.yaml:5: calibration.files: expected a path, found a list"});
  expect_has(message(smallest, Command::run, {"calibration.text_key={a: b}"}), {"calibration.text_key: expected text, found a mapping"});
  expect_has(message(smallest, Command::run, {"compression.linkage=[ward]"}), {"compression.linkage: expected a name, found a list"});
  expect_has(message(smallest, Command::run, {"model.x=1"}), {"--set model.x=1: model: expected a path, found a mapping"});
}

TEST_F(ConfigTest, ImpossibleNumbers) {
  const auto set = [&](const std::string& override) { return message(smallest, Command::run, {override}); };
  for (const std::string text : {"0", "-1", "2k", "1.5", "1e3", "0x10", "'32'", "[32]", "99999999999999999999", "4294967296", "true"}) {
    expect_has(set("calibration.sequences=" + text),
               {"--set calibration.sequences=" + text + ": calibration.sequences: expected an integer from 1 to 2147483648, found"});
  }
  expect_has(set("calibration.length=0"), {"calibration.length: expected an integer from 1 to 16777216, found '0'"});
  expect_has(message("model: model\ncalibration:\n  sequences: 1000000000\n  length: 2000\n"),
             {"config.yaml:3: calibration.sequences: 1000000000 sequences of 2000 tokens are more than 1099511627776 tokens"});
  expect_has(set("calibration.seed=-1"), {"calibration.seed: expected an integer from 0 to 18446744073709551615, found '-1'"});
  expect_has(set("calibration.seed=18446744073709551616"), {"calibration.seed: expected"});
  expect_has(set("device.threads=-2"), {"device.threads: expected an integer from 0 to 4096"});
  expect_has(set("evaluation.length=-2"), {"evaluation.length: expected an integer from 0"});
  for (const std::string text : {"0", "-3", "0.0", "1.5", "-0.5", "101%", "0%", "x%", "nan", "inf", "half", "'30'", "[30]", "65537"}) {
    expect_has(set("compression.experts=" + text), {"compression.experts: expected a count from 1", "a share above 0", "0.5 or 50%"});
  }
}

TEST_F(ConfigTest, ValuesThatAreNotAllowed) {
  const auto set = [&](const std::string& override) { return message(smallest, Command::run, {override}); };
  expect_has(message(smallest + "  linkage: averge\n"),
             {"config.yaml:7: compression.linkage: 'averge' is not allowed; allowed: single, complete, average, ward"});
  expect_has(set("compression.method=dec"),
             {"compression.method: 'dec' is not allowed; allowed: auto, hc-smoe, kmeans, fuzzy-cmeans, m-smoe"});
  expect_has(set("compression.feature=outputs"),
             {"compression.feature: ", "allowed: expert_output, expert_output_tokens, router_logits, weight, cka, weight_cka"});
  expect_has(set("compression.candidates=0"), {"compression.candidates: ", "from 1 to 10000000"});
  expect_has(set("calibration.sample=1"), {"calibration.sample: ", "from 2 to 1048576"});
  expect_has(set("compression.metric=Euclidean"), {"compression.metric: ", "allowed: euclidean, cosine"});
  expect_has(set("compression.merge=ties"),
             {"compression.merge: ", "allowed: frequency, average, dominant, frequency-aligned, average-aligned, fix-dominant, zipit"});
  expect_has(set("compression.router=keep"), {"compression.router: ", "allowed: frequency, average, representative, alias, fitted"});
  expect_has(set("compression.reconstruction=fully"), {"compression.reconstruction: 'fully' is not allowed; allowed: none, router, full"});
  expect_has(set("compression.propagate=both"), {"compression.propagate: 'both' is not allowed; allowed: original, compressed"});
  for (const std::string rounds : {"0", "101", "two"}) {
    expect_has(set("compression.rounds=" + rounds), {"compression.rounds: expected an integer from 1 to 100, found '" + rounds + "'"});
  }
  expect_has(set("device.type=tpu"), {"device.type: 'tpu' is not allowed; allowed: cpu, cuda"});
  for (const std::string key : {"memory", "read_ahead"}) {
    expect_has(set("device." + key + "=much"), {"device." + key + ": expected a size from 1KB to 1000TB", "found 'much'", "as in "});
  }
  expect_has(set("device.dtype=float16"), {"device.dtype: ", "allowed: auto, float32, bfloat16"});
  expect_has(set("calibration.add_bos=maybe"), {"calibration.add_bos: ", "allowed: auto, true, false"});
}

/// What the completion offers is what the parser takes, of every key.
TEST_F(ConfigTest, NamesForCompletion) {
  for (const std::string& key : configuration_keys()) {
    const std::string wrong = message(hc_smoe, Command::run, {key + "=no such name"});
    std::string allowed;
    for (const std::string& name : names_for_key(key)) allowed += (allowed.empty() ? "" : ", ") + name;
    const std::string list = "is not allowed; allowed: ";
    const size_t at = wrong.find(list);
    EXPECT_EQ(at == std::string::npos ? "" : wrong.substr(at + list.size()), allowed) << key << ": " << wrong;
  }
}

TEST_F(ConfigTest, EveryMethodIsRead) {
  for (const Method& method : methods()) EXPECT_EQ(read(smallest + "  method: " + method.name + "\n").compression.method, method.name);
  const Config kmeans =
      read(smallest + "  method: kmeans\n  feature: expert_output\n  metric: cosine\n  init: random\n  protect: {top: 2}\n");
  EXPECT_EQ(kmeans.compression.init, Init::random);
  EXPECT_EQ(kmeans.compression.protect, (Protect{{}, 2}));
  EXPECT_EQ(read(hc_smoe + "  feature: router_logits\n").compression.feature, Feature::router_logits);
  // What a method takes where a key is not given.
  for (const Method& method : methods()) {
    if (method.name == "auto") continue;
    const Recipe recipe = read(smallest + "  method: " + method.name + "\n").compression;
    EXPECT_EQ(recipe.merge, method.name == "dek" ? Merge::average : Merge::frequency) << method.name;
    EXPECT_EQ(recipe.router, method.name == "dek" ? RouterMerge::average : RouterMerge::frequency) << method.name;
    EXPECT_EQ(recipe.reconstruction, Reconstruction::none) << method.name;
    EXPECT_EQ(recipe.propagate, Propagate::original) << method.name;
  }
  const Recipe dek = read(smallest + "  method: dek\n").compression;
  EXPECT_EQ(dek.feature, Feature::cka);
  EXPECT_EQ(dek.merge, Merge::average);
  EXPECT_EQ(dek.router, RouterMerge::average);
  EXPECT_EQ(read(smallest + "  method: dek\n  merge: frequency\n").compression.merge, Merge::frequency);
  EXPECT_EQ(read(smallest + "  method: o-prune\n  candidates: 7\n").compression.candidates, 7);
  // A key of another method is taken back by null.
  const std::string ward = hc_smoe + "  linkage: ward\n  metric: cosine\n  merge: average\n";
  const std::vector<std::string> back = {"compression.method=reap", "compression.linkage=null", "compression.metric=null"};
  EXPECT_EQ(message(ward, Command::run, back), "");
}

TEST_F(ConfigTest, KeysThatTheMethodDoesNotUse) {
  const auto set = [&](std::vector<std::string> overrides) { return message(hc_smoe, Command::run, overrides); };
  expect_has(set({"compression.method=kmeans", "compression.linkage=ward"}),
             {"--set compression.linkage=ward: compression.linkage: method kmeans does not use it; methods that do: hc-smoe", "null"});
  expect_has(set({"compression.method=reap", "compression.metric=cosine"}),
             {"compression.metric: method reap does not use it; methods that do: hc-smoe, kmeans"});
  expect_has(set({"compression.candidates=7"}), {"compression.candidates: method hc-smoe does not use it; methods that do: o-prune"});
  expect_has(set({"compression.method=fuzzy-cmeans", "compression.merge=frequency"}),
             {"compression.merge: method fuzzy-cmeans does not use it; methods that do: auto, hc-smoe, kmeans, m-smoe, dek"});
  expect_has(set({"compression.method=fuzzy-cmeans", "compression.router=average"}), {"compression.router: method fuzzy-cmeans does not"});
  expect_has(set({"compression.method=fuzzy-cmeans", "compression.reconstruction=full"}),
             {"compression.reconstruction: method fuzzy-cmeans puts an expert in several clusters, which full cannot fit", "none"});
  expect_has(set({"compression.method=dek", "compression.feature=weight"}),
             {"compression.feature: method dek cannot use weight; features for dek: cka, weight_cka; methods for weight: hc-smoe"});
  expect_has(set({"compression.method=kmeans", "compression.feature=cka"}),
             {"compression.feature: method kmeans cannot use cka; features for kmeans: expert_output; methods for cka: hc-smoe, dek"});
  expect_has(set({"compression.feature=cka", "compression.metric=cosine"}),
             {"compression.metric: the feature cka is a similarity of its own, which no metric applies to"});
  expect_has(set({"compression.method=m-smoe", "compression.feature=router_logits"}),
             {"compression.feature: method m-smoe does not use it"});
  expect_has(set({"compression.init=random"}), {"compression.init: method hc-smoe does not use it; methods that do: kmeans"});
  expect_has(set({"compression.method=f-prune", "compression.max_cluster_size=3"}),
             {"compression.max_cluster_size: method f-prune does not use it; methods that do: hc-smoe"});
  expect_has(set({"compression.method=kmeans", "compression.feature=router_logits"}),
             {"compression.feature: method kmeans cannot use router_logits; features for kmeans: expert_output; methods for router_logits: "
              "hc-smoe"});
  expect_has(message(smallest, Command::run, {"compression.linkage=ward"}),
             {"compression.linkage: method auto does not use it; methods that do: hc-smoe"});
  expect_has(message(smallest, Command::run, {"compression.feature=expert_output"}), {"compression.feature: method auto does not use it"});
  for (const std::string reconstruction : {"none", "router"}) {
    expect_has(message(smallest, Command::run, {"compression.reconstruction=" + reconstruction}),
               {"compression.reconstruction: method auto chooses by the error of reconstructed blocks; allowed with it: full", "hc-smoe"});
  }
}

TEST_F(ConfigTest, Protect) {
  const auto set = [&](const std::string& value) { return message(smallest, Command::run, {"compression.protect=" + value}); };
  for (const std::string text : {"3", "{first: 2}", "{top: 2, last: 1}", "all"}) {
    expect_has(set(text), {"compression.protect: expected a list of experts, or {top: N}"});
  }
  for (const std::string text : {"[-1]", "[1, x]", "['1']", "[[1]]"})
    expect_has(set(text), {"compression.protect: expected experts from 0"});
  expect_has(set("[1, 2, 1]"), {"compression.protect: expert 1 is listed twice"});
  for (const std::string text : {"{top: -1}", "{top: many}", "{top: [1]}"}) expect_has(set(text), {"expected top as an integer from 0"});
  EXPECT_EQ(set("[]"), "");
  EXPECT_EQ(set("{top: 0}"), "");
  EXPECT_EQ(message(smallest, Command::run, {"compression.protect.top=2"}), "");
}

TEST_F(ConfigTest, FilesAndFolders) {
  const std::string rest = "output: small\ncompression: {experts: 2}\n";
  expect_has(message("model: gone\n" + rest + "calibration: {files: a.txt}\n"), {"config.yaml:1: model: no folder gone", "config.json"});
  expect_has(message("model: a.txt\n" + rest + "calibration: {files: a.txt}\n"), {"config.yaml:1: model: a.txt is not a folder"});
  const std::string text = "model: model\n" + rest;
  expect_has(message(text + "calibration:\n  files:\n    - a.txt\n    - gone.txt\n"),
             {"config.yaml:7: calibration.files: no file gone.txt"});
  expect_has(message(text + "calibration: {files: model.txt}\n"), {"no file model.txt"});
  fs::create_directory(folder / "model.txt");
  expect_has(message(text + "calibration: {files: model.txt}\n"), {"model.txt is a folder"});
  expect_has(message(text + "calibration: {files: text.pdf}\n"),
             {"text.pdf is not known; allowed: .jsonl, .jsonl.gz, .json, .json.gz, .txt, .txt.gz, .npy"});
  expect_has(message(text + "calibration: {files: [a.txt, ids.npy]}\n"), {"ids.npy holds token ids and must be the only file"});
  EXPECT_EQ(message(text + "calibration: {files: ids.npy}\n"), "");
  expect_has(message(smallest + "evaluation: {perplexity: [a.txt, gone.jsonl]}\n"),
             {"config.yaml:7: evaluation.perplexity: no file gone.jsonl"});
  expect_has(message(smallest + "evaluation: {perplexity: ids.npy}\n"), {"ids.npy is not known; allowed: .jsonl"});
  expect_has(message(smallest + "evaluation: {tasks: a.txt}\n"), {"evaluation.tasks: ", "a.txt is not known; allowed: .jsonl, .jsonl.gz"});
  expect_has(message(smallest + "evaluation: {tasks: gone.jsonl}\n"), {"evaluation.tasks: no file gone.jsonl"});
  expect_has(message(smallest + "evaluation: {perplexity: a.txt, reference: gone}\n", Command::evaluate),
             {"config.yaml:7: evaluation.reference: no folder gone", "of the original"});
  const auto set = [&](const std::string& override) { return message(smallest, Command::run, {override}); };
  expect_has(message("model: model\noutput: model/small\ncalibration: {files: a.txt}\ncompression: {experts: 2}\n"),
             {"config.yaml:2: output: ", "lies inside the model's folder"});
  expect_has(message(smallest + "work: model/../model\n"), {"work: ", "lies inside the model's folder"});
  expect_has(message(smallest + "work: small/work\n"), {"config.yaml:7: work: ", "lies inside the output folder"});
  expect_has(set("output=~/small"), {"'~' is not expanded"});
  expect_has(set("output=\"a\\0b\""), {"control character"});
  expect_has(set("output=''"), {"output: expected a path, found nothing between the quotes"});
}

TEST_F(ConfigTest, YamlMistakes) {
  expect_has(message("model: model\noutput: [a, b\n"), {"config.yaml:", "not valid YAML"});
  expect_has(message("model: model\n\toutput: a\n"), {"config.yaml:2: not valid YAML"});
  expect_has(message("model: a: b\n"), {"config.yaml:1: not valid YAML"});
  expect_has(message(smallest + "output: again\n"), {"config.yaml:7: key 'output' is given twice; first at config.yaml:2"});
  expect_has(message("model: m\ndevice:\n  threads: 1\n  type: cpu\n  threads: 2\n"),
             {"config.yaml:5: key 'device.threads' is given twice; first at config.yaml:3"});
  expect_has(message("model: &m model\noutput: *m\n"), {"config.yaml:1: YAML anchors and aliases"});
  expect_has(message("model: *m\n"), {"config.yaml:1: not valid YAML: the referenced anchor"});
  expect_has(message("model: !!str model\n"), {"config.yaml:1: YAML tags"});
  expect_has(message("[a]: model\n"), {"config.yaml:1: a list or a mapping stands where a key must"});
  expect_has(message("~: model\n"), {"config.yaml:1: a key is missing"});
  expect_has(message("model: model\n---\nmodel: other\n"), {"config.yaml:3: a second YAML document"});
  expect_has(message(std::string(100'000, '[')), {"config.yaml:1: ", "is a bracket not closed?"});
  expect_has(message("model: " + std::string(100'000, '{')), {"config.yaml:1: "});
  expect_has(message("model: " + std::string(1'000'001, 'x')), {"config.yaml"});
}

TEST_F(ConfigTest, OverrideMistakes) {
  const auto set = [&](const std::string& override) { return message(smallest, Command::run, {override}); };
  expect_has(set("compression.experts"), {"--set compression.experts: expected key.path=value"});
  expect_has(set("=3"), {"--set =3: expected key.path=value"});
  expect_has(set("compression..experts=3"), {"has an empty part"});
  expect_has(set("compression.experts.=3"), {"has an empty part"});
  expect_has(set("calibration.files=[a.txt"), {"--set calibration.files=[a.txt: ", "is a bracket not closed?"});
  expect_has(set("calibration={length: 3, length: 4}"), {"key 'length' is given twice"});
  expect_has(set("calibration.files=[gone.txt]"), {"--set calibration.files=[gone.txt]: calibration.files: no file", "gone.txt"});
  EXPECT_EQ(set("device=null"), "");
}

TEST_F(ConfigTest, TheFileItself) {
  EXPECT_THROW(read_config(folder / "gone.yaml", {}, Command::run), UserError);
  EXPECT_THROW(read_config(folder, {}, Command::run), UserError);
  fs::create_symlink(folder / "nowhere", folder / "dangling.yaml");
  EXPECT_THROW(read_config(folder / "dangling.yaml", {}, Command::run), UserError);
}

TEST_F(ConfigTest, NamesGoBothWays) {
  for (const auto linkage : {Linkage::single, Linkage::complete, Linkage::average, Linkage::ward}) {
    EXPECT_EQ(parse_linkage(to_string(linkage)), linkage);
  }
  for (const auto metric : {Metric::euclidean, Metric::cosine}) EXPECT_EQ(parse_metric(to_string(metric)), metric);
  for (const auto merge : {Merge::frequency, Merge::average, Merge::dominant, Merge::frequency_aligned, Merge::average_aligned,
                           Merge::fix_dominant, Merge::zipit})
    EXPECT_EQ(parse_merge(to_string(merge)), merge);
  for (const auto router :
       {RouterMerge::frequency, RouterMerge::average, RouterMerge::representative, RouterMerge::alias, RouterMerge::fitted}) {
    EXPECT_EQ(parse_router_merge(to_string(router)), router);
  }
  EXPECT_EQ(parse_feature("expert_output"), Feature::expert_output);
  for (const auto reconstruction : {Reconstruction::none, Reconstruction::router, Reconstruction::full}) {
    EXPECT_EQ(parse_reconstruction(to_string(reconstruction)), reconstruction);
  }
  for (const auto propagate : {Propagate::original, Propagate::compressed}) EXPECT_EQ(parse_propagate(to_string(propagate)), propagate);
  EXPECT_EQ(to_string(ComputeDtype::automatic), "auto");
  EXPECT_EQ(to_string(Command::evaluate), "evaluate");
  EXPECT_EQ(to_string(Command::report), "report");
  EXPECT_THROW(parse_metric("cosin"), UserError);
}

TEST_F(ConfigTest, ShippedConfigurationsAreValid) {
  int files = 0;
  for (const auto& entry : fs::directory_iterator(fs::path(TEST_DATA) / "../../configs")) {
    const std::vector<std::string> overrides = {"model=" + (folder / "model").string(), "calibration.files=" + (folder / "a.txt").string(),
                                                "evaluation.perplexity=" + (folder / "a.txt").string()};
    EXPECT_NO_THROW({
      const Config config = read_config(entry.path(), overrides, Command::run);
      EXPECT_GE(config.compression.experts.count + (config.compression.experts.share > 0), 1) << entry.path();
    }) << entry.path();
    ++files;
  }
  EXPECT_GE(files, 4);
  EXPECT_NO_THROW(read_config(fs::path(TEST_DATA) / "../../configs/demo.yaml", {}, Command::run));
}

/// Damaged files: a UserError or a configuration, never anything else.
TEST_F(ConfigTest, DamagedFilesNeverFailOtherwise) {
  std::mt19937 random(7);
  const std::string pieces = "[]{}:,-&*!|>'\"%@#?~ \n\t\\\x01\x80\xff.0e9=";
  int refused = 0;
  constexpr int rounds = 1000;
  for (int round = 0; round < rounds; ++round) {
    std::string yaml = smallest + "device: {type: cpu, threads: 2}\nevaluation:\n  length: 5\n";
    for (unsigned change = 0; change < 1 + random() % 4; ++change) {
      const size_t at = random() % yaml.size();
      switch (random() % 3) {
        case 0:
          yaml[at] = pieces[random() % pieces.size()];
          break;
        case 1:
          yaml.insert(at, 1, pieces[random() % pieces.size()]);
          break;
        default:
          yaml.erase(at, 1 + random() % 5);
          break;
      }
    }
    try {
      read(yaml);
    } catch (const UserError& error) {
      ++refused;
    } catch (const std::exception& error) {
      FAIL() << error.what() << "\n" << yaml;
    }
  }
  EXPECT_GT(refused, rounds / 4);
  EXPECT_LT(refused, rounds);
}

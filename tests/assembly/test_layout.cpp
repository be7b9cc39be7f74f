#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <set>

#include "assembly/layout.h"
#include "hcsmoe/error.h"
#include "support/temporary_folder.h"

namespace hcsmoe {
namespace {

namespace fs = std::filesystem;

constexpr int64_t unlimited = 5'000'000'000;

struct Demo {
  Checkpoint checkpoint = Checkpoint::open(fs::path(TEST_DATA) / "demo" / "model");
  ModelDescription model = describe_model(checkpoint);  // 4 layers of 16 experts, all MoE; layer 1 is split over two files
};

std::vector<OutputTensor> all_tensors(const std::vector<OutputFile>& files) {
  std::vector<OutputTensor> all;
  for (const OutputFile& file : files) all.insert(all.end(), file.tensors.begin(), file.tensors.end());
  return all;
}

/// "model.layers.2.mlp.experts.13.up_proj.weight" -> {2, 13}, the router {2, -1}, anything else {-1, -1}. For the demo model.
std::pair<int, int> replaced(const std::string& name) {
  int layer = -1, expert = -1, end = 0;
  if (std::sscanf(name.c_str(), "model.layers.%d.mlp.experts.%d.", &layer, &expert) == 2) return {layer, expert};
  if (std::sscanf(name.c_str(), "model.layers.%d.mlp.gate.weight%n", &layer, &end) == 1 && end == static_cast<int>(name.size())) {
    return {layer, -1};
  }
  return {-1, -1};
}

/// That every file is a valid safetensors file with just the tensors of the layout, aligned.
void check_files(const std::vector<OutputFile>& files) {
  for (size_t i = 0; i < files.size(); ++i) {
    const OutputFile& file = files[i];
    const std::string header = safetensors_header(file.tensors);
    EXPECT_EQ(header.size() % 8, 0u);
    const SafetensorsHeader parsed = parse_safetensors_header(std::as_bytes(std::span(header)), file.bytes, file.name);
    EXPECT_EQ(parsed.metadata, (std::map<std::string, std::string>{{"format", "pt"}}));
    EXPECT_EQ(parsed.data_begin, header.size());
    ASSERT_EQ(parsed.tensors.size(), file.tensors.size());
    for (size_t t = 0; t < file.tensors.size(); ++t) {
      const TensorInfo& expected = file.tensors[t].info;
      EXPECT_EQ(parsed.tensors[t].name, expected.name);
      EXPECT_EQ(parsed.tensors[t].shape, expected.shape);
      EXPECT_EQ(parsed.tensors[t].begin, expected.begin);
      EXPECT_EQ(parsed.tensors[t].end, expected.end);
      EXPECT_TRUE(parsed.tensors[t].dtype == expected.dtype);
      EXPECT_EQ(expected.begin % static_cast<uint64_t>(expected.dtype.bytes), 0u) << expected.name;
      EXPECT_EQ(expected.file, static_cast<int>(i));
    }
  }
}

TEST(Layout, OneFile) {
  const Demo demo;
  const auto files = output_layout(demo.checkpoint, demo.model, 6, unlimited);
  ASSERT_EQ(files.size(), 1u);
  EXPECT_EQ(files[0].name, "model.safetensors");
  check_files(files);

  // What the output has to hold, from the names of the checkpoint alone: expert numbers below 6 and everything that is no expert.
  std::vector<std::string> expected;
  std::set<int> placed;
  for (const TensorInfo& info : demo.checkpoint.tensors()) {
    const int layer = replaced(info.name).first;
    if (layer < 0) {
      expected.push_back(info.name);
    } else if (placed.insert(layer).second) {
      const std::string prefix = "model.layers." + std::to_string(layer) + ".mlp.";
      expected.push_back(prefix + "gate.weight");
      for (int expert = 0; expert < 6; ++expert) {
        for (const char* part : {"gate", "up", "down"}) {
          expected.push_back(prefix + "experts." + std::to_string(expert) + "." + part + "_proj.weight");
        }
      }
    }
  }
  EXPECT_EQ(placed.size(), 4u);
  std::vector<std::string> names;
  for (const OutputTensor& tensor : files[0].tensors) {
    const TensorInfo& info = tensor.info;
    names.push_back(info.name);
    const auto [layer, expert] = replaced(info.name);
    EXPECT_EQ(tensor.from_shard, layer >= 0) << info.name;
    EXPECT_EQ(tensor.layer, layer) << info.name;
    EXPECT_EQ(info.dtype.name, "BF16");
    const bool router = layer >= 0 && expert < 0;
    EXPECT_EQ(info.shape, router ? (std::vector<int64_t>{6, 128}) : demo.checkpoint.info(info.name).shape) << info.name;
  }
  EXPECT_EQ(names, expected);
}

TEST(Layout, FilesAreFilledUpToTheLimit) {
  const Demo demo;
  const auto order = [](const std::vector<OutputFile>& files) {
    std::vector<std::string> names;
    for (const OutputTensor& tensor : all_tensors(files)) names.push_back(tensor.info.name);
    return names;
  };
  const auto whole = output_layout(demo.checkpoint, demo.model, 6, unlimited);
  for (const int64_t limit : {300'000, 100'000, 24'576, 24'575, 1}) {
    const auto files = output_layout(demo.checkpoint, demo.model, 6, limit);
    check_files(files);
    EXPECT_EQ(order(files), order(whole));
    for (size_t i = 0; i < files.size(); ++i) {
      char name[64];
      std::snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", static_cast<int>(i + 1), static_cast<int>(files.size()));
      EXPECT_EQ(files[i].name, name);
      ASSERT_FALSE(files[i].tensors.empty());
      int64_t bytes = 0;
      for (const OutputTensor& tensor : files[i].tensors) bytes += static_cast<int64_t>(tensor.info.bytes());
      EXPECT_TRUE(bytes <= limit || files[i].tensors.size() == 1);
      if (i + 1 < files.size()) {
        EXPECT_GT(bytes + static_cast<int64_t>(files[i + 1].tensors[0].info.bytes()), limit);
      }
    }
    if (limit == 1) {
      EXPECT_EQ(files.size(), order(whole).size());
    }
  }
}

TEST(Layout, KeepingAllOrOne) {
  const Demo demo;
  const auto all = output_layout(demo.checkpoint, demo.model, 16, unlimited);
  uint64_t bytes = 0;
  for (const OutputTensor& tensor : all_tensors(all)) bytes += tensor.info.bytes();
  EXPECT_EQ(bytes, demo.checkpoint.total_bytes());
  EXPECT_EQ(all[0].tensors.size(), demo.checkpoint.tensors().size());
  const auto one = output_layout(demo.checkpoint, demo.model, 1, unlimited);
  EXPECT_EQ(one[0].tensors.size(), demo.checkpoint.tensors().size() - 4u * 15 * 3);
  EXPECT_THROW(output_layout(demo.checkpoint, demo.model, 0, unlimited), UserError);
  EXPECT_THROW(output_layout(demo.checkpoint, demo.model, 17, unlimited), UserError);
}

/// A checkpoint whose tensors differ in element size, in an order that leaves all of them but the first unaligned if it is kept.
TEST(Layout, EveryTensorIsAligned) {
  const std::vector<std::tuple<std::string, std::string, std::vector<int64_t>, int64_t>> tensors = {
      {"odd", "U8", {3}, 3},
      {"layer.0.router", "F32", {3, 5}, 60},
      {"scalar", "F64", {}, 8},
      {"layer.0.expert.2.gate", "BF16", {1, 5}, 10},
      {"layer.0.expert.0.gate", "BF16", {1, 5}, 10},
      {"layer.0.expert.0.up", "BF16", {1, 5}, 10},
      {"layer.0.expert.0.down", "F32", {5, 1}, 20},
      {"flags", "BOOL", {7}, 7},
      {"layer.0.expert.1.gate", "BF16", {1, 5}, 10},
      {"layer.0.expert.1.up", "BF16", {1, 5}, 10},
      {"layer.0.expert.1.down", "F32", {5, 1}, 20},
      {"layer.0.expert.2.up", "BF16", {1, 5}, 10},
      {"layer.0.expert.2.down", "F32", {5, 1}, 20},
      {"empty", "F64", {0, 4}, 0},
      {"norm", "F16", {5}, 10},
      {"ids", "I64", {2}, 16},
  };
  TemporaryFolder folder;
  {
    std::string header = "{", data;
    for (const auto& [name, dtype, shape, bytes] : tensors) {
      std::string sizes;
      for (const int64_t size : shape) sizes += (sizes.empty() ? "" : ",") + std::to_string(size);
      header += (header.size() > 1 ? ",\"" : "\"") + name + R"(":{"dtype":")" + dtype + R"(","shape":[)" + sizes + R"(],"data_offsets":[)" +
                std::to_string(data.size()) + "," + std::to_string(data.size() + static_cast<size_t>(bytes)) + "]}";
      data.append(static_cast<size_t>(bytes), 'x');
    }
    header += "}";
    const uint64_t length = header.size();
    std::ofstream(folder / "model.safetensors", std::ios::binary)
        << std::string(reinterpret_cast<const char*>(&length), 8) << header << data;
    std::ofstream(folder / "config.json") << "{}";
  }
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  ModelDescription model;
  model.experts = 3;
  model.layers = 1;
  model.layer = {{0, true, {}}};
  model.names.router = "layer.{layer}.router";
  model.names.expert_gate = "layer.{layer}.expert.{expert}.gate";
  model.names.expert_up = "layer.{layer}.expert.{expert}.up";
  model.names.expert_down = "layer.{layer}.expert.{expert}.down";

  for (const int64_t limit : {unlimited, int64_t{40}, int64_t{1}}) check_files(output_layout(checkpoint, model, 2, limit));
  const auto files = output_layout(checkpoint, model, 2, unlimited);
  std::vector<std::string> names;
  for (const OutputTensor& tensor : files[0].tensors) names.push_back(tensor.info.name);
  // By element size, in each size as in the checkpoint; merged ones stand where the router stood.
  EXPECT_EQ(names, (std::vector<std::string>{"scalar", "empty", "ids", "layer.0.router", "layer.0.expert.0.down", "layer.0.expert.1.down",
                                             "layer.0.expert.0.gate", "layer.0.expert.0.up", "layer.0.expert.1.gate", "layer.0.expert.1.up",
                                             "norm", "odd", "flags"}));
  EXPECT_EQ(files[0].tensors[3].info.shape, (std::vector<int64_t>{2, 5}));
}

}  // namespace
}  // namespace hcsmoe

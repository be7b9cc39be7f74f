// merge_layer on a checkpoint of one MoE layer, small enough to merge by hand.
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "hcsmoe/error.h"
#include "hcsmoe/merging.h"
#include "support/temporary_folder.h"

namespace hcsmoe {
namespace {

constexpr int64_t E = 4, D = 3, F = 2;

struct StoredTensor {
  std::vector<int64_t> shape;
  std::vector<float> values;
  std::string dtype = "F32";
};
using Tensors = std::map<std::string, StoredTensor>;

std::string expert_name(int64_t expert, const std::string& part) {
  return "model.layers.1.experts." + std::to_string(expert) + "." + part + ".weight";
}

/// Part p of expert e is 100 e + 10 p + 0, 1, 2, ...; router row e is 1000 e + 0, 1, 2.
Tensors example() {
  Tensors tensors;
  auto& router = tensors["model.layers.1.router.weight"];
  router.shape = {E, D};
  const std::vector<std::string> parts = {"gate", "up", "down"};
  for (int64_t e = 0; e < E; e++) {
    for (int64_t d = 0; d < D; d++) router.values.push_back(static_cast<float>(1000 * e + d));
    for (int64_t p = 0; p < 3; p++) {
      auto& tensor = tensors[expert_name(e, parts[p])];
      tensor.shape = p == 2 ? std::vector<int64_t>{D, F} : std::vector<int64_t>{F, D};
      for (int64_t i = 0; i < F * D; i++) tensor.values.push_back(static_cast<float>(100 * e + 10 * p + i));
    }
  }
  return tensors;
}

void write_checkpoint(const std::filesystem::path& folder, const Tensors& tensors) {
  nlohmann::ordered_json header;
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    const size_t begin = data.size();
    for (const float value : tensor.values) {
      const auto whole = static_cast<int32_t>(value);
      data.append(tensor.dtype == "I32" ? reinterpret_cast<const char*>(&whole) : reinterpret_cast<const char*>(&value), 4);
    }
    header[name] = {{"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
  }
  const std::string text = header.dump();
  const uint64_t length = text.size();
  std::ofstream file(folder / "model.safetensors", std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), sizeof(length));
  file << text << data;
  std::ofstream(folder / "config.json") << "{}";
}

ModelDescription model() {
  ModelDescription model;
  model.hidden_size = D;
  model.experts = E;
  model.expert_intermediate = F;
  model.names.router = "model.layers.{layer}.router.weight";
  model.names.expert_gate = "model.layers.{layer}.experts.{expert}.gate.weight";
  model.names.expert_up = "model.layers.{layer}.experts.{expert}.up.weight";
  model.names.expert_down = "model.layers.{layer}.experts.{expert}.down.weight";
  return model;
}

LayerPlan plan() {
  LayerPlan plan;
  plan.layer = 1;
  plan.experts = E;
  plan.clusters = {{{0, 3}, {0.75, 0.25}, {0.5, 0.5}, 0}, {{1}, {1}, {1}, 1}};
  plan.dropped = {2};
  return plan;
}

struct Merged {
  std::string name, dtype;
  std::vector<int64_t> shape;
  std::vector<float> values;
  bool operator==(const Merged&) const = default;
};

std::vector<Merged> merge(const Tensors& tensors, const LayerPlan& layer_plan) {
  const TemporaryFolder folder;
  write_checkpoint(folder.path(), tensors);
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  std::vector<Merged> result;
  merge_layer(checkpoint, model(), layer_plan,
              [&](const std::string& name, const DType& dtype, const std::vector<int64_t>& shape, std::span<const std::byte> bytes) {
                std::vector<float> values(bytes.size() / sizeof(float));
                std::memcpy(values.data(), bytes.data(), bytes.size());
                result.push_back({name, dtype.name, shape, values});
              });
  return result;
}

std::string error_of(const Tensors& tensors, const LayerPlan& layer_plan) {
  try {
    merge(tensors, layer_plan);
  } catch (const UserError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(MergeLayer, GivesRouterThenExpertsUnderTheirNewNames) {
  const std::vector<Merged> expected = {
      {"model.layers.1.router.weight", "F32", {2, D}, {1500, 1501, 1502, 1000, 1001, 1002}},
      {expert_name(0, "gate"), "F32", {F, D}, {75, 76, 77, 78, 79, 80}},
      {expert_name(0, "up"), "F32", {F, D}, {85, 86, 87, 88, 89, 90}},
      {expert_name(0, "down"), "F32", {D, F}, {95, 96, 97, 98, 99, 100}},
      {expert_name(1, "gate"), "F32", {F, D}, {100, 101, 102, 103, 104, 105}},
      {expert_name(1, "up"), "F32", {F, D}, {110, 111, 112, 113, 114, 115}},
      {expert_name(1, "down"), "F32", {D, F}, {120, 121, 122, 123, 124, 125}},
  };
  EXPECT_EQ(merge(example(), plan()), expected);
}

TEST(MergeLayer, RefusesAPlanOfAnotherModel) {
  LayerPlan other = plan();
  other.experts = 8;
  EXPECT_NE(error_of(example(), other).find("model.layers.1.router.weight is [4, 3]"), std::string::npos);
  other = plan();
  other.layer = 2;
  EXPECT_NE(error_of(example(), other).find("model.layers.2.router.weight"), std::string::npos);
}

TEST(MergeLayer, RefusesMembersOfUnequalTypeOrShape) {
  Tensors tensors = example();
  tensors[expert_name(3, "up")].dtype = "I32";
  EXPECT_NE(error_of(tensors, plan()).find(expert_name(3, "up") + " is I32 [2, 3], " + expert_name(0, "up") + " is F32 [2, 3]"),
            std::string::npos);
  tensors = example();
  tensors[expert_name(3, "down")].shape = {F, D};
  EXPECT_NE(error_of(tensors, plan()).find(expert_name(3, "down") + " is F32 [2, 3]"), std::string::npos);
}

}  // namespace
}  // namespace hcsmoe

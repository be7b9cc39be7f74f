#include "assembly/layout.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian");

/// The merged tensors of a layer: names of the first K experts and of the router, types of the tensors that bore them, router rows K.
std::vector<OutputTensor> merged_tensors(const Checkpoint& checkpoint, const ModelDescription& model, int64_t layer, int64_t kept) {
  std::unordered_set<std::string> router_names;  // [E, ...] tensors, one row an expert
  for (const std::string& name : moe_tensor_names(model, layer, 0)) router_names.insert(name);
  std::vector<OutputTensor> tensors;
  for (const std::string& name : moe_tensor_names(model, layer, kept)) {
    OutputTensor tensor{checkpoint.info(name), true, layer};
    std::vector<int64_t>& shape = tensor.info.shape;
    if (router_names.contains(name)) {
      if (shape.empty() || shape[0] != model.experts)
        throw Error(name + " has no row for each of " + std::to_string(model.experts) + " experts");
      shape[0] = kept;
    }
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

uint64_t data_bytes(const TensorInfo& tensor) { return static_cast<uint64_t>(tensor.elements() * tensor.dtype.bytes); }

/// Tensors of larger elements first: then every tensor starts at a multiple of its element size, because the data section starts at a
/// multiple of 8. In a file of one element size, which is nearly every file, nothing moves.
void place(OutputFile& file) {
  std::stable_sort(file.tensors.begin(), file.tensors.end(),
                   [](const OutputTensor& a, const OutputTensor& b) { return a.info.dtype.bytes > b.info.dtype.bytes; });
  uint64_t end = 0;
  for (OutputTensor& tensor : file.tensors) {
    tensor.info.begin = end;
    end += data_bytes(tensor.info);
    tensor.info.end = end;
  }
  const uint64_t data_begin = safetensors_header(file.tensors).size();
  for (OutputTensor& tensor : file.tensors) {
    tensor.info.begin += data_begin;
    tensor.info.end += data_begin;
  }
  file.bytes = data_begin + end;
}

std::string file_name(size_t index, size_t files) {
  if (files == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", index + 1, files);
  return name;
}

}  // namespace

std::string safetensors_header(const std::vector<OutputTensor>& tensors) {
  // transformers refuses a file whose metadata does not name a format.
  std::string text = R"({"__metadata__":{"format":"pt"})";
  const uint64_t data_begin = tensors.empty() ? 0 : tensors.front().info.begin;
  for (const OutputTensor& tensor : tensors) {
    const nlohmann::ordered_json entry = {{"dtype", tensor.info.dtype.name},
                                          {"shape", tensor.info.shape},
                                          {"data_offsets", {tensor.info.begin - data_begin, tensor.info.end - data_begin}}};
    text += "," + nlohmann::json(tensor.info.name).dump() + ":" + entry.dump();
  }
  text += "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text;
}

std::vector<std::string> left_out_layers(const Checkpoint& checkpoint, const ModelDescription& model, int64_t experts_kept) {
  std::set<int64_t> layers;
  for (const TensorInfo& info : checkpoint.tensors()) {
    const auto layer = prediction_layer(model, info.name);
    if (layer && experts_kept < model.experts) layers.insert(*layer);
  }
  std::vector<std::string> result;
  for (const int64_t layer : layers) {
    result.push_back("layer " + std::to_string(layer) + ": for multi-token prediction, with experts that are not compressed");
  }
  return result;
}

std::vector<OutputFile> output_layout(const Checkpoint& checkpoint, const ModelDescription& model, int64_t experts_kept,
                                      int64_t max_shard_bytes) {
  if (experts_kept < 1 || experts_kept > model.experts) {
    throw UserError("cannot keep " + std::to_string(experts_kept) + " of " + std::to_string(model.experts) + " experts a layer",
                    "compression.experts is 1 to " + std::to_string(model.experts));
  }
  if (max_shard_bytes < 1) throw Error("max_shard_bytes is " + std::to_string(max_shard_bytes));

  std::unordered_map<std::string, int64_t> replaced;  // tensor -> its layer
  for (int64_t layer : model.moe_layers()) {
    for (const std::string& name : moe_tensor_names(model, layer, model.experts)) replaced.emplace(name, layer);
  }

  std::vector<OutputTensor> tensors;
  std::unordered_set<int64_t> layers_placed;
  for (const TensorInfo& info : checkpoint.tensors()) {
    if (experts_kept < model.experts && prediction_layer(model, info.name)) continue;
    const auto found = replaced.find(info.name);
    if (found == replaced.end()) {
      tensors.push_back({info, false, -1});
    } else if (layers_placed.insert(found->second).second) {
      for (OutputTensor& tensor : merged_tensors(checkpoint, model, found->second, experts_kept)) tensors.push_back(std::move(tensor));
    }
  }

  // As save_pretrained counts: the tensors' bytes, without the header.
  std::vector<OutputFile> files;
  uint64_t filled = 0;
  for (OutputTensor& tensor : tensors) {
    const uint64_t bytes = data_bytes(tensor.info);
    if (files.empty() || (!files.back().tensors.empty() && filled + bytes > static_cast<uint64_t>(max_shard_bytes))) {
      files.emplace_back();
      filled = 0;
    }
    filled += bytes;
    files.back().tensors.push_back(std::move(tensor));
  }
  for (size_t i = 0; i < files.size(); ++i) {
    for (OutputTensor& tensor : files[i].tensors) tensor.info.file = static_cast<int>(i);
    files[i].name = file_name(i, files.size());
    place(files[i]);
  }
  return files;
}

}  // namespace hcsmoe

#include "hcsmoe/families.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "families/config_reader.h"
#include "families/family_files.h"
#include "hcsmoe/checkpoint.h"
#include "hcsmoe/error.h"
#include "support/text.h"

namespace hcsmoe {
namespace {

using Shape = std::vector<int64_t>;

void replace(std::string& text, const std::string& placeholder, int64_t number) {
  const size_t at = text.find(placeholder);
  if (at != std::string::npos) text.replace(at, placeholder.size(), std::to_string(number));
}

void check_tensor(const Checkpoint& checkpoint, const std::string& name, const Shape& expected) {
  const TensorInfo& info = checkpoint.info(name);
  if (info.shape != expected) {
    throw UserError(checkpoint.files().at(static_cast<size_t>(info.file)).string() + ": tensor '" + name + "' has shape " +
                        shape_text(info.shape) + ", config.json says " + shape_text(expected),
                    "config.json and the safetensors files belong to different models, or one of them was edited");
  }
  const std::string& type = info.dtype.name;
  if (type != "BF16" && type != "F16" && type != "F32") {
    throw UserError(checkpoint.files().at(static_cast<size_t>(info.file)).string() + ": tensor '" + name + "' is of type " + type +
                        ", which is not supported",
                    "supported types: BF16, F16, F32; save a quantised model in one of them first");
  }
}

void check_layer(const Checkpoint& checkpoint, const ModelDescription& model, const LayerDescription& layer) {
  const TensorNames& names = model.names;
  const int64_t l = layer.index, D = model.hidden_size;
  const auto check = [&](const std::string& pattern, const Shape& shape) { check_tensor(checkpoint, tensor_name(pattern, l), shape); };
  const auto check_bias = [&](std::string pattern, int64_t rows) {
    pattern.replace(pattern.rfind("weight"), 6, "bias");
    check(pattern, {rows});
  };
  const auto check_block = [&](const std::string& gate, const std::string& up, const std::string& down, int64_t F) {
    check(gate, {F, D});
    check(up, {F, D});
    check(down, {D, F});
  };
  check(names.input_norm, {D});
  check(names.attention_norm, {D});
  if (model.latent) {
    const LatentAttention& latent = *model.latent;
    if (latent.query_rank > 0) {
      check(names.query_down, {latent.query_rank, D});
      check(names.query_down_norm, {latent.query_rank});
      if (model.query_key_value_bias) check_bias(names.query_down, latent.query_rank);
    }
    check(names.query, {model.heads * latent.key_size(), latent.query_rank > 0 ? latent.query_rank : D});
    check(names.key_value_down, {latent.key_value_rank + latent.rotary, D});
    check(names.key_value_down_norm, {latent.key_value_rank});
    if (model.query_key_value_bias) check_bias(names.key_value_down, latent.key_value_rank + latent.rotary);
    check(names.key_value_up, {model.heads * (latent.plain + latent.value), latent.key_value_rank});
    check(names.attention_output, {D, model.heads * latent.value});
  } else {
    const int64_t query = model.heads * model.head_size, key = model.key_value_heads * model.head_size;
    check(names.query, {query, D});
    check(names.key, {key, D});
    check(names.value, {key, D});
    check(names.attention_output, {D, query});
    if (model.query_key_value_bias) {
      check_bias(names.query, query);
      check_bias(names.key, key);
      check_bias(names.value, key);
    }
    if (model.query_key_norm) {
      check(names.query_norm, {model.head_size});
      check(names.key_norm, {model.head_size});
    }
  }
  if (model.attention_output_bias) check_bias(names.attention_output, D);
  if (!layer.moe) {
    check_block(names.dense_gate, names.dense_up, names.dense_down, model.dense_intermediate);
    return;
  }
  check(names.router, {model.experts, D});
  if (!names.correction_bias.empty()) check(names.correction_bias, {model.experts});
  for (int64_t e = 0; e < model.experts; ++e) {
    const auto expert = [&](ExpertPart part) { return expert_tensor_name(model, l, e, part); };
    check_block(expert(ExpertPart::gate), expert(ExpertPart::up), expert(ExpertPart::down), model.expert_intermediate);
  }
  const std::string beyond = expert_tensor_name(model, l, model.experts, ExpertPart::gate);
  if (checkpoint.has(beyond)) {
    throw UserError(checkpoint.folder().string() + ": tensor '" + beyond + "' is there, but config.json counts only " +
                    std::to_string(model.experts) + " experts (" + model.expert_count_keys.front() + ")");
  }
  if (model.shared_intermediate > 0) check_block(names.shared_gate, names.shared_up, names.shared_down, model.shared_intermediate);
  if (model.shared_expert_gate) check(names.shared_expert_gate, {1, D});
}

}  // namespace

const std::vector<Family>& families() {
  static const std::vector<Family> all = {
      {"mixtral", describe_mixtral},         {"qwen2_moe", describe_qwen2_moe}, {"deepseek", describe_deepseek},
      {"deepseek_v3", describe_deepseek_v3}, {"kimi_k2", describe_deepseek_v3}, {"glm4_moe", describe_glm4_moe},
  };
  return all;
}

std::vector<int64_t> ModelDescription::moe_layers() const {
  std::vector<int64_t> result;
  for (const LayerDescription& l : layer) {
    if (l.moe) result.push_back(l.index);
  }
  return result;
}

std::string tensor_name(const std::string& pattern, int64_t layer, int64_t expert) {
  std::string name = pattern;
  replace(name, "{layer}", layer);
  if (expert >= 0) replace(name, "{expert}", expert);
  return name;
}

std::string expert_tensor_name(const ModelDescription& model, int64_t layer, int64_t expert, ExpertPart part) {
  const TensorNames& names = model.names;
  const std::string& pattern = part == ExpertPart::gate ? names.expert_gate : part == ExpertPart::up ? names.expert_up : names.expert_down;
  return tensor_name(pattern, layer, expert);
}

std::vector<std::string> moe_tensor_names(const ModelDescription& model, int64_t layer, int64_t experts) {
  std::vector<std::string> result = {tensor_name(model.names.router, layer)};
  if (!model.names.correction_bias.empty()) result.push_back(tensor_name(model.names.correction_bias, layer));
  for (int64_t e = 0; e < experts; ++e) {
    for (const ExpertPart part : expert_parts) result.push_back(expert_tensor_name(model, layer, e, part));
  }
  return result;
}

std::vector<std::string> layer_tensor_names(const ModelDescription& model, int64_t layer) {
  const TensorNames& names = model.names;
  std::vector<std::string> patterns = {names.input_norm, names.attention_norm};
  const auto add = [&](std::string weight, bool bias) {
    patterns.push_back(weight);
    if (bias) patterns.push_back(weight.replace(weight.rfind("weight"), 6, "bias"));
  };
  if (model.latent) {
    if (model.latent->query_rank > 0) {
      add(names.query_down, model.query_key_value_bias);
      add(names.query_down_norm, false);
    }
    add(names.query, false);
    add(names.key_value_down, model.query_key_value_bias);
    add(names.key_value_down_norm, false);
    add(names.key_value_up, false);
  } else {
    for (const std::string& weight : {names.query, names.key, names.value}) add(weight, model.query_key_value_bias);
    if (model.query_key_norm) patterns.insert(patterns.end(), {names.query_norm, names.key_norm});
  }
  add(names.attention_output, model.attention_output_bias);
  const bool moe = model.layer.at(static_cast<size_t>(layer)).moe;
  if (moe) {
    if (model.shared_intermediate > 0) patterns.insert(patterns.end(), {names.shared_gate, names.shared_up, names.shared_down});
    if (model.shared_expert_gate) patterns.push_back(names.shared_expert_gate);
  } else {
    patterns.insert(patterns.end(), {names.dense_gate, names.dense_up, names.dense_down});
  }
  std::vector<std::string> result;
  for (const std::string& pattern : patterns) result.push_back(tensor_name(pattern, layer));
  if (moe) {
    for (std::string& name : moe_tensor_names(model, layer, model.experts)) result.push_back(std::move(name));
  }
  return result;
}

std::optional<int64_t> prediction_layer(const ModelDescription& model, const std::string& tensor) {
  const std::string prefix = "model.layers.";
  if (!model.prediction_layers || !tensor.starts_with(prefix)) return std::nullopt;
  int64_t layer = 0;
  const char* const end = tensor.data() + tensor.size();
  const auto [rest, error] = std::from_chars(tensor.data() + prefix.size(), end, layer);
  if (error != std::errc() || rest == end || *rest != '.' || layer < model.layers) return std::nullopt;
  return layer;
}

RoutingRule layer_routing(const Checkpoint& checkpoint, const ModelDescription& model, int64_t layer) {
  RoutingRule rule = model.routing;
  if (model.names.correction_bias.empty()) return rule;
  const at::Tensor bias = checkpoint.tensor(tensor_name(model.names.correction_bias, layer)).to(at::kFloat).contiguous();  // [E]
  const auto* const values = static_cast<const float*>(bias.const_data_ptr());
  rule.correction.assign(values, values + bias.numel());
  return rule;
}

ModelDescription describe_model(const Checkpoint& checkpoint) {
  const std::string type = ConfigReader(checkpoint.config()).text("model_type", "");
  const auto& all = families();
  const auto family = std::find_if(all.begin(), all.end(), [&](const Family& f) { return f.model_type == type; });
  if (family == all.end()) {
    std::string supported;
    for (const Family& f : all) supported += (supported.empty() ? "" : ", ") + f.model_type;
    throw UserError((checkpoint.folder() / "config.json").string() + ": model_type '" + type + "' is not supported",
                    "supported: " + supported + "; docs/adding-a-family.md shows how to add one");
  }
  ModelDescription model = family->describe(checkpoint.config());
  if (model.moe_layers().empty()) {
    throw UserError((checkpoint.folder() / "config.json").string() + ": the model has no Mixture-of-Experts layer");
  }
  check_tensor(checkpoint, model.names.embedding, {model.vocabulary, model.hidden_size});
  check_tensor(checkpoint, model.names.output, {model.vocabulary, model.hidden_size});
  check_tensor(checkpoint, model.names.final_norm, {model.hidden_size});
  for (const LayerDescription& layer : model.layer) check_layer(checkpoint, model, layer);
  return model;
}

}  // namespace hcsmoe

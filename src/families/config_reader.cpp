#include "families/config_reader.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

constexpr int64_t largest_size = int64_t{1} << 24;  // of a dimension; the largest published ones are below 2^20

Rope read_rope(const ConfigReader& config) {
  Rope rope;
  rope.theta = config.number("rope_theta", 1, 1e12, 10000);
  std::string where;
  if (config.has("rope_parameters")) {
    where = "rope_parameters";
  } else if (config.has("rope_scaling")) {
    where = "rope_scaling";
  } else {
    return rope;
  }
  const auto& value = config.value(where);
  if (!value.is_object()) throw UserError("config.json: key '" + where + "' is " + value.dump().substr(0, 80) + ", expected a mapping");
  const ConfigReader scaling(value, where + ".");
  rope.theta = scaling.number("rope_theta", 1, 1e12, rope.theta);
  const std::string type = scaling.text("rope_type", scaling.text("type", "default"));
  const int64_t positions = config.integer("max_position_embeddings", 1, int64_t{1} << 40, 2048);
  if (type == "default") return rope;
  rope.factor = scaling.number("factor", 1, 1e6, 1);
  if (type == "linear") {
    rope.scaling = Rope::Scaling::linear;
  } else if (type == "dynamic") {
    rope.scaling = Rope::Scaling::dynamic;
    rope.original_max_positions = positions;
  } else if (type == "yarn") {
    rope.scaling = Rope::Scaling::yarn;
    rope.original_max_positions = scaling.integer("original_max_position_embeddings", 1, int64_t{1} << 40, positions);
    rope.beta_fast = scaling.number("beta_fast", 1e-3, 1e6, 32);
    rope.beta_slow = scaling.number("beta_slow", 1e-3, 1e6, 1);
    rope.truncate = scaling.boolean("truncate", true);
    const auto magnitude = [&](double scale) { return rope.factor <= 1 ? 1.0 : 0.1 * scale * std::log(rope.factor) + 1.0; };
    const double mscale = scaling.number("mscale", 0, 1e3, 0), mscale_all = scaling.number("mscale_all_dim", 0, 1e3, 0);
    const double inferred = mscale != 0 && mscale_all != 0 ? magnitude(mscale) / magnitude(mscale_all) : magnitude(1);
    rope.attention_factor = scaling.number("attention_factor", 1e-3, 1e3, inferred);
  } else {
    throw UserError("config.json: " + where + " of type '" + type + "' is not supported",
                    "supported types: default, linear, dynamic, yarn");
  }
  return rope;
}

}  // namespace

void ConfigReader::wrong(const std::string& key, const std::string& expected) const {
  throw UserError("config.json: key '" + prefix_ + key + "' is " + config_.at(key).dump().substr(0, 80) + ", expected " + expected);
}

bool ConfigReader::has(const std::string& key) const {
  const auto it = config_.find(key);
  return it != config_.end() && !it->is_null();
}

const nlohmann::ordered_json& ConfigReader::value(const std::string& key) const {
  if (!has(key)) throw UserError("config.json: key '" + prefix_ + key + "' is missing");
  return config_.at(key);
}

int64_t ConfigReader::integer(const std::string& key, int64_t smallest, int64_t largest) const {
  const auto& found = value(key);
  const std::string expected = "a whole number from " + std::to_string(smallest) + " to " + std::to_string(largest);
  if (!found.is_number_integer()) wrong(key, expected);
  if (found.is_number_unsigned() && found.get<uint64_t>() > static_cast<uint64_t>(largest)) wrong(key, expected);
  const auto number = found.get<int64_t>();
  if (number < smallest || number > largest) wrong(key, expected);
  return number;
}

int64_t ConfigReader::integer(const std::string& key, int64_t smallest, int64_t largest, int64_t if_missing) const {
  return has(key) ? integer(key, smallest, largest) : if_missing;
}

double ConfigReader::number(const std::string& key, double smallest, double largest, double if_missing) const {
  if (!has(key)) return if_missing;
  const auto& found = value(key);
  if (!found.is_number()) wrong(key, "a number");
  const auto result = found.get<double>();
  if (!(result >= smallest && result <= largest)) {
    wrong(key, "a number from " + std::to_string(smallest) + " to " + std::to_string(largest));
  }
  return result;
}

bool ConfigReader::boolean(const std::string& key, bool if_missing) const {
  if (!has(key)) return if_missing;
  const auto& found = value(key);
  if (!found.is_boolean()) wrong(key, "true or false");
  return found.get<bool>();
}

std::string ConfigReader::text(const std::string& key, const std::string& if_missing) const {
  if (!has(key)) return if_missing;
  const auto& found = value(key);
  if (!found.is_string()) wrong(key, "a string");
  return found.get<std::string>();
}

void ConfigReader::require_text(const std::string& key, const std::string& only, const std::string& why) const {
  const std::string found = text(key, only);
  if (found != only) throw UserError("config.json: " + key + " '" + found + "' is not supported, only '" + only + "'", why);
}

ModelDescription describe_decoder(const ConfigReader& config, const std::string& family, AttentionKind attention) {
  ModelDescription model;
  model.family = family;
  if (config.has("quantization_config")) {
    throw UserError(
        "config.json: the checkpoint is quantised (quantization_config), which is not supported",
        "convert it to bfloat16 first; for checkpoints in fp8 with block scales, DeepSeek-V3's repository has fp8_cast_bf16.py. "
        "Then remove the key from its config.json");
  }
  model.hidden_size = config.integer("hidden_size", 1, largest_size);
  model.layers = config.integer("num_hidden_layers", 1, 10000);
  model.vocabulary = config.integer("vocab_size", 1, largest_size);
  model.heads = config.integer("num_attention_heads", 1, 65536);
  model.key_value_heads = config.integer("num_key_value_heads", 1, 65536, model.heads);
  if (model.heads % model.key_value_heads != 0) {
    throw UserError("config.json: num_attention_heads " + std::to_string(model.heads) + " is not a multiple of num_key_value_heads " +
                    std::to_string(model.key_value_heads));
  }
  if (attention == AttentionKind::grouped) {
    model.head_size = config.integer("head_dim", 2, 65536, model.hidden_size / model.heads);
    if (model.head_size < 2 || model.head_size % 2 != 0) {
      throw UserError("config.json: the head size " + std::to_string(model.head_size) + " must be even, for rotary position embedding");
    }
    model.rotary_size = model.head_size;
  }
  model.norm_epsilon = config.number("rms_norm_eps", 0, 1, 1e-6);
  model.tied_embeddings = config.boolean("tie_word_embeddings", false);
  model.max_positions = config.integer("max_position_embeddings", 1, int64_t{1} << 40, 2048);
  model.rope = read_rope(config);
  config.require_text("hidden_act", "silu", "experts with another activation compute something else");

  const std::string layer = "model.layers.{layer}.";
  TensorNames& names = model.names;
  names.embedding = "model.embed_tokens.weight";
  names.final_norm = "model.norm.weight";
  names.output = model.tied_embeddings ? names.embedding : "lm_head.weight";
  names.input_norm = layer + "input_layernorm.weight";
  names.attention_norm = layer + "post_attention_layernorm.weight";
  names.query = layer + "self_attn.q_proj.weight";
  names.key = layer + "self_attn.k_proj.weight";
  names.value = layer + "self_attn.v_proj.weight";
  names.attention_output = layer + "self_attn.o_proj.weight";

  model.layer.resize(static_cast<size_t>(model.layers));
  for (int64_t l = 0; l < model.layers; ++l) model.layer[static_cast<size_t>(l)].index = l;
  return model;
}

void read_partial_rotary(const ConfigReader& config, double if_missing, ModelDescription& model) {
  double factor = config.number("partial_rotary_factor", 0, 1, if_missing);
  if (config.has("rope_parameters")) {  // an object, as describe_decoder has seen
    factor = ConfigReader(config.value("rope_parameters"), "rope_parameters.").number("partial_rotary_factor", 0, 1, factor);
  }
  model.rotary_size = static_cast<int64_t>(static_cast<double>(model.head_size) * factor);
  if (model.rotary_size < 2 || model.rotary_size % 2 != 0) {
    throw UserError("config.json: partial_rotary_factor rotates " + std::to_string(model.rotary_size) + " of the " +
                    std::to_string(model.head_size) + " channels of a head; expected an even number of at least 2");
  }
}

void read_sigmoid_experts(const ConfigReader& config, int64_t first_sparse, ModelDescription& model) {
  model.dense_intermediate = config.integer("intermediate_size", 1, 1 << 24);
  model.experts = config.integer("n_routed_experts", 2, 65536);
  model.expert_intermediate = config.integer("moe_intermediate_size", 1, 1 << 24);
  model.shared_intermediate = config.integer("n_shared_experts", 0, 1024, 1) * model.expert_intermediate;
  model.routing.top_k = config.integer("num_experts_per_tok", 1, model.experts);
  model.expert_count_keys = {"n_routed_experts"};
  const int64_t first = config.integer("first_k_dense_replace", 0, model.layers, first_sparse);
  for (LayerDescription& layer : model.layer) layer.moe = layer.index >= first;
  name_mlp_tensors(model, "shared_experts");

  config.require_text("scoring_func", "sigmoid", "the family's router has sigmoid scores");
  config.require_text("topk_method", "noaux_tc", "the family chooses experts by biased scores, in the best groups");
  RoutingRule& rule = model.routing;
  rule.score = RoutingRule::Score::sigmoid;
  rule.renormalise = config.boolean("norm_topk_prob", true);
  rule.scale = config.number("routed_scaling_factor", 0, 1e6, 1);
  rule.groups = config.integer("n_group", 1, model.experts, 1);
  rule.top_groups = config.integer("topk_group", 1, rule.groups, 1);
  const int64_t of_group = model.experts / rule.groups;
  if (model.experts % rule.groups != 0 || of_group < 2 || rule.top_groups * of_group < rule.top_k) {
    throw UserError("config.json: n_group " + std::to_string(rule.groups) + " and topk_group " + std::to_string(rule.top_groups) +
                        " do not fit " + std::to_string(model.experts) + " experts and num_experts_per_tok " + std::to_string(rule.top_k),
                    "groups are equal, of two experts at least, and the chosen ones hold all experts of a token");
  }
  // A cluster may have members of several groups, so that fewer experts are in one.
  if (rule.groups > 1) model.compressed_values = {{"n_group", 1}, {"topk_group", 1}};
  model.names.correction_bias = "model.layers.{layer}.mlp.gate.e_score_correction_bias";
  model.prediction_layers = true;
  if (config.integer("num_nextn_predict_layers", 0, 10000, 0) > 0) model.compressed_values.emplace_back("num_nextn_predict_layers", 0);
}

void name_mlp_tensors(ModelDescription& model, const std::string& shared) {
  const std::string block = "model.layers.{layer}.mlp.";
  TensorNames& names = model.names;
  const auto name = [](const std::string& at, std::string& gate, std::string& up, std::string& down) {
    gate = at + "gate_proj.weight";
    up = at + "up_proj.weight";
    down = at + "down_proj.weight";
  };
  name(block, names.dense_gate, names.dense_up, names.dense_down);
  name(block + "experts.{expert}.", names.expert_gate, names.expert_up, names.expert_down);
  if (model.shared_intermediate > 0) name(block + shared + ".", names.shared_gate, names.shared_up, names.shared_down);
  names.router = block + "gate.weight";
}

}  // namespace hcsmoe

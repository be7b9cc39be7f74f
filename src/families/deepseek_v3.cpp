// DeepSeek-V3 (arXiv 2412.19437): DeepSeek-V3, DeepSeek-R1, Moonlight, Kimi-K2. Multi-head latent attention; sigmoid scores with a
// correction bias and expert groups; dense first layers; shared experts as one feed-forward block.

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "families/config_reader.h"
#include "families/family_files.h"
#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

/// What YaRN multiplies the products of queries and keys with: rope_scaling.mscale_all_dim, whatever the type of the scaling.
double magnitude(const ConfigReader& config) {
  const std::string where = config.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!config.has(where)) return 1;
  const ConfigReader scaling(config.value(where), where + ".");
  const double factor = scaling.number("factor", 1, 1e6, 1), all = scaling.number("mscale_all_dim", 0, 1e3, 0);
  return 0.1 * all * std::log(factor) + 1;
}

}  // namespace

ModelDescription describe_deepseek_v3(const nlohmann::ordered_json& json) {
  const ConfigReader config(json);
  ModelDescription model = describe_decoder(config, config.text("model_type", "deepseek_v3"), AttentionKind::latent);
  // What a config.json leaves out has other values in transformers' class than other families' defaults.
  for (const char* key : {"n_group", "topk_group", "routed_scaling_factor"}) config.value(key);
  LatentAttention latent;
  latent.query_rank = config.integer("q_lora_rank", 1, 1 << 24, 0);
  latent.key_value_rank = config.integer("kv_lora_rank", 1, 1 << 24);
  latent.plain = config.integer("qk_nope_head_dim", 1, 65536);
  latent.rotary = config.integer("qk_rope_head_dim", 2, 65536);
  latent.value = config.integer("v_head_dim", 1, 65536);
  if (latent.rotary % 2 != 0) {
    throw UserError("config.json: qk_rope_head_dim " + std::to_string(latent.rotary) + " must be even, for rotary position embedding");
  }
  latent.scale = std::pow(magnitude(config), 2) / std::sqrt(static_cast<double>(latent.key_size()));
  model.latent = latent;
  model.head_size = std::max(latent.key_size(), latent.value);
  model.key_value_heads = model.heads;  // every head has keys and values of its own
  model.rotary_size = latent.rotary;
  model.rope.interleaved = config.boolean("rope_interleave", true);
  model.query_key_value_bias = config.boolean("attention_bias", false);
  model.attention_output_bias = model.query_key_value_bias;

  config.integer("moe_layer_freq", 1, 1, 1);
  read_sigmoid_experts(config, 3, model);
  const std::string attention = "model.layers.{layer}.self_attn.";
  TensorNames& names = model.names;
  if (latent.query_rank > 0) {
    names.query_down = attention + "q_a_proj.weight";
    names.query_down_norm = attention + "q_a_layernorm.weight";
    names.query = attention + "q_b_proj.weight";
  }
  names.key_value_down = attention + "kv_a_proj_with_mqa.weight";
  names.key_value_down_norm = attention + "kv_a_layernorm.weight";
  names.key_value_up = attention + "kv_b_proj.weight";
  names.key.clear();
  names.value.clear();
  return model;
}

}  // namespace hcsmoe

// GLM-4.5 (arXiv 2508.06471): GLM-4.5, GLM-4.5-Air. Grouped-query attention of which half of the channels are rotated, optional norms of
// queries and keys; sigmoid scores with a correction bias; dense first layers; a shared expert.

#include <nlohmann/json.hpp>

#include "families/config_reader.h"
#include "families/family_files.h"

namespace hcsmoe {

ModelDescription describe_glm4_moe(const nlohmann::ordered_json& json) {
  const ConfigReader config(json);
  ModelDescription model = describe_decoder(config, "glm4_moe");
  model.norm_epsilon = config.number("rms_norm_eps", 0, 1, 1e-5);
  model.query_key_value_bias = config.boolean("attention_bias", false);
  model.query_key_norm = config.boolean("use_qk_norm", false);
  model.names.query_norm = "model.layers.{layer}.self_attn.q_norm.weight";
  model.names.key_norm = "model.layers.{layer}.self_attn.k_norm.weight";
  read_partial_rotary(config, 0.5, model);
  read_sigmoid_experts(config, 1, model);
  return model;
}

}  // namespace hcsmoe

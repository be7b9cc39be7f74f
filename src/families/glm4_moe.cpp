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
  model.dense_intermediate = config.integer("intermediate_size", 1, 1 << 24);
  model.experts = config.integer("n_routed_experts", 2, 65536);
  model.expert_intermediate = config.integer("moe_intermediate_size", 1, 1 << 24);
  model.shared_intermediate = config.integer("n_shared_experts", 0, 1024, 1) * model.expert_intermediate;
  model.routing.top_k = config.integer("num_experts_per_tok", 1, model.experts);
  model.expert_count_keys = {"n_routed_experts"};
  const int64_t first = config.integer("first_k_dense_replace", 0, model.layers, 1);
  for (LayerDescription& layer : model.layer) layer.moe = layer.index >= first;
  name_mlp_tensors(model, "shared_experts");
  read_sigmoid_routing(config, model);
  return model;
}

}  // namespace hcsmoe

// DeepSeek-MoE (arXiv 2401.06066): deepseek-moe-16b. The first layers are dense; the shared experts stand in the checkpoint as one
// feed-forward block of n_shared_experts times the width, added without a gate.

#include <nlohmann/json.hpp>

#include "families/config_reader.h"
#include "families/family_files.h"

namespace hcsmoe {

ModelDescription describe_deepseek(const nlohmann::ordered_json& json) {
  const ConfigReader config(json);
  ModelDescription model = describe_decoder(config, "deepseek");
  config.require_text("scoring_func", "softmax", "other scores come with DeepSeek-V3, which is not supported yet");
  model.query_key_value_bias = config.boolean("attention_bias", false);
  model.attention_output_bias = model.query_key_value_bias;
  model.dense_intermediate = config.integer("intermediate_size", 1, 1 << 24);
  model.experts = config.integer("n_routed_experts", 1, 65536);
  model.expert_intermediate = config.integer("moe_intermediate_size", 1, 1 << 24);
  model.shared_intermediate = config.integer("n_shared_experts", 0, 1024, 0) * model.expert_intermediate;
  model.routing.top_k = config.integer("num_experts_per_tok", 1, model.experts);
  model.routing.renormalise = config.boolean("norm_topk_prob", false) && model.routing.top_k > 1;
  model.routing.scale = config.number("routed_scaling_factor", 0, 1e6, 1);
  model.expert_count_keys = {"n_routed_experts"};

  const int64_t first = config.integer("first_k_dense_replace", 0, model.layers, 0);
  const int64_t step = config.integer("moe_layer_freq", 1, 10000, 1);
  for (LayerDescription& layer : model.layer) layer.moe = layer.index >= first && layer.index % step == 0;

  name_mlp_tensors(model, "shared_experts");
  return model;
}

}  // namespace hcsmoe

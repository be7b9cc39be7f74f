// Qwen2-MoE (arXiv 2407.10671): Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B. A shared expert with a sigmoid gate beside the routed ones; biases on
// query, key and value; dense layers where decoder_sparse_step or mlp_only_layers says so.

#include <algorithm>
#include <nlohmann/json.hpp>

#include "families/config_reader.h"
#include "families/family_files.h"
#include "hcsmoe/error.h"

namespace hcsmoe {

ModelDescription describe_qwen2_moe(const nlohmann::ordered_json& json) {
  const ConfigReader config(json);
  ModelDescription model = describe_decoder(config, "qwen2_moe");
  model.query_key_value_bias = config.boolean("qkv_bias", true);
  model.experts = config.integer("num_experts", 1, 65536);
  model.expert_intermediate = config.integer("moe_intermediate_size", 1, 1 << 24);
  model.dense_intermediate = config.integer("intermediate_size", 1, 1 << 24);
  model.shared_intermediate = config.integer("shared_expert_intermediate_size", 1, 1 << 24);
  model.shared_expert_gate = true;
  model.routing.top_k = config.integer("num_experts_per_tok", 1, model.experts);
  model.routing.renormalise = config.boolean("norm_topk_prob", false);
  model.expert_count_keys = {"num_experts"};

  const int64_t step = config.integer("decoder_sparse_step", 1, 10000, 1);
  std::vector<int64_t> dense;
  if (config.has("mlp_only_layers")) {
    const auto& list = config.value("mlp_only_layers");
    const bool whole = list.is_array() && std::all_of(list.begin(), list.end(), [](const auto& l) { return l.is_number_integer(); });
    if (!whole)
      throw UserError("config.json: key 'mlp_only_layers' is " + list.dump().substr(0, 80) + ", expected a list of layer numbers");
    dense = list.get<std::vector<int64_t>>();
  }
  const bool windows = config.boolean("use_sliding_window", false) && config.has("sliding_window");
  const int64_t first_window_layer = config.integer("max_window_layers", 0, 10000, 28);
  for (LayerDescription& layer : model.layer) {
    layer.moe = std::find(dense.begin(), dense.end(), layer.index) == dense.end() && (layer.index + 1) % step == 0;
    if (windows && layer.index >= first_window_layer) layer.sliding_window = config.integer("sliding_window", 1, int64_t{1} << 40);
  }

  name_mlp_tensors(model, "shared_expert");
  model.names.shared_expert_gate = "model.layers.{layer}.mlp.shared_expert_gate.weight";
  return model;
}

}  // namespace hcsmoe

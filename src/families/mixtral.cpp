// Mixtral (arXiv 2401.04088): Mixtral-8x7B, Mixtral-8x22B. Every layer is sparse; the top-k weights are divided by their sum.

#include <nlohmann/json.hpp>

#include "families/config_reader.h"
#include "families/family_files.h"

namespace hcsmoe {

ModelDescription describe_mixtral(const nlohmann::ordered_json& json) {
  const ConfigReader config(json);
  ModelDescription model = describe_decoder(config, "mixtral");
  model.experts = config.integer("num_local_experts", 1, 65536);
  model.expert_intermediate = config.integer("intermediate_size", 1, 1 << 24);
  model.routing.top_k = config.integer("num_experts_per_tok", 1, model.experts);
  model.routing.renormalise = true;
  model.expert_count_keys = {"num_local_experts"};
  for (LayerDescription& layer : model.layer) {
    layer.moe = true;
    if (config.has("sliding_window")) layer.sliding_window = config.integer("sliding_window", 1, int64_t{1} << 40);
  }
  const std::string block = "model.layers.{layer}.block_sparse_moe.";
  model.names.router = block + "gate.weight";
  model.names.expert_gate = block + "experts.{expert}.w1.weight";
  model.names.expert_up = block + "experts.{expert}.w3.weight";
  model.names.expert_down = block + "experts.{expert}.w2.weight";
  return model;
}

}  // namespace hcsmoe

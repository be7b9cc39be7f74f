#pragma once
// Keys of a config.json, checked: each error names the key, what was found and what is allowed.

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "hcsmoe/families.h"

namespace hcsmoe {

class ConfigReader {
 public:
  /// prefix: of keys in messages, for a nested mapping ("rope_scaling.").
  explicit ConfigReader(const nlohmann::ordered_json& config, std::string prefix = "") : config_(config), prefix_(std::move(prefix)) {}

  bool has(const std::string& key) const;  // there and not null
  int64_t integer(const std::string& key, int64_t smallest, int64_t largest) const;
  int64_t integer(const std::string& key, int64_t smallest, int64_t largest, int64_t if_missing) const;
  double number(const std::string& key, double smallest, double largest, double if_missing) const;
  bool boolean(const std::string& key, bool if_missing) const;
  std::string text(const std::string& key, const std::string& if_missing) const;
  const nlohmann::ordered_json& value(const std::string& key) const;  // UserError if it is not there
  /// UserError unless the key is missing or has this value.
  void require_text(const std::string& key, const std::string& only, const std::string& why) const;

 private:
  [[noreturn]] void wrong(const std::string& key, const std::string& expected) const;
  const nlohmann::ordered_json& config_;
  std::string prefix_;
};

/// What every family here shares: sizes, attention heads, norm, embeddings and rotary position embedding (rope_theta and rope_scaling, or
/// rope_parameters as newer transformers versions write them). Names follow the Llama layout:
/// "model.layers.{layer}.self_attn.q_proj.weight".
enum class AttentionKind { grouped, latent };
ModelDescription describe_decoder(const ConfigReader& config, const std::string& family, AttentionKind = AttentionKind::grouped);

/// The rotated channels of a head: partial_rotary_factor of them, which newer transformers versions write into
/// rope_parameters.
void read_partial_rotary(const ConfigReader& config, double if_missing, ModelDescription& model);

/// The feed-forward blocks of DeepSeek-V3's kind: sizes, dense first layers (first_k_dense_replace, `first_sparse` where it is not given),
/// names, sigmoid scores with a correction bias, and expert groups: n_group, topk_group, norm_topk_prob, routed_scaling_factor. And
/// num_nextn_predict_layers, which such models have.
void read_sigmoid_experts(const ConfigReader& config, int64_t first_sparse, ModelDescription& model);

/// Names of the feed-forward tensors where all of them lie under "mlp.": dense, router ("mlp.gate"), experts ("mlp.experts.{expert}"), and,
/// if the model has a shared expert, those under "mlp.SHARED".
void name_mlp_tensors(ModelDescription& model, const std::string& shared);

}  // namespace hcsmoe

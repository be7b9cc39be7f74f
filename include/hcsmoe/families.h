#pragma once
// Model families: what a config.json means. The forward pass, merging and assembly know no family by name; they work on a ModelDescription.
// A new family is one file in src/families/ and one line in families.cpp (docs/adding-a-family.md).
// Letters: D hidden size, F intermediate size, E experts, k top-k, L layers, V vocabulary, H heads, C channels a head.

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace hcsmoe {

class Checkpoint;

/// Rotary position embedding, in rotate-half form over the first `rotary_size` channels of a head (of all its parts for positions, where
/// attention is latent).
struct Rope {
  enum class Scaling { none, linear, dynamic, yarn };
  double theta = 10000;
  Scaling scaling = Scaling::none;
  double factor = 1;
  int64_t original_max_positions = 0;    // yarn: of training before scaling; dynamic: max_position_embeddings
  double beta_fast = 32, beta_slow = 1;  // yarn
  double attention_factor = 1;           // multiplies cos and sin (yarn: 0.1 ln(factor) + 1 unless given)
  bool truncate = true;                  // yarn: whole channels at the ends of the ramp
  bool interleaved = false;              // pairs of channels (2c, 2c + 1) instead of (c, c + half)
};

/// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1). A query and key of a head are `plain` channels beside `rotary`
/// ones, of which the keys' are shared by all heads; keys and values come from one compressed row a token, queries from another.
struct LatentAttention {
  int64_t query_rank = 0;  // 0: queries are not compressed
  int64_t key_value_rank = 0;
  int64_t plain = 0, rotary = 0;  // channels of a query and key
  int64_t value = 0;              // channels of a value
  double scale = 1;               // of the products of queries and keys
  int64_t key_size() const { return plain + rotary; }
};

/// Tensor names; {layer} and {expert} are replaced. An empty name: the family has no such tensor.
struct TensorNames {
  std::string embedding, final_norm, output;        // output: lm_head
  std::string input_norm, attention_norm;           // attention_norm: before the feed-forward block
  std::string query, key, value, attention_output;  // "...weight"; a bias is the same name with "bias"
  std::string query_norm, key_norm;                 // of each head
  std::string query_down, query_down_norm;  // latent attention: `query` makes the heads from what they leave, if queries are compressed
  std::string key_value_down, key_value_down_norm;  // latent attention: the compressed row and the shared rotary channels
  std::string key_value_up;                         // latent attention: plain keys and values, head by head
  std::string dense_gate, dense_up, dense_down;
  std::string router;
  std::string correction_bias;  // [E]: RoutingRule::correction
  std::string expert_gate, expert_up, expert_down;
  std::string shared_gate, shared_up, shared_down;
  std::string shared_expert_gate;  // [1, D]: sigmoid gate on the shared expert's output
};

/// Router logits to weights. Every expert has a score, the softmax over all E logits or the sigmoid of its own. Chosen are the k largest
/// scores + correction biases, within the best groups; weights are the scores of the chosen, without the biases, optionally divided by
/// their sum, times scale.
struct RoutingRule {
  enum class Score { softmax, sigmoid };
  int64_t top_k = 0;
  bool renormalise = false;
  double scale = 1;
  Score score = Score::softmax;
  /// Experts stand in `groups` equal groups, of which a token may use the `top_groups` whose two best biased scores have the largest sum.
  int64_t groups = 1, top_groups = 1;
  std::vector<float> correction = {};  // [E] of one layer (layer_routing), with sigmoid scores; empty: none
};

struct LayerDescription {
  int64_t index = 0;
  bool moe = false;
  std::optional<int64_t> sliding_window;  // keys visible to a query, itself included
};

struct ModelDescription {
  std::string family;  // model_type
  int64_t hidden_size = 0;
  int64_t layers = 0;
  int64_t vocabulary = 0;
  int64_t heads = 0, key_value_heads = 0, head_size = 0;
  bool query_key_value_bias = false, attention_output_bias = false;
  bool query_key_norm = false;  // of each head, before the rotation
  int64_t rotary_size = 0;      // rotated channels of a head
  std::optional<LatentAttention> latent;
  double norm_epsilon = 1e-6;
  bool tied_embeddings = false;
  int64_t max_positions = 0;
  Rope rope;

  int64_t dense_intermediate = 0;
  int64_t experts = 0;  // routed, a layer
  int64_t expert_intermediate = 0;
  int64_t shared_intermediate = 0;  // 0: no shared expert
  bool shared_expert_gate = false;
  RoutingRule routing;

  std::vector<LayerDescription> layer;  // [L]
  TensorNames names;
  std::vector<std::string> expert_count_keys;  // of config.json, set to K in the output
  /// What else config.json says where fewer experts are kept.
  std::vector<std::pair<std::string, int64_t>> compressed_values;
  /// The checkpoint may hold layers after the last, for multi-token prediction. The model runs without them, and an output with fewer
  /// experts leaves them out: their experts are not compressed.
  bool prediction_layers = false;

  std::vector<int64_t> moe_layers() const;
};

enum class ExpertPart { gate, up, down };
inline constexpr ExpertPart expert_parts[] = {ExpertPart::gate, ExpertPart::up, ExpertPart::down};

/// "model.layers.{layer}.x" -> "model.layers.3.x"
std::string tensor_name(const std::string& pattern, int64_t layer, int64_t expert = -1);
std::string expert_tensor_name(const ModelDescription&, int64_t layer, int64_t expert, ExpertPart);
/// Names of a layer's router and its correction bias, if it has one, and of its routed experts: exactly the tensors that compression
/// replaces. The first ones have a row for each expert.
std::vector<std::string> moe_tensor_names(const ModelDescription&, int64_t layer, int64_t experts);
/// All tensor names of a layer, experts last.
std::vector<std::string> layer_tensor_names(const ModelDescription&, int64_t layer);

/// The layer of a tensor "model.layers.N..." after the model's last, if the model may have such (prediction_layers).
std::optional<int64_t> prediction_layer(const ModelDescription&, const std::string& tensor);
/// The routing rule of one layer, with its correction biases.
RoutingRule layer_routing(const Checkpoint&, const ModelDescription&, int64_t layer);

/// A family: how its config.json is read. describe throws UserError that names the key.
struct Family {
  std::string model_type;
  ModelDescription (*describe)(const nlohmann::ordered_json& config);
};
const std::vector<Family>& families();

/// The description of a checkpoint, checked against its tensors: each is there, with the shape that config.json says, and none of a
/// layer's experts is left over. UserError, also for an unsupported architecture (lists the supported ones).
ModelDescription describe_model(const Checkpoint&);

}  // namespace hcsmoe

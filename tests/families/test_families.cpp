#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "hcsmoe/checkpoint.h"
#include "hcsmoe/error.h"
#include "hcsmoe/families.h"

namespace hcsmoe {
namespace {

using nlohmann::ordered_json;

const Family& family(const std::string& type) {
  for (const Family& f : families()) {
    if (f.model_type == type) return f;
  }
  throw std::runtime_error("no family " + type);
}

/// The published sizes of a model of each family.
ordered_json published(const std::string& type) {
  if (type == "mixtral") {  // Mixtral-8x7B
    return {{"hidden_size", 4096},      {"num_hidden_layers", 32},     {"vocab_size", 32000},       {"num_attention_heads", 32},
            {"num_key_value_heads", 8}, {"num_local_experts", 8},      {"num_experts_per_tok", 2},  {"intermediate_size", 14336},
            {"rope_theta", 1e6},        {"rms_norm_eps", 1e-5},        {"sliding_window", nullptr}, {"max_position_embeddings", 32768},
            {"hidden_act", "silu"},     {"tie_word_embeddings", false}};
  }
  if (type == "qwen2_moe") {  // Qwen1.5-MoE-A2.7B
    return {{"hidden_size", 2048},
            {"num_hidden_layers", 24},
            {"vocab_size", 151936},
            {"num_attention_heads", 16},
            {"num_key_value_heads", 16},
            {"num_experts", 60},
            {"num_experts_per_tok", 4},
            {"intermediate_size", 5632},
            {"moe_intermediate_size", 1408},
            {"shared_expert_intermediate_size", 5632},
            {"norm_topk_prob", false},
            {"decoder_sparse_step", 1},
            {"rope_theta", 1e6},
            {"use_sliding_window", false},
            {"sliding_window", 32768},
            {"max_window_layers", 21}};
  }
  if (type == "glm4_moe") {  // GLM-4.5-Air
    return {{"hidden_size", 4096},
            {"num_hidden_layers", 46},
            {"vocab_size", 151552},
            {"num_attention_heads", 96},
            {"num_key_value_heads", 8},
            {"head_dim", 128},
            {"partial_rotary_factor", 0.5},
            {"attention_bias", true},
            {"use_qk_norm", false},
            {"intermediate_size", 10944},
            {"moe_intermediate_size", 1408},
            {"n_routed_experts", 128},
            {"n_shared_experts", 1},
            {"num_experts_per_tok", 8},
            {"n_group", 1},
            {"topk_group", 1},
            {"norm_topk_prob", true},
            {"routed_scaling_factor", 1.0},
            {"first_k_dense_replace", 1},
            {"num_nextn_predict_layers", 1},
            {"rms_norm_eps", 1e-5},
            {"rope_theta", 1000000},
            {"rope_scaling", nullptr}};
  }
  if (type == "deepseek_v3" || type == "kimi_k2") {  // DeepSeek-V3 and Kimi-K2, without the key that says that weights are in fp8
    const bool kimi = type == "kimi_k2";
    return {{"model_type", type},
            {"hidden_size", 7168},
            {"num_hidden_layers", 61},
            {"vocab_size", kimi ? 163840 : 129280},
            {"num_attention_heads", kimi ? 64 : 128},
            {"num_key_value_heads", kimi ? 64 : 128},
            {"q_lora_rank", 1536},
            {"kv_lora_rank", 512},
            {"qk_nope_head_dim", 128},
            {"qk_rope_head_dim", 64},
            {"v_head_dim", 128},
            {"attention_bias", false},
            {"intermediate_size", 18432},
            {"moe_intermediate_size", 2048},
            {"moe_layer_freq", 1},
            {"n_routed_experts", kimi ? 384 : 256},
            {"n_shared_experts", 1},
            {"num_experts_per_tok", 8},
            {"n_group", kimi ? 1 : 8},
            {"topk_group", kimi ? 1 : 4},
            {"norm_topk_prob", true},
            {"scoring_func", "sigmoid"},
            {"topk_method", "noaux_tc"},
            {"routed_scaling_factor", kimi ? 2.827 : 2.5},
            {"first_k_dense_replace", kimi ? 1 : 3},
            {"num_nextn_predict_layers", kimi ? 0 : 1},
            {"rope_theta", kimi ? 50000.0 : 10000.0},
            {"rope_scaling",
             {{"type", "yarn"},
              {"factor", kimi ? 32.0 : 40.0},
              {"original_max_position_embeddings", 4096},
              {"beta_fast", kimi ? 1.0 : 32.0},
              {"beta_slow", 1.0},
              {"mscale", 1.0},
              {"mscale_all_dim", 1.0}}}};
  }
  return {{"hidden_size", 2048},        {"num_hidden_layers", 28},       {"vocab_size", 102400},       {"num_attention_heads", 16},
          {"num_key_value_heads", 16},  {"n_routed_experts", 64},        {"num_experts_per_tok", 6},   {"n_shared_experts", 2},
          {"intermediate_size", 10944}, {"moe_intermediate_size", 1408}, {"first_k_dense_replace", 1}, {"moe_layer_freq", 1},
          {"norm_topk_prob", false},    {"scoring_func", "softmax"},     {"rope_scaling", nullptr},    {"attention_bias", false}};
}

std::string message(const std::string& type, const ordered_json& config) {
  try {
    family(type).describe(config);
  } catch (const UserError& error) {
    return error.what();
  }
  return "";
}

TEST(Families, EveryFamilyDescribesItsPublishedModel) {
  for (const Family& f : families()) {
    SCOPED_TRACE(f.model_type);
    const ordered_json config = published(f.model_type);
    const ModelDescription model = f.describe(config);
    EXPECT_EQ(model.family, f.model_type);
    EXPECT_EQ(model.layers, static_cast<int64_t>(model.layer.size()));
    EXPECT_EQ(model.experts, config.at(model.expert_count_keys.front()).get<int64_t>());
    EXPECT_FALSE(model.moe_layers().empty());
    EXPECT_EQ(model.head_size, model.latent ? 192 : 128);
    const std::vector<std::string> names = moe_tensor_names(model, model.moe_layers().back(), model.experts);
    const size_t of_router = model.names.correction_bias.empty() ? 1 : 2;
    EXPECT_EQ(names.size(), of_router + static_cast<size_t>(3 * model.experts));
    EXPECT_EQ(model.routing.score, of_router == 1 ? RoutingRule::Score::softmax : RoutingRule::Score::sigmoid);
    for (const std::string& name : names) EXPECT_EQ(name.find('{'), std::string::npos) << name;
    for (int64_t l = 0; l < model.layers; ++l) {
      for (const std::string& name : layer_tensor_names(model, l)) {
        EXPECT_EQ(name.find('{'), std::string::npos) << name;
        EXPECT_NE(name.find("layers." + std::to_string(l) + "."), std::string::npos) << name;
      }
    }
  }
}

TEST(Families, EveryMissingSizeIsNamed) {
  for (const Family& f : families()) {
    for (const char* key :
         {"hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "num_experts_per_tok", "intermediate_size"}) {
      ordered_json config = published(f.model_type);
      config.erase(key);
      EXPECT_NE(message(f.model_type, config).find(std::string("'") + key + "'"), std::string::npos) << f.model_type << " " << key;
    }
  }
}

TEST(Families, AbsurdValuesAreRefused) {
  for (const Family& f : families()) {
    const auto refused = [&](const char* key, const ordered_json& value) {
      ordered_json config = published(f.model_type);
      config[key] = value;
      const std::string text = message(f.model_type, config);
      EXPECT_NE(text.find(key), std::string::npos) << f.model_type << " " << key << " = " << value << ": " << text;
    };
    refused("hidden_size", -1);
    refused("hidden_size", 1.5);
    refused("hidden_size", "2048");
    refused("hidden_size", 18446744073709551615ULL);
    refused("num_hidden_layers", 1000000);
    refused("num_experts_per_tok", 1000);
    refused("num_key_value_heads", 5);
    refused("hidden_act", "gelu");
    refused("rope_scaling", {{"type", "longrope"}, {"factor", 4.0}});
    refused("rope_scaling", {{"type", "linear"}, {"factor", -4.0}});
    refused("rms_norm_eps", -1);
  }
}

TEST(Families, MixtralRenormalisesAndSlides) {
  ordered_json config = published("mixtral");
  EXPECT_TRUE(family("mixtral").describe(config).routing.renormalise);
  EXPECT_FALSE(family("mixtral").describe(config).layer[3].sliding_window.has_value());
  config["sliding_window"] = 4096;
  EXPECT_EQ(family("mixtral").describe(config).layer[3].sliding_window, 4096);
}

TEST(Families, Qwen2MoeDenseLayers) {
  ordered_json config = published("qwen2_moe");
  config["decoder_sparse_step"] = 2;
  config["mlp_only_layers"] = {1, 5};
  const ModelDescription model = family("qwen2_moe").describe(config);
  EXPECT_FALSE(model.layer[0].moe);
  EXPECT_FALSE(model.layer[1].moe);
  EXPECT_TRUE(model.layer[3].moe);
  EXPECT_FALSE(model.layer[5].moe);
  EXPECT_TRUE(model.query_key_value_bias);
  EXPECT_FALSE(model.layer[23].sliding_window.has_value());
  config["use_sliding_window"] = true;
  EXPECT_FALSE(family("qwen2_moe").describe(config).layer[20].sliding_window.has_value());
  EXPECT_EQ(family("qwen2_moe").describe(config).layer[21].sliding_window, 32768);
}

TEST(Families, DeepSeekFirstLayersAreDenseAndSharedExpertsAreOneBlock) {
  const ModelDescription model = family("deepseek").describe(published("deepseek"));
  EXPECT_FALSE(model.layer[0].moe);
  EXPECT_TRUE(model.layer[1].moe);
  EXPECT_EQ(model.shared_intermediate, 2816);
  EXPECT_FALSE(model.shared_expert_gate);
  EXPECT_EQ(expert_tensor_name(model, 4, 17, ExpertPart::up), "model.layers.4.mlp.experts.17.up_proj.weight");
}

TEST(Families, Glm4MoeRotatesHalfOfAHead) {
  ordered_json config = published("glm4_moe");
  ModelDescription model = family("glm4_moe").describe(config);
  EXPECT_EQ(model.rotary_size, 64);
  EXPECT_TRUE(model.query_key_value_bias);
  EXPECT_FALSE(model.attention_output_bias);
  EXPECT_FALSE(model.query_key_norm);
  EXPECT_FALSE(model.layer[0].moe);
  EXPECT_TRUE(model.layer[1].moe);
  EXPECT_EQ(model.shared_intermediate, 1408);
  EXPECT_EQ(model.routing.groups, 1);
  EXPECT_TRUE(model.routing.renormalise);
  EXPECT_EQ(moe_tensor_names(model, 3, 1)[1], "model.layers.3.mlp.gate.e_score_correction_bias");
  EXPECT_EQ(model.compressed_values, (std::vector<std::pair<std::string, int64_t>>{{"num_nextn_predict_layers", 0}}));
  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1e6}, {"partial_rotary_factor", 0.25}};
  EXPECT_EQ(family("glm4_moe").describe(config).rotary_size, 32);
  config.erase("rope_parameters");
  for (const double factor : {0.0, 0.01, 0.0235}) {  // of 128: none, 1, 3 channels
    config["partial_rotary_factor"] = factor;
    EXPECT_NE(message("glm4_moe", config).find("partial_rotary_factor"), std::string::npos) << factor;
  }
}

TEST(Families, LayersBehindTheLastAreKnown) {
  const ModelDescription model = family("glm4_moe").describe(published("glm4_moe"));
  EXPECT_EQ(prediction_layer(model, "model.layers.46.mlp.experts.0.up_proj.weight"), 46);
  EXPECT_EQ(prediction_layer(model, "model.layers.460.enorm.weight"), 460);
  for (const char* name : {"model.layers.45.input_layernorm.weight", "model.layers.4.x", "model.layers.46", "model.layers.x.46.",
                           "model.layers..", "lm_head.weight", "model.layers.99999999999999999999.x"}) {
    EXPECT_EQ(prediction_layer(model, name), std::nullopt) << name;
  }
  EXPECT_EQ(prediction_layer(family("qwen2_moe").describe(published("qwen2_moe")), "model.layers.99.x.weight"), std::nullopt);
}

TEST(Families, DeepSeekV3LatentAttentionAndGroups) {
  ordered_json config = published("deepseek_v3");
  const ModelDescription model = family("deepseek_v3").describe(config);
  ASSERT_TRUE(model.latent);
  EXPECT_EQ(model.latent->query_rank, 1536);
  EXPECT_EQ(model.latent->key_size(), 192);
  const double magnitude = 0.1 * std::log(40.0) + 1;
  EXPECT_NEAR(model.latent->scale, magnitude * magnitude / std::sqrt(192.0), 1e-12);
  EXPECT_NEAR(model.rope.attention_factor, 1, 1e-12);  // mscale and mscale_all_dim are equal
  EXPECT_TRUE(model.rope.interleaved);
  EXPECT_EQ(model.rotary_size, 64);
  EXPECT_EQ(model.routing.groups, 8);
  EXPECT_EQ(model.routing.top_groups, 4);
  EXPECT_EQ(model.routing.scale, 2.5);
  EXPECT_FALSE(model.layer[2].moe);
  EXPECT_TRUE(model.layer[3].moe);
  const std::vector<std::string> names = layer_tensor_names(model, 0);
  EXPECT_NE(std::find(names.begin(), names.end(), "model.layers.0.self_attn.q_b_proj.weight"), names.end());
  EXPECT_EQ(model.compressed_values,
            (std::vector<std::pair<std::string, int64_t>>{{"n_group", 1}, {"topk_group", 1}, {"num_nextn_predict_layers", 0}}));
  config["q_lora_rank"] = nullptr;
  config["rope_scaling"] = nullptr;
  const ModelDescription plain = family("deepseek_v3").describe(config);  // as Moonlight
  EXPECT_EQ(plain.latent->query_rank, 0);
  EXPECT_EQ(plain.names.query, "model.layers.{layer}.self_attn.q_proj.weight");
  EXPECT_NEAR(plain.latent->scale, 1 / std::sqrt(192.0), 1e-12);
}

TEST(Families, DeepSeekV3RefusesWhatItCannotRun) {
  const auto refused = [](const char* key, const ordered_json& value, const char* said) {
    ordered_json config = published("deepseek_v3");
    config[key] = value;
    const std::string text = message("deepseek_v3", config);
    EXPECT_NE(text.find(said), std::string::npos) << key << " = " << value << ": " << text;
  };
  refused("quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}}, "convert it to bfloat16 first");
  refused("scoring_func", "softmax", "scoring_func");
  refused("topk_method", "greedy", "topk_method");
  refused("n_group", 7, "n_group 7");
  refused("n_group", 256, "n_group 256");
  refused("topk_group", 9, "topk_group");
  refused("n_group", nullptr, "n_group");
  refused("qk_rope_head_dim", 63, "must be even");
  refused("kv_lora_rank", nullptr, "kv_lora_rank");
  refused("moe_layer_freq", 2, "moe_layer_freq");
}

TEST(Families, RopeScalingInOldAndNewForm) {
  ordered_json config = published("qwen2_moe");
  config["rope_scaling"] = {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32768}};
  const Rope old_form = family("qwen2_moe").describe(config).rope;
  EXPECT_EQ(old_form.scaling, Rope::Scaling::yarn);
  EXPECT_EQ(old_form.original_max_positions, 32768);
  EXPECT_NEAR(old_form.attention_factor, 0.1 * std::log(4.0) + 1, 1e-12);
  config.erase("rope_scaling");
  config.erase("rope_theta");
  config["rope_parameters"] = {{"rope_type", "yarn"}, {"rope_theta", 1e6}, {"factor", 4.0}, {"original_max_position_embeddings", 32768}};
  const Rope new_form = family("qwen2_moe").describe(config).rope;
  EXPECT_EQ(new_form.scaling, old_form.scaling);
  EXPECT_EQ(new_form.theta, 1e6);
  EXPECT_EQ(new_form.attention_factor, old_form.attention_factor);
}

TEST(Families, TheDemoIsDescribedFromItsCheckpoint) {
  const Checkpoint checkpoint = Checkpoint::open(TEST_DATA "/demo/model");
  const ModelDescription model = describe_model(checkpoint);
  EXPECT_EQ(model.experts, 16);
  EXPECT_EQ(model.routing.top_k, 4);
  EXPECT_EQ(model.moe_layers(), (std::vector<int64_t>{0, 1, 2, 3}));
  size_t named = 3;  // embedding, final norm, output
  for (int64_t l = 0; l < model.layers; ++l) named += layer_tensor_names(model, l).size();
  EXPECT_EQ(named, checkpoint.tensors().size());  // nothing of the checkpoint is unknown to us
}

}  // namespace
}  // namespace hcsmoe

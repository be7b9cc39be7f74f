"""The tiny random checkpoints that the flow is tested on: every family, odd sizes, every storage variant that published checkpoints use."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from deepseek_reference import DeepseekMoe
from safetensors.torch import load_file, save_file
from transformers import (
    DeepseekV3Config, DeepseekV3ForCausalLM, Glm4MoeConfig, Glm4MoeForCausalLM, MixtralConfig, MixtralForCausalLM, Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)  # fmt: skip

VOCABULARY = 1024  # of the demo model, whose tokenizer goes along
DEMO_MODEL = Path(__file__).resolve().parents[1] / "data" / "demo" / "model"


@dataclass
class Recipe:
    """How a checkpoint is made. config: as in config.json. kept: experts a layer of the merged golden model."""

    name: str
    family: str
    dtype: torch.dtype
    sequences: int
    length: int
    kept: int
    seed: int
    config: dict
    max_shard_bytes: int = 5_000_000_000
    unused_experts: tuple = field(default=())  # near copies of one another that the router never chooses
    prediction_layers: int = 0  # after the last, for multi-token prediction, as published checkpoints have them


COMMON = dict(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, max_position_embeddings=512, initializer_range=0.02, use_cache=True)
DEEPSEEK = COMMON | dict(
    architectures=["DeepseekForCausalLM"], model_type="deepseek", hidden_act="silu", attention_bias=False, attention_dropout=0.0,
    aux_loss_alpha=0.001, seq_aux=True, pretraining_tp=1, scoring_func="softmax", rms_norm_eps=1e-6, rope_theta=10000, rope_scaling=None,
    tie_word_embeddings=False, norm_topk_prob=False, moe_layer_freq=1, first_k_dense_replace=1, transformers_version="4.36.0",
)  # fmt: skip

RECIPES = [
    Recipe("mixtral_bf16_window", "mixtral", torch.bfloat16, 5, 37, 3, 11, max_shard_bytes=60_000, config=COMMON | dict(
        hidden_size=48, intermediate_size=37, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, head_dim=16,
        num_local_experts=5, num_experts_per_tok=2, sliding_window=16, rope_theta=1e6, tie_word_embeddings=False, rms_norm_eps=1e-5)),
    Recipe("mixtral_f32_tied", "mixtral", torch.float32, 4, 64, 4, 12, config=COMMON | dict(
        hidden_size=40, intermediate_size=52, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        num_local_experts=7, num_experts_per_tok=3, sliding_window=None, rope_theta=1e4, tie_word_embeddings=True, rms_norm_eps=1e-5)),
    Recipe("mixtral_f16_unused", "mixtral", torch.float16, 5, 37, 6, 13, max_shard_bytes=80_000, unused_experts=(3, 9),
           config=COMMON | dict(
        hidden_size=64, intermediate_size=33, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2,
        num_local_experts=13, num_experts_per_tok=2, sliding_window=None, rope_theta=5e5, tie_word_embeddings=False, rms_norm_eps=1e-5)),
    Recipe("qwen2_moe_bf16", "qwen2_moe", torch.bfloat16, 5, 37, 6, 21, config=COMMON | dict(
        hidden_size=64, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-6,
        moe_intermediate_size=37, shared_expert_intermediate_size=50, num_experts=11, num_experts_per_tok=4, norm_topk_prob=False,
        mlp_only_layers=[1], decoder_sparse_step=1, sliding_window=16, use_sliding_window=False, tie_word_embeddings=False)),
    Recipe("qwen2_moe_f32_sparse_step", "qwen2_moe", torch.float32, 5, 64, 4, 22, max_shard_bytes=100_000, config=COMMON | dict(
        hidden_size=36, intermediate_size=44, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=3, rms_norm_eps=1e-6,
        moe_intermediate_size=28, shared_expert_intermediate_size=31, num_experts=7, num_experts_per_tok=3, norm_topk_prob=True,
        mlp_only_layers=[], decoder_sparse_step=2, qkv_bias=False, tie_word_embeddings=True, rope_theta=1e6)),
    Recipe("qwen2_moe_bf16_yarn", "qwen2_moe", torch.bfloat16, 3, 300, 3, 23, max_shard_bytes=70_000, config=COMMON | dict(
        hidden_size=64, intermediate_size=44, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, rms_norm_eps=1e-6,
        moe_intermediate_size=32, shared_expert_intermediate_size=40, num_experts=5, num_experts_per_tok=2, norm_topk_prob=False,
        rope_theta=1e6, rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, tie_word_embeddings=False)),
    Recipe("deepseek_bf16", "deepseek", torch.bfloat16, 5, 37, 7, 31, max_shard_bytes=70_000, config=DEEPSEEK | dict(
        hidden_size=48, intermediate_size=100, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4, n_routed_experts=13,
        n_shared_experts=2, moe_intermediate_size=23, num_experts_per_tok=5, torch_dtype="bfloat16")),
    Recipe("deepseek_f16_linear", "deepseek", torch.float16, 4, 64, 4, 32, config=DEEPSEEK | dict(
        hidden_size=56, intermediate_size=70, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, n_routed_experts=7,
        n_shared_experts=1, moe_intermediate_size=30, num_experts_per_tok=3, first_k_dense_replace=2, moe_layer_freq=2,
        norm_topk_prob=True, attention_bias=True, rope_scaling={"type": "linear", "factor": 4.0}, torch_dtype="float16")),
    Recipe("deepseek_f32_dynamic", "deepseek", torch.float32, 3, 300, 3, 33, max_shard_bytes=90_000, config=DEEPSEEK | dict(
        hidden_size=40, intermediate_size=50, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, n_routed_experts=5,
        n_shared_experts=2, moe_intermediate_size=17, num_experts_per_tok=2, first_k_dense_replace=0, max_position_embeddings=128,
        tie_word_embeddings=True, rope_scaling={"type": "dynamic", "factor": 2.0}, torch_dtype="float32")),
    Recipe("glm4_moe_bf16_mtp", "glm4_moe", torch.bfloat16, 5, 37, 6, 41, max_shard_bytes=70_000, prediction_layers=1,
           config=COMMON | dict(
        hidden_size=48, intermediate_size=70, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, head_dim=20,
        partial_rotary_factor=0.5, use_qk_norm=True, attention_bias=True, moe_intermediate_size=23, n_routed_experts=11, n_shared_experts=1,
        num_experts_per_tok=3, n_group=1, topk_group=1, norm_topk_prob=True, routed_scaling_factor=1.5, first_k_dense_replace=1,
        rope_theta=1e6, rms_norm_eps=1e-5, tie_word_embeddings=False, num_nextn_predict_layers=1)),
    Recipe("glm4_moe_f32_groups", "glm4_moe", torch.float32, 5, 64, 5, 42, config=COMMON | dict(
        hidden_size=40, intermediate_size=44, num_hidden_layers=2, num_attention_heads=5, num_key_value_heads=1,
        partial_rotary_factor=0.75, use_qk_norm=False, attention_bias=False, moe_intermediate_size=19, n_routed_experts=12,
        n_shared_experts=2, num_experts_per_tok=4, n_group=4, topk_group=2, norm_topk_prob=False, routed_scaling_factor=0.8,
        first_k_dense_replace=0, rms_norm_eps=1e-5, tie_word_embeddings=True)),
    Recipe("deepseek_v3_bf16_yarn", "deepseek_v3", torch.bfloat16, 3, 300, 5, 51, max_shard_bytes=70_000, prediction_layers=1,
           config=COMMON | dict(
        hidden_size=48, intermediate_size=60, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=3, q_lora_rank=21,
        kv_lora_rank=18, qk_nope_head_dim=10, qk_rope_head_dim=6, v_head_dim=13, moe_intermediate_size=22, n_routed_experts=12,
        n_shared_experts=1, num_experts_per_tok=3, n_group=3, topk_group=2, norm_topk_prob=True, routed_scaling_factor=2.5,
        first_k_dense_replace=1, attention_bias=True, rms_norm_eps=1e-6, tie_word_embeddings=False, num_nextn_predict_layers=1,
        rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "mscale": 0.9, "mscale_all_dim": 0.7,
                      "beta_fast": 32, "beta_slow": 1})),
    Recipe("deepseek_v3_f32", "deepseek_v3", torch.float32, 5, 37, 4, 54, config=COMMON | dict(
        hidden_size=36, intermediate_size=50, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, q_lora_rank=None,
        kv_lora_rank=15, qk_nope_head_dim=7, qk_rope_head_dim=4, v_head_dim=16, moe_intermediate_size=17, n_routed_experts=7,
        n_shared_experts=1, num_experts_per_tok=2, n_group=1, topk_group=1, norm_topk_prob=True, routed_scaling_factor=1.0,
        first_k_dense_replace=0, attention_bias=False, rope_interleave=False, rms_norm_eps=1e-6, tie_word_embeddings=True)),
]  # fmt: skip
SIGMOID = ("glm4_moe", "deepseek_v3")  # families whose routers have correction biases


def new_model(recipe: Recipe) -> torch.nn.Module:
    config = dict(recipe.config)
    if recipe.family == "mixtral":
        return MixtralForCausalLM(MixtralConfig(**config))
    if recipe.family == "qwen2_moe":
        return Qwen2MoeForCausalLM(Qwen2MoeConfig(**config))
    if recipe.family == "glm4_moe":
        return Glm4MoeForCausalLM(Glm4MoeConfig(**config))
    if recipe.family == "deepseek_v3":
        return DeepseekV3ForCausalLM(DeepseekV3Config(**config))
    return DeepseekMoe(config)


@torch.no_grad()
def fill_randomly(model: torch.nn.Module, recipe: Recipe):
    """Weights whose products neither vanish nor explode, routers that prefer some experts. Hidden states share a direction (+1 and -1 by
    channel), so that a router row against it is never chosen."""
    generator = torch.Generator().manual_seed(recipe.seed)
    direction = torch.randint(0, 2, (recipe.config["hidden_size"],), generator=generator) * 2.0 - 1.0
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            parameter.copy_(1 + 0.2 * noise)
        elif name.endswith(".bias"):
            parameter.copy_(0.3 * noise)
        elif "embed_tokens" in name:
            parameter.copy_(0.7 * noise + 0.7 * direction)
        elif name.endswith(".gate.weight"):
            preference = torch.linspace(-1, 1, parameter.shape[0])[torch.randperm(parameter.shape[0], generator=generator)]
            parameter.copy_((1.5 * noise + 0.3 * preference[:, None] * direction) / parameter.shape[1] ** 0.5)
            for expert in recipe.unused_experts:
                parameter[expert] = -direction
        elif "down_proj" in name or name.endswith("w2.weight"):
            parameter.copy_(2.5 * noise / parameter.shape[1] ** 0.5)
        else:
            parameter.copy_(1.2 * noise / parameter.shape[1] ** 0.5)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
    tensors = dict(model.named_parameters())
    for first, copy in zip(recipe.unused_experts, recipe.unused_experts[1:]):
        for name in tensors:
            if f".experts.{copy}." in name:
                original = tensors[name.replace(f".experts.{copy}.", f".experts.{first}.")]
                tensors[name].copy_(original + 0.02 * original.std() * torch.randn(original.shape, generator=generator))


def keep_published_keys(file: Path, config: dict):
    """save_pretrained drops a window that is switched off; published configs name one."""
    saved = json.loads(file.read_text())
    saved |= {key: value for key, value in config.items() if key in ("sliding_window", "use_sliding_window")}
    file.write_text(json.dumps(saved, indent=2) + "\n")


def add_prediction_layers(recipe: Recipe, folder: Path):
    """Copies of the last layer behind it, in the last file."""
    file = sorted(folder.glob("*.safetensors"))[-1]
    tensors, last, layers = {}, {}, recipe.config["num_hidden_layers"]
    for shard in sorted(folder.glob("*.safetensors")):
        tensors = load_file(shard)
        last |= {name: tensor for name, tensor in tensors.items() if name.startswith(f"model.layers.{layers - 1}.")}
    for extra in range(layers, layers + recipe.prediction_layers):
        tensors |= {name.replace(f".{layers - 1}.", f".{extra}.", 1): tensor.clone() for name, tensor in last.items()}
        tensors[f"model.layers.{extra}.eh_proj.weight"] = torch.zeros(2, 3)
    save_file(tensors, file, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] |= dict.fromkeys(tensors, file.name)
    index.write_text(json.dumps(content, indent=2) + "\n")


def save_checkpoint(recipe: Recipe, folder: Path):
    model = new_model(recipe)
    fill_randomly(model, recipe)
    biases = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")}
    model.to(recipe.dtype)
    for name, bias in biases.items():  # in float32, as published
        model.get_submodule(name.rpartition(".")[0]).e_score_correction_bias = bias
    if recipe.family == "deepseek":
        model.save(folder, max_shard_bytes=recipe.max_shard_bytes)
    else:
        model.save_pretrained(folder, max_shard_size=recipe.max_shard_bytes)
        keep_published_keys(folder / "config.json", recipe.config)
    if recipe.prediction_layers:
        add_prediction_layers(recipe, folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_MODEL / file, folder / file)

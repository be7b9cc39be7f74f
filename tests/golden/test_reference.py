"""The DeepSeek reference against transformers, in configurations where the two architectures coincide: a dense DeepSeek is a Llama, one
without shared experts is a Mixtral, one with shared experts is a Qwen2-MoE whose shared gate is open half-way."""

import pytest
import torch
from deepseek_reference import DeepseekMoe
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

COMMON = dict(
    vocab_size=101, hidden_size=48, intermediate_size=60, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
    max_position_embeddings=40, rms_norm_eps=1e-5, rope_theta=5000.0,
)  # fmt: skip


def random_reference(**extra):
    torch.manual_seed(7)
    model = DeepseekMoe({"model_type": "deepseek", **COMMON, **extra}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.2 if parameter.dim() == 2 else 0.5
            parameter.copy_(torch.randn(parameter.shape) * spread + (parameter.dim() == 1))
    return model


@torch.no_grad()
def compare(reference, model, length):
    ids = torch.randint(0, COMMON["vocab_size"], (3, length))
    expected, found = model.eval()(ids).logits, reference(ids)
    error = (expected - found).abs().max() / expected.abs().max()
    print(f"largest difference {error:.2e} of the scale")
    assert error < 1e-5


@pytest.mark.parametrize("scaling", [None, {"type": "linear", "factor": 3.0}, {"type": "dynamic", "factor": 2.0}])
@pytest.mark.parametrize("length", [31, 67])
def test_dense_layers_are_llama(scaling, length):
    reference = random_reference(attention_bias=True, rope_scaling=scaling, tie_word_embeddings=True)
    config = LlamaConfig(**COMMON, attention_bias=True, rope_scaling=scaling, tie_word_embeddings=True)
    model = LlamaForCausalLM(config)
    model.load_state_dict(reference.state_dict())
    compare(reference, model, length)


def test_without_shared_experts_it_is_mixtral():
    reference = random_reference(n_routed_experts=7, num_experts_per_tok=3, moe_intermediate_size=60, norm_topk_prob=True)
    model = MixtralForCausalLM(MixtralConfig(**COMMON, num_local_experts=7, num_experts_per_tok=3))
    renamed = {"mlp.gate.": "block_sparse_moe.gate.", "mlp.experts.": "block_sparse_moe.experts.", "gate_proj": "w1", "down_proj": "w2",
               "up_proj": "w3"}  # fmt: skip
    tensors = {}
    for name, tensor in reference.state_dict().items():
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs)
        tensors[name] = tensor
    model.load_state_dict(tensors)
    compare(reference, model, 37)


@pytest.mark.parametrize("renormalise", [False, True])
def test_with_shared_experts_it_is_qwen2_moe(renormalise):
    reference = random_reference(
        n_routed_experts=5, num_experts_per_tok=2, moe_intermediate_size=20, n_shared_experts=2, norm_topk_prob=renormalise,
        first_k_dense_replace=1, moe_layer_freq=2,
    )  # fmt: skip
    config = Qwen2MoeConfig(
        **COMMON, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=20, shared_expert_intermediate_size=40,
        norm_topk_prob=renormalise, mlp_only_layers=[0, 1], qkv_bias=False,
    )  # fmt: skip
    model = Qwen2MoeForCausalLM(config)
    tensors = {name.replace("shared_experts", "shared_expert"): tensor for name, tensor in reference.state_dict().items()}
    tensors["model.layers.2.mlp.shared_expert.down_proj.weight"] = 2 * tensors["model.layers.2.mlp.shared_expert.down_proj.weight"]
    tensors["model.layers.2.mlp.shared_expert_gate.weight"] = torch.zeros(1, COMMON["hidden_size"])
    model.load_state_dict(tensors)
    compare(reference, model, 37)


def test_folder_round_trip(tmp_path):
    for tied in (False, True):
        model = random_reference(n_routed_experts=5, num_experts_per_tok=2, moe_intermediate_size=20, n_shared_experts=1,
                                 tie_word_embeddings=tied)  # fmt: skip
        model.save(tmp_path / str(tied), max_shard_bytes=30_000)
        assert len(list((tmp_path / str(tied)).glob("*.safetensors"))) > 2
        ids = torch.arange(11).view(1, 11)
        assert torch.equal(DeepseekMoe.load(tmp_path / str(tied))(ids), model(ids))

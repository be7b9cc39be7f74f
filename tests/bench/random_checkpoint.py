"""A Qwen2-MoE checkpoint of random weights, of any sizes, and token ids for it."""
import json
import os

import numpy as np
import torch
from safetensors.torch import save_file

VOCABULARY = 1024


def make_checkpoint(folder, D, E, F, layers, dtype, sequences, length, alike=0, top_k=4, shared=0):
    """Writes model files and ids.npy [sequences, length] to folder. alike > 0: expert e is a copy of expert e mod alike with noise of half its
    size, so that experts that are merged have something in common. shared: the shared expert's F, if it is another."""
    generator = torch.Generator().manual_seed(0)
    weight = lambda *shape: (torch.randn(*shape, generator=generator) * shape[-1] ** -0.5).to(dtype)
    V, heads = VOCABULARY, D // 64
    tensors = {"model.embed_tokens.weight": weight(V, D), "model.norm.weight": torch.ones(D, dtype=dtype), "lm_head.weight": weight(V, D)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}{norm}.weight"] = torch.ones(D, dtype=dtype)
        for part in "qkvo":
            tensors[f"{at}self_attn.{part}_proj.weight"] = weight(D, D)
        for part in "qkv":
            tensors[f"{at}self_attn.{part}_proj.bias"] = torch.zeros(D, dtype=dtype)
        shapes = {"gate_proj": (F, D), "up_proj": (F, D), "down_proj": (D, F)}
        for e in range(E):
            for name, shape in shapes.items():
                tensor = weight(*shape)
                if 0 < alike <= e:
                    tensor = (tensors[f"{at}mlp.experts.{e % alike}.{name}.weight"] + 0.5 * tensor).to(dtype)
                tensors[f"{at}mlp.experts.{e}.{name}.weight"] = tensor
        for name, shape in {"gate_proj": (shared or F, D), "up_proj": (shared or F, D), "down_proj": (D, shared or F)}.items():
            tensors[f"{at}mlp.shared_expert.{name}.weight"] = weight(*shape)
        tensors[f"{at}mlp.gate.weight"], tensors[f"{at}mlp.shared_expert_gate.weight"] = weight(E, D), weight(1, D)
    save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    config = dict(model_type="qwen2_moe", architectures=["Qwen2MoeForCausalLM"], hidden_size=D, num_hidden_layers=layers, vocab_size=V,
                  num_attention_heads=heads, num_key_value_heads=heads, intermediate_size=F, moe_intermediate_size=F,
                  shared_expert_intermediate_size=shared or F, num_experts=E, num_experts_per_tok=top_k, hidden_act="silu")
    json.dump(config, open(os.path.join(folder, "config.json"), "w"))
    np.save(os.path.join(folder, "ids.npy"), np.random.default_rng(0).integers(0, V, (sequences, length)).astype(np.int32))


def environment():
    """For mpirun with more ranks than cores."""
    return dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_rmaps_base_oversubscribe="1",
                OMPI_MCA_mpi_yield_when_idle="1", OMPI_MCA_hwloc_base_binding_policy="none")

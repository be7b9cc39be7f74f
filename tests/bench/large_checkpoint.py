#!/usr/bin/env python3
"""A checkpoint of a published model's true shapes that takes little disk: sparse files with small random parts.

    tests/bench/large_checkpoint.py qwen1.5-moe FOLDER        28.6 GB, of which about 0.5 GB are on disk
    tests/bench/large_checkpoint.py mixtral-8x7b FOLDER       93.4 GB, of which about 0.3 GB are on disk

Norms and routers are whole; of every other tensor the first rows are random and the rest is a hole, which reads as zeros. So experts differ,
activations are finite, and every byte is read, multiplied and written as of the published model. Values mean nothing: this is for time and memory.
ids.npy there holds calibration ids [64, 512] of the rows of the embedding that are random.
"""
import argparse
import json
import os
import struct

import numpy as np

FILE_BYTES = 5_000_000_000
KNOWN_TOKENS = 4096  # rows of the embedding that are not zero

QWEN = dict(
    architectures=["Qwen2MoeForCausalLM"], model_type="qwen2_moe", hidden_act="silu", vocab_size=151936, hidden_size=2048, intermediate_size=5632,
    moe_intermediate_size=1408, shared_expert_intermediate_size=5632, num_hidden_layers=24, num_attention_heads=16, num_key_value_heads=16,
    num_experts=60, num_experts_per_tok=4, norm_topk_prob=False, decoder_sparse_step=1, mlp_only_layers=[], max_position_embeddings=8192,
    rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=False, torch_dtype="bfloat16", bos_token_id=151643, eos_token_id=151643,
)
MIXTRAL = dict(
    architectures=["MixtralForCausalLM"], model_type="mixtral", hidden_act="silu", vocab_size=32000, hidden_size=4096, intermediate_size=14336,
    num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=32768,
    rms_norm_eps=1e-5, rope_theta=1e6, tie_word_embeddings=False, torch_dtype="bfloat16", sliding_window=None, bos_token_id=1, eos_token_id=2,
)
MODELS = {"qwen1.5-moe": QWEN, "mixtral-8x7b": MIXTRAL}


def tensor_shapes(config):
    """Name -> shape, in the order of the layers."""
    D, V, heads, kv = config["hidden_size"], config["vocab_size"], config["num_attention_heads"], config["num_key_value_heads"]
    qwen = config["model_type"] == "qwen2_moe"
    shapes = {"model.embed_tokens.weight": [V, D]}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for part, width in dict(q=D, k=D * kv // heads, v=D * kv // heads).items():
            shapes[f"{at}self_attn.{part}_proj.weight"] = [width, D]
            if qwen:
                shapes[f"{at}self_attn.{part}_proj.bias"] = [width]
        shapes[f"{at}self_attn.o_proj.weight"] = [D, D]
        shapes[f"{at}input_layernorm.weight"] = shapes[f"{at}post_attention_layernorm.weight"] = [D]
        if qwen:
            block, experts, F, (gate, up, down) = "mlp", config["num_experts"], config["moe_intermediate_size"], ("gate_proj", "up_proj", "down_proj")
        else:
            block, experts, F, (gate, up, down) = "block_sparse_moe", config["num_local_experts"], config["intermediate_size"], ("w1", "w3", "w2")
        shapes[f"{at}{block}.gate.weight"] = [experts, D]
        blocks = {f"experts.{expert}": F for expert in range(experts)}
        if qwen:
            blocks["shared_expert"] = config["shared_expert_intermediate_size"]
            shapes[f"{at}{block}.shared_expert_gate.weight"] = [1, D]
        for name, width in blocks.items():
            shapes[f"{at}{block}.{name}.{gate}.weight"] = shapes[f"{at}{block}.{name}.{up}.weight"] = [width, D]
            shapes[f"{at}{block}.{name}.{down}.weight"] = [D, width]
    return shapes | {"model.norm.weight": [D], "lm_head.weight": [V, D]}


def random_part(name, shape, generator):
    """The tensor's first values as bfloat16 bits; what is left out is zero."""
    if "norm" in name:
        values = np.ones(shape, dtype=np.float32)
    else:
        rows = KNOWN_TOKENS if "embed" in name else len(shape) > 1 and shape[0] if name.endswith(".gate.weight") else 32 if len(shape) > 1 else 0
        values = generator.standard_normal([min(rows, shape[0]), *shape[1:]], dtype=np.float32) * np.float32(1 if "embed" in name else shape[-1] ** -0.5)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def make_large_checkpoint(folder, config):
    """Returns (bytes of all tensors, bytes on disk)."""
    os.makedirs(folder)
    files = [{}]
    for name, shape in tensor_shapes(config).items():
        size = 2 * int(np.prod(shape))
        if sum(size_of for _, size_of in files[-1].values()) + size > FILE_BYTES:
            files.append({})
        files[-1][name] = (shape, size)
    generator, index, total, on_disk = np.random.default_rng(1), {}, 0, 0
    for number, tensors in enumerate(files, 1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for name, (shape, size) in tensors.items():
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
            index[name], end = file, end + size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(os.path.join(folder, file), "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for name, (shape, _) in tensors.items():
                out.seek(8 + len(text) + header[name]["data_offsets"][0])
                out.write(random_part(name, shape, generator).tobytes())
            out.truncate(8 + len(text) + end)
        total, on_disk = total + end, on_disk + os.stat(os.path.join(folder, file)).st_blocks * 512
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as out:
        json.dump({"metadata": {"total_size": total}, "weight_map": index}, out)
    with open(os.path.join(folder, "config.json"), "w") as out:
        json.dump(config, out, indent=2)
    np.save(os.path.join(folder, "ids.npy"), np.random.default_rng(2).integers(0, KNOWN_TOKENS, (64, 512)).astype(np.int32))
    return total, on_disk


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("folder")
    args = parser.parse_args()
    total, on_disk = make_large_checkpoint(args.folder, MODELS[args.model])
    print(f"{args.folder}: {total / 1e9:.1f} GB of tensors, {on_disk / 1e9:.2f} GB on disk")

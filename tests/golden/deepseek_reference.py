"""DeepSeek-MoE (model_type `deepseek`, as deepseek-moe-16b) in plain PyTorch: the reference for the family that stock transformers has no
class for. Written from the paper (arXiv 2401.06066) and the keys of the published config.json; tensor names are the published checkpoint's.

Shapes: B sequences, T tokens, D hidden size, F intermediate size, E routed experts, k top-k, H heads, G key/value heads, C channels a head,
V vocabulary.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional


def inverse_frequencies(config: dict, length: int) -> torch.Tensor:
    """Rotary angles a position, one a channel pair: [C / 2], float32. Scaling `linear` shrinks positions; `dynamic` (NTK-aware) raises
    the base once the sequence is longer than the model was trained for."""
    channels = config["hidden_size"] // config["num_attention_heads"]
    theta = config.get("rope_theta", 10000.0)
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("type", scaling.get("rope_type", "default"))
    if kind not in ("default", "linear", "dynamic"):
        raise ValueError(f"rope_scaling type {kind}")
    if kind == "dynamic" and length > config["max_position_embeddings"]:
        stretch = scaling["factor"] * length / config["max_position_embeddings"] - (scaling["factor"] - 1)
        theta = theta * stretch ** (channels / (channels - 2))
    frequencies = 1.0 / theta ** (torch.arange(0, channels, 2, dtype=torch.float32) / channels)
    return frequencies / scaling["factor"] if kind == "linear" else frequencies


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotates channel pairs (c, c + C/2) of x [B, heads, T, C] by angles [T, C/2]."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class RootMeanSquareNorm(nn.Module):
    def __init__(self, size: int, epsilon: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.config = config
        size, self.heads = config["hidden_size"], config["num_attention_heads"]
        self.key_value_heads = config.get("num_key_value_heads") or self.heads
        self.channels = size // self.heads
        bias = config.get("attention_bias", False)
        self.q_proj = nn.Linear(size, self.heads * self.channels, bias=bias)
        self.k_proj = nn.Linear(size, self.key_value_heads * self.channels, bias=bias)
        self.v_proj = nn.Linear(size, self.key_value_heads * self.channels, bias=bias)
        self.o_proj = nn.Linear(self.heads * self.channels, size, bias=bias)

    def forward(self, x):
        batch, length, _ = x.shape

        def split(projected):
            return projected.view(batch, length, -1, self.channels).transpose(1, 2)  # [B, heads, T, C]

        angles = torch.outer(torch.arange(length, dtype=torch.float32), inverse_frequencies(self.config, length))  # [T, C/2]
        query, key, value = rotate(split(self.q_proj(x)), angles), rotate(split(self.k_proj(x)), angles), split(self.v_proj(x))
        shared_by = self.heads // self.key_value_heads
        key, value = key.repeat_interleave(shared_by, dim=1), value.repeat_interleave(shared_by, dim=1)
        scores = (query @ key.transpose(-1, -2)).float() / self.channels**0.5  # [B, H, T, T]
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(-1).to(x.dtype)
        return self.o_proj((weights @ value).transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    """down(silu(gate x) * up x): a dense layer, a routed expert, or all shared experts side by side."""

    def __init__(self, size: int, intermediate: int):
        super().__init__()
        self.gate_proj = nn.Linear(size, intermediate, bias=False)
        self.up_proj = nn.Linear(size, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, size, bias=False)

    def forward(self, x):
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class MixtureOfExperts(nn.Module):
    """Equations 9 to 11 of the paper: the k experts of the largest softmax score, plus experts that every token uses."""

    def __init__(self, config: dict):
        super().__init__()
        if config.get("scoring_func", "softmax") != "softmax":
            raise ValueError(f"scoring_func {config['scoring_func']}")
        size, intermediate = config["hidden_size"], config["moe_intermediate_size"]
        self.top_k = config["num_experts_per_tok"]
        self.renormalise = config.get("norm_topk_prob", False) and self.top_k > 1
        self.gate = nn.Linear(size, config["n_routed_experts"], bias=False)
        self.experts = nn.ModuleList(FeedForward(size, intermediate) for _ in range(config["n_routed_experts"]))
        shared = config.get("n_shared_experts") or 0
        self.shared_experts = FeedForward(size, shared * intermediate) if shared else None

    def route(self, x):
        """Chosen experts and their weights, both [T, k]."""
        scores = self.gate(x).float().softmax(-1)
        weights, chosen = scores.topk(self.top_k, dim=-1)
        if self.renormalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return chosen, weights

    def forward(self, hidden):
        x = hidden.reshape(-1, hidden.shape[-1])  # [T, D], all sequences
        chosen, weights = self.route(x)
        result = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == number)
            if len(token):
                result.index_add_(0, token, expert(x[token]) * weights[token, slot, None].to(x.dtype))
        if self.shared_experts is not None:
            result = result + self.shared_experts(x)
        return result.view_as(hidden)


def is_moe_layer(config: dict, layer: int) -> bool:
    return bool(
        config.get("n_routed_experts")
        and layer >= config.get("first_k_dense_replace", 0)
        and layer % config.get("moe_layer_freq", 1) == 0
    )


class DecoderLayer(nn.Module):
    def __init__(self, config: dict, layer: int):
        super().__init__()
        size, epsilon = config["hidden_size"], config["rms_norm_eps"]
        self.input_layernorm = RootMeanSquareNorm(size, epsilon)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RootMeanSquareNorm(size, epsilon)
        self.mlp = MixtureOfExperts(config) if is_moe_layer(config, layer) else FeedForward(size, config["intermediate_size"])

    def forward(self, hidden):
        hidden = hidden + self.self_attn(self.input_layernorm(hidden))
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Decoder(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config["num_hidden_layers"]))
        self.norm = RootMeanSquareNorm(config["hidden_size"], config["rms_norm_eps"])

    def forward(self, ids):
        hidden = self.embed_tokens(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm(hidden)


class DeepseekMoe(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)
        if config.get("tie_word_embeddings"):
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, ids):
        """ids [B, T] -> logits [B, T, V] in float32."""
        return self.lm_head(self.model(ids)).float()

    def checkpoint_tensors(self) -> dict:
        """The state dict as it is stored: a tied lm_head is left out."""
        tensors = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        if self.config.get("tie_word_embeddings"):
            del tensors["lm_head.weight"]
        return tensors

    @classmethod
    def load(cls, folder, dtype=torch.float32) -> "DeepseekMoe":
        folder = Path(folder)
        model = cls(json.loads((folder / "config.json").read_text()))
        tensors = {}
        for file in sorted(folder.glob("*.safetensors")):
            tensors |= load_file(file)
        if model.config.get("tie_word_embeddings"):
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        model.load_state_dict(tensors, strict=True)
        return model.to(dtype).eval()

    def save(self, folder, max_shard_bytes=5_000_000_000):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")
        shards, filled = [{}], 0
        for name, tensor in self.checkpoint_tensors().items():
            if shards[-1] and filled + tensor.nbytes > max_shard_bytes:
                shards.append({})
                filled = 0
            shards[-1][name] = tensor
            filled += tensor.nbytes
        if len(shards) == 1:
            save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
            return
        weight_map = {}
        for number, shard in enumerate(shards, start=1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(shard, file)
        total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

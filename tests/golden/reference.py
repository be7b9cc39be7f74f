"""HC-SMoE (arXiv 2410.08589) in plain PyTorch and SciPy: what each stage of the program is compared with. Works on transformers' models and
on the DeepSeek reference alike; an expert is whatever module the model calls one.

Shapes: T tokens, D hidden size, E experts, K kept experts, k top-k.
"""

import json
import re
from pathlib import Path

import numpy as np
import torch
from deepseek_reference import DeepseekMoe
from safetensors.torch import load_file
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import pdist
from transformers import AutoModelForCausalLM

LINKAGES = ("single", "complete", "average", "ward")
SAMPLE, CKA_TOKENS = 600, 512  # tokens of the statistics of single tokens
EXPERT_COUNT_KEYS = {"mixtral": "num_local_experts", "qwen2_moe": "num_experts", "deepseek": "n_routed_experts",
                     "glm4_moe": "n_routed_experts", "deepseek_v3": "n_routed_experts"}  # fmt: skip


def read_config(folder) -> dict:
    return json.loads((Path(folder) / "config.json").read_text())


def read_tensors(folder) -> dict:
    tensors = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def model_tensors(folder) -> dict:
    """Without those of layers behind the last, which are left out where fewer experts are kept."""
    layers = read_config(folder)["num_hidden_layers"]
    layer_of = re.compile(r"model\.layers\.(\d+)\.")
    return {name: t for name, t in read_tensors(folder).items() if not (m := layer_of.match(name)) or int(m[1]) < layers}


def load_model(folder, dtype=torch.float32) -> torch.nn.Module:
    if read_config(folder)["model_type"] == "deepseek":
        return DeepseekMoe.load(folder, dtype)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False).eval()


@torch.no_grad()
def logits(model, ids) -> torch.Tensor:
    """ids [sequences, T] -> float32 logits [sequences, T, V], one sequence at a time."""
    rows = []
    for sequence in torch.as_tensor(np.asarray(ids), dtype=torch.int64):
        result = model(sequence[None])
        rows.append((result if torch.is_tensor(result) else result.logits)[0].float())
    return torch.stack(rows)


def moe_blocks(model) -> dict:
    """Layer number -> the module with `gate` and `experts`."""
    blocks = {}
    for number, layer in enumerate(model.model.layers):
        block = getattr(layer, "block_sparse_moe", None) or layer.mlp
        if hasattr(block, "experts"):
            blocks[number] = block
    return blocks


def is_sigmoid(block) -> bool:
    return hasattr(block.gate, "e_score_correction_bias")


def router_logits_of(block, x):
    """[T, E]. The gate of a sigmoid router returns its choice."""
    return (x.float() @ block.gate.weight.float().T) if is_sigmoid(block) else block.gate(x).float()


def routing(block, x, config: dict):
    """Router logits [T, E], scores [T, E], chosen experts [T, k] and their final weights [T, k]."""
    router_logits = router_logits_of(block, x)
    if is_sigmoid(block):
        return router_logits, router_logits.sigmoid(), *block.gate(x)
    scores = router_logits.softmax(-1)
    weights, chosen = scores.topk(config["num_experts_per_tok"], dim=-1)
    renormalise = config["model_type"] == "mixtral" or config.get("norm_topk_prob", False)
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return router_logits, scores, chosen, weights


@torch.no_grad()
def block_statistics(block, x, config: dict) -> dict:
    """The statistics of one block for its inputs x [T, D], as float64 sums of float32 values."""
    router_logits, scores, chosen, weights = routing(block, x, config)
    experts = len(block.experts)
    final_weight = torch.zeros(len(x), experts).scatter_(1, chosen, weights)  # [T, E], zero where not routed
    routed = torch.zeros(len(x), experts, dtype=torch.bool).scatter_(1, chosen, True)
    outputs = [expert(x).double() for expert in block.experts]  # E of [T, D]
    norms = torch.stack([output.norm(dim=1) for output in outputs], dim=1)  # [T, E]
    return {
        "tokens": torch.tensor(len(x)),
        "routed_count": routed.sum(0),
        "routed_weight_sum": final_weight.double().sum(0),
        "router_probability_sum": scores.double().sum(0),
        "output_sum": torch.stack([output.sum(0) for output in outputs]),
        "routed_output_norm_sum": (norms * routed).sum(0),
        "weighted_output_norm_sum": (norms * final_weight.double()).sum(0),
        "router_logit_sum": router_logits.double().sum(0),
        "router_logit_gram": router_logits.double().T @ router_logits.double(),
    }


def evenly_spaced(count: int, size: int) -> list:
    size = min(count, size)
    return [i * count // size for i in range(size)]


def linear_cka(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Kornblith et al., arXiv 1905.00414, in the form with products of features: |Y^T X|^2 / (|X^T X| |Y^T Y|), columns centred."""
    x, y = x - x.mean(0), y - y.mean(0)
    return (y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())


def all_pairs(values: list, function) -> torch.Tensor:
    return torch.stack([torch.stack([function(a, b) for b in values]) for a in values])


def expert_weights(expert) -> tuple:
    """gate, up [F, D], down [D, F] in float64."""
    parts = ("w1", "w3", "w2") if hasattr(expert, "w1") else ("gate_proj", "up_proj", "down_proj")
    return tuple(getattr(expert, part).weight.double() for part in parts)


@torch.no_grad()
def sample_statistics(block, x) -> dict:
    """The statistics of single tokens and of the weights; the block's inputs x [T, D]."""
    x = x[evenly_spaced(len(x), SAMPLE)]
    experts = len(block.experts)
    outputs = torch.stack([expert(x).double() for expert in block.experts])  # [E, S, D]
    upper = torch.triu_indices(experts, experts)
    some = outputs[:, evenly_spaced(len(x), CKA_TOKENS)]
    weights = [expert_weights(expert) for expert in block.experts]
    flat = torch.stack([torch.cat([part.flatten() for part in parts]) for parts in weights])
    return {
        "sample_input": x.clone(),
        "sample_logits": router_logits_of(block, x),
        "token_output_gram": torch.einsum("esd,fsd->sef", outputs, outputs)[:, upper[0], upper[1]].contiguous(),
        "output_cka": all_pairs(list(some), linear_cka),
        "weight_gram": flat @ flat.T,
        "weight_cka": all_pairs([torch.cat([gate.T, up.T, down], dim=1) for gate, up, down in weights], linear_cka),
    }


def routing_margin(block, x, config: dict) -> float:
    """The smallest distance of a chosen expert's logit to a refused one's, over tokens: counts are exact only if it exceeds rounding."""
    router_logits, k = routing(block, x, config)[0], config["num_experts_per_tok"]
    values, group_margin = router_logits, float("inf")
    if is_sigmoid(block):
        values = router_logits.sigmoid() + block.gate.e_score_correction_bias
        groups, limit = config["n_group"], config["topk_group"]
        if limit < groups:
            of_groups = values.view(len(values), groups, -1).topk(2, dim=-1).values.sum(-1)
            best = of_groups.sort(-1, descending=True)
            group_margin = (best.values[:, limit - 1] - best.values[:, limit]).min().item()
            inside = torch.zeros_like(of_groups, dtype=torch.bool).scatter_(1, best.indices[:, :limit], True)
            values = values.masked_fill(~inside.repeat_interleave(values.shape[1] // groups, dim=1), -1e9)
            if (values.sort(-1, descending=True).values[:, k - 1] <= 0).any():
                raise RuntimeError("transformers would choose an expert outside of the groups, whose value it sets to 0")
    ordered = values.sort(-1, descending=True).values
    return min(group_margin, (ordered[:, k - 1] - ordered[:, k]).min().item())


def model_statistics(model, ids, config: dict) -> tuple:
    """Per layer: statistics, and the routing margin. The block inputs are caught by hooks on the original model."""
    inputs = {layer: [] for layer in moe_blocks(model)}
    hooks = [
        block.register_forward_pre_hook(lambda _, arguments, layer=layer: inputs[layer].append(arguments[0][0]))
        for layer, block in moe_blocks(model).items()
    ]
    logits(model, ids)
    for hook in hooks:
        hook.remove()
    statistics, margins = {}, []
    for layer, block in moe_blocks(model).items():
        x = torch.cat(inputs[layer])  # [T, D]
        statistics[layer] = block_statistics(block, x, config) | sample_statistics(block, x)
        with torch.no_grad():
            margins.append(routing_margin(block, x, config))
    return statistics, min(margins)


def merged_config(config: dict, kept: int) -> dict:
    """What config.json says of a model with fewer experts: no groups, and no layers behind the last."""
    alone = {"n_group": 1, "topk_group": 1} if config.get("n_group", 1) > 1 else {}
    alone |= {"num_nextn_predict_layers": 0} if config.get("num_nextn_predict_layers", 0) > 0 else {}
    return config | alone | {EXPERT_COUNT_KEYS[config["model_type"]]: kept}


def mean_outputs(statistics: dict) -> np.ndarray:
    return (statistics["output_sum"] / statistics["tokens"]).numpy()


def merge_tree(features: np.ndarray, method: str, metric: str = "euclidean") -> np.ndarray:
    return linkage(pdist(features, metric), method)


def clusters_of(tree: np.ndarray, count: int) -> list:
    """SciPy's flat clusters: members ascending, clusters by their smallest member."""
    labels = cut_tree(tree, n_clusters=count)[:, 0]
    return sorted([np.flatnonzero(labels == label).tolist() for label in set(labels.tolist())])


def frequency_weights(members: list, routed_count) -> list:
    counts = [int(routed_count[member]) for member in members]
    total = sum(counts)
    return [count / total for count in counts] if total else [1 / len(members)] * len(members)


def weighted_mean(tensors: list, weights: list) -> torch.Tensor:
    """In float32, in the order given, rounded once."""
    if len(tensors) == 1:
        return tensors[0].clone()
    total = tensors[0].float() * np.float32(weights[0])
    for tensor, weight in zip(tensors[1:], weights[1:]):
        total += tensor.float() * np.float32(weight)
    return total.to(tensors[0].dtype)


EXPERT_NAME = re.compile(r"(model\.layers\.(\d+)\.\w+\.experts\.)(\d+)(\..+)")
ROUTER_NAME = re.compile(r"model\.layers\.(\d+)\.\w+\.gate\.(weight|e_score_correction_bias)")


def merge_tensors(tensors: dict, clusters: dict) -> dict:
    """clusters: layer -> [{members, weights, router_weights}]. The checkpoint's tensors with each cluster merged into one expert."""
    merged = {}
    for name, tensor in tensors.items():
        expert, router = EXPERT_NAME.fullmatch(name), ROUTER_NAME.fullmatch(name)
        if router and int(router[1]) in clusters:
            rows = [weighted_mean([tensor[m] for m in c["members"]], c["router_weights"]) for c in clusters[int(router[1])]]
            merged[name] = torch.stack(rows)
        elif not expert:
            merged[name] = tensor
        elif expert[3] == "0":
            for number, cluster in enumerate(clusters[int(expert[2])]):
                members = [tensors[f"{expert[1]}{member}{expert[4]}"] for member in cluster["members"]]
                merged[f"{expert[1]}{number}{expert[4]}"] = weighted_mean(members, cluster["weights"])
    return merged


def perplexity(model, ids: np.ndarray, length: int) -> tuple:
    """exp of the mean negative log-likelihood over disjoint windows; a window's first token is not scored. Also the tokens scored."""
    total, scored = 0.0, 0
    for begin in range(0, len(ids), length):
        window = ids[begin : begin + length]
        if len(window) < 2:
            continue
        log_probability = logits(model, window[None])[0, :-1].double().log_softmax(-1)
        total -= log_probability[torch.arange(len(window) - 1), torch.as_tensor(window[1:], dtype=torch.int64)].sum().item()
        scored += len(window) - 1
    return float(np.exp(total / scored)), scored

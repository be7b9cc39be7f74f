"""Reads the data of a report, and recomputes what it shows: NumPy and SciPy on the statistics files, nothing of the program."""

import base64
import json
import re
from pathlib import Path

import h5py
import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import pdist, squareform

DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


def data_of(page: Path) -> dict:
    (found,) = DATA.findall(page.read_text(encoding="utf-8"))
    return json.loads(found)


def statistics_of(work: Path, layer: int) -> dict:
    with h5py.File(work / "statistics" / f"layer_{layer:04}.h5") as file:
        return {name: dataset[()] for name, dataset in file.items()} | {"tokens": int(file.attrs["tokens"])}


def full_matrix(upper: np.ndarray, experts: int) -> np.ndarray:
    """Of the last axis, the upper triangle: [..., E, E]."""
    rows, columns = np.triu_indices(experts)
    matrix = np.zeros(upper.shape[:-1] + (experts, experts))
    matrix[..., rows, columns] = matrix[..., columns, rows] = upper
    return matrix


def distances(statistics: dict, feature: str, metric: str | None) -> np.ndarray:
    """[E, E]"""
    if feature == "expert_output":
        return squareform(pdist(statistics["output_sum"] / statistics["tokens"], metric))
    if feature in ("cka", "weight_cka"):
        return np.where(np.eye(len(statistics["routed_count"])) > 0, 0, 1 - statistics["output_cka" if feature == "cka" else feature])
    if feature == "expert_output_tokens":
        gram = full_matrix(statistics["token_output_gram"].astype(np.float64).sum(0), len(statistics["routed_count"]))
    else:
        gram = statistics[{"router_logits": "router_logit_gram", "weight": "weight_gram"}[feature]]
    own = gram.diagonal()
    if metric == "cosine":
        return np.where(np.eye(len(gram)) > 0, 0, 1 - gram / np.sqrt(np.outer(own, own)))
    return np.sqrt(np.maximum(0, own[:, None] + own[None] - 2 * gram))


def shown_distances(layer: dict) -> np.ndarray:
    codes = np.frombuffer(base64.b64decode(layer["distances"]["codes"]), np.uint8)
    low, high = layer["distances"]["low"], layer["distances"]["high"]
    return squareform(low + codes / 255 * (high - low))


def tree_of(matrix: np.ndarray, method: str) -> np.ndarray:
    return linkage(squareform(matrix, checks=False), method)


def leaves(tree: np.ndarray) -> list:
    return leaves_list(tree).tolist()


def cut(tree: np.ndarray, clusters: int) -> list:
    experts = len(tree) + 1
    members = {expert: [expert] for expert in range(experts)}
    for i, (a, b, _, _) in enumerate(tree[: experts - clusters]):
        members[experts + i] = sorted(members.pop(int(a)) + members.pop(int(b)))
    return sorted(members.values())


def spread(members: list, matrix: np.ndarray, usage: np.ndarray, squared: bool) -> float:
    """sum f_e |x_e - mean|^2 in terms of distances."""
    f, q = usage[members].astype(float), matrix[np.ix_(members, members)]
    q = q if squared else q**2
    return float(f @ q @ f / (2 * f.sum())) if f.sum() > 0 else 0.0


def frequencies(usage: np.ndarray) -> np.ndarray:
    return usage / usage.sum() if usage.sum() > 0 else np.full(len(usage), 1 / len(usage))


def knee(values: list) -> int:
    line = np.linspace(values[0], values[-1], len(values))
    below = line - values
    below[[0, -1]] = 0
    return int(below.argmax()) + 1 if below.max() > 0 else 0


def softmax_gates(logits: np.ndarray, top_k: int, renormalise: bool) -> np.ndarray:
    """[S, experts]: zero where a token does not go."""
    scores = np.exp(logits - logits.max(-1, keepdims=True))
    scores /= scores.sum(-1, keepdims=True)
    chosen = np.argsort(-logits, axis=-1, kind="stable")[:, :top_k]
    gates = np.zeros_like(scores)
    np.put_along_axis(gates, chosen, np.take_along_axis(scores, chosen, -1), -1)
    return gates / gates.sum(-1, keepdims=True) if renormalise else gates


def output_error(statistics: dict, clusters: list, top_k: int, renormalise: bool) -> float:
    """clusters: (members, weights, router weights)."""
    logits = statistics["sample_logits"].astype(np.float64)
    tokens = min(len(logits), 512)
    rows = [i * len(logits) // tokens for i in range(tokens)]
    logits, experts = logits[rows], logits.shape[1]
    gram = full_matrix(statistics["token_output_gram"][rows].astype(np.float64), experts)
    to_outputs, to_rows = np.zeros((2, len(clusters), experts))
    for k, (members, weights, router_weights) in enumerate(clusters):
        to_outputs[k, members], to_rows[k, members] = weights, router_weights
    before = softmax_gates(logits, top_k, renormalise)
    after = softmax_gates((logits @ to_rows.T).astype(np.float32).astype(np.float64), top_k, renormalise) @ to_outputs
    norm = lambda c: np.einsum("te,tef,tf->", c, gram, c)  # noqa: E731
    return float(norm(before - after) / norm(before))

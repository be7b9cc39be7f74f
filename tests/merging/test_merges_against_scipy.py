"""Assignments against SciPy; unit maps and merged tensors against plain NumPy references, on random checkpoints of every family and storage
type and on the demo model.

merge_cases (in the folder that the environment variable HCSMOE_BUILD names) answers. The references compute in float64 and know nothing of
tiles, ranks or threads. Where two units score the same to rounding, either choice is right: one-to-one orders are compared by their score.
"""
import json
import os
import pathlib
import subprocess

import numpy as np
import pytest
import reference
import torch
from checkpoints import DEMO_MODEL
from conftest import run_program
from scipy.optimize import linear_sum_assignment

MERGES = ["frequency-aligned", "average-aligned", "fix-dominant", "zipit"]
CASES = [(name, merge) for name in ("qwen2_moe_f32_sparse_step", "demo") for merge in MERGES]
CASES += [("mixtral_bf16_window", "frequency-aligned"), ("deepseek_f16_linear", "fix-dominant")]
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def program():
    path = pathlib.Path(os.environ.get("HCSMOE_BUILD", "build")) / "merge_cases"
    assert path.exists(), f"{path} is not there: build it, and set HCSMOE_BUILD to the build folder"
    return path


# Assignment


def score_matrices(random):
    """Random, tied, negative, structured, badly scaled."""
    for size in range(1, 13):
        for _ in range(150):
            yield random.standard_normal((size, size))
            yield random.integers(-2, 3, (size, size))
    for _ in range(60):
        size = int(random.integers(13, 90))
        left, right = random.standard_normal((40, size)), random.standard_normal((40, size))
        yield left.T @ (right + left[:, random.permutation(size)])
        yield np.outer(random.random(size), random.random(size))
        yield random.standard_normal((size, 3)) @ random.standard_normal((3, size))
        yield np.float64(10) ** random.uniform(-6, 6, (size, size))
        yield np.floor(random.exponential(2, (size, size)))
        yield np.zeros((size, size))
    yield random.standard_normal((352, 352))
    yield random.integers(0, 30, (352, 352))


def test_assignments_are_the_best(tmp_path):
    cases = [np.ascontiguousarray(scores, "<f4") for scores in score_matrices(np.random.default_rng(3))]
    (tmp_path / "cases").write_bytes(b"".join(np.int64(len(scores)).tobytes() + scores.tobytes() for scores in cases))
    subprocess.run([program(), "assign", tmp_path / "cases", tmp_path / "answers"], check=True)
    answers, at, worst = np.fromfile(tmp_path / "answers", "<i4"), 0, 0.0
    for scores in cases:
        columns, at = answers[at : at + len(scores)], at + len(scores)
        assert sorted(columns) == list(range(len(scores)))
        scores = scores.astype(np.float64)
        best = scores[linear_sum_assignment(scores, maximize=True)].sum()
        worst = max(worst, abs(scores[np.arange(len(scores)), columns].sum() - best) / np.abs(scores).max(initial=1e-30) / len(scores))
    assert at == len(answers)
    print(f"{len(cases)} matrices; largest difference of the score from SciPy's, of the largest entry: {worst:.1e}")
    assert worst < 1e-14


# Unit maps and merged tensors


class Layer:
    """The experts of a layer in float64, and the sampled inputs."""

    def __init__(self, tensors, prefix, names, x):
        count = len({name for name in tensors if name.startswith(prefix) and name.endswith(names[0])})
        self.experts = [[tensors[f"{prefix}{e}.{name}"] for name in names] for e in range(count)]
        self.x = x.astype(np.float64)

    def weights(self, expert):
        return [tensor.double().numpy() for tensor in self.experts[expert]]

    def activations(self, expert):
        gate, up, _ = self.weights(expert)
        z = self.x @ gate.T
        return z / (1 + np.exp(-z)) * (self.x @ up.T)

    def unit_vectors(self, expert):
        gate, up, down = self.weights(expert)
        stacked = np.concatenate([gate, up, down.T], axis=1)
        return stacked / np.maximum(np.linalg.norm(stacked, axis=1, keepdims=True), 1e-12)


def standardised(h):
    return (h - h.mean(0)) / (h.std(0, ddof=1) + 1e-6)


def correlations(a, b):
    return standardised(a).T @ standardised(b) / len(a)


def zip_groups(table, keep):
    """ZipIt's greedy matching as HC-SMoE has it: rows and columns really removed. Of each unit its group."""
    table, members = table.copy(), [[i] for i in range(len(table))]
    np.fill_diagonal(table, -np.inf)
    while len(members) > keep:
        i, j = sorted(np.unravel_index(table.argmax(), table.shape))
        table[i] = table[:, i] = 0.1 * np.minimum(table[i], table[j])
        table[i, i] = -np.inf
        table = np.delete(np.delete(table, j, 0), j, 1)
        members[i] += members.pop(j)
    group = np.empty(sum(map(len, members)), int)
    for number, units in enumerate(members):
        group[units] = number
    return group


def check_map(layer, cluster, merge, found):
    """found: [members][F]. Of a cluster in which two members or more count."""
    members, weights = cluster["members"], cluster["weights"]
    counting = [m for m in range(len(members)) if weights[m] > 0]
    lead = members.index(cluster["dominant"])
    units = found.shape[1]
    for m in set(range(len(members))) - set(counting):
        assert (found[m] == np.arange(units)).all()
    if merge == "zipit":
        pooled, h, weight = {lead: np.arange(units)}, layer.activations(members[lead]), np.full(units, weights[lead])
        for m in counting:
            if m == lead:
                continue
            both = np.concatenate([h, layer.activations(members[m])], axis=1)
            group = zip_groups(correlations(both, both), units)
            share = np.concatenate([weight, np.full(units, weights[m])])
            weight = np.bincount(group, share)
            h = np.stack([(both[:, group == g] * share[group == g]).sum(1) / weight[g] for g in range(units)], axis=1)
            pooled = {earlier: group[target] for earlier, target in pooled.items()} | {m: group[units:]}
        for m, target in pooled.items():
            assert (found[m] == target).all(), f"member {members[m]}"
        return
    assert (found[lead] == np.arange(units)).all()
    for m in counting:
        if m == lead:
            continue
        score = correlations(layer.activations(members[lead]), layer.activations(members[m]))
        columns = np.arange(units)
        if merge == "fix-dominant":
            assert (score[found[m], columns] > score.max(0) - 1e-5).all()
        else:
            score += layer.unit_vectors(members[lead]) @ layer.unit_vectors(members[m]).T
            assert sorted(found[m]) == list(range(units))
            best = score[linear_sum_assignment(score, maximize=True)].sum()
            assert abs(score[found[m], columns].sum() - best) < 1e-5 * units


def merged_expert(layer, cluster, found):
    """By the definition of UnitMap, as matrices [merged units, units]."""
    members, weights = cluster["members"], cluster["weights"]
    gate, up, down = (np.zeros_like(tensor) for tensor in layer.weights(members[0]))
    total = np.zeros(len(gate))
    for m, expert in enumerate(members):
        to = weights[m] * (found[m] == np.arange(len(gate))[:, None])  # [merged units, units]
        total += to.sum(1)
        g, u, d = layer.weights(expert)
        gate, up, down = gate + to @ g, up + to @ u, down + d @ to.T
    return gate / total[:, None], up / total[:, None], down / total


def random_clusters(random, experts, count, merge):
    """Clusters of any size, one of them of one expert; some members weigh nothing."""
    order = random.permutation(experts).tolist()
    groups = [[order[k]] for k in range(count)]
    for expert in order[count:]:
        groups[int(random.integers(1, count))].append(expert)
    clusters = []
    for members in sorted(sorted(group) for group in groups):
        counts = random.integers(1, 50, len(members)).astype(float)
        if len(members) > 3:
            counts[random.integers(len(members))] = 0
        weights = counts / counts.sum() if merge == "frequency-aligned" else (counts > 0) / (counts > 0).sum()
        lead = members[int(counts.argmax())]
        clusters.append({"members": members, "weights": weights.tolist(), "dominant": lead})
    return clusters


def sampled_inputs(name, model_folder, layers, hidden):
    """Real block inputs of the demo model, else noise; float32 [layers, S, D]."""
    if name != "demo":
        return np.random.default_rng(8).standard_normal((len(layers), 120, hidden), dtype=np.float32)
    model, caught = reference.load_model(model_folder), {}
    for layer, block in reference.moe_blocks(model).items():
        block.register_forward_pre_hook(lambda _, arguments, layer=layer: caught.__setitem__(layer, arguments[0][0].clone()))
    text = (DEMO_MODEL.parent / "data" / "calibration.jsonl").read_text().splitlines()[:40]
    from tokenizers import Tokenizer

    ids = [token for line in text for token in Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json")).encode(json.loads(line)["text"]).ids]
    reference.logits(model, np.array(ids[:512])[None])
    return np.stack([caught[layer].numpy() for layer in layers])


def run_merge(model, plan, samples, folder, ranks, threads):
    result = run_program(["mpirun", "-np", ranks, program(), "merge", model, plan, samples, folder, threads], timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    return {file: (folder / file).read_bytes() for file in ("units.bin", "tensors.json", "tensors.bin")}


@pytest.mark.parametrize("name, merge", CASES)
def test_aligned_merges(golden, tmp_path, name, merge):
    model = DEMO_MODEL if name == "demo" else golden(name).model
    config, tensors = reference.read_config(model), reference.read_tensors(model)
    matches = {int(match[2]): match[1] for match in map(reference.EXPERT_NAME.fullmatch, tensors) if match}
    layers = sorted(matches)
    names = ("w1.weight", "w3.weight", "w2.weight") if config["model_type"] == "mixtral" else tuple(
        f"{part}_proj.weight" for part in ("gate", "up", "down")
    )
    experts = config[reference.EXPERT_COUNT_KEYS[config["model_type"]]]
    inputs = sampled_inputs(name, model, layers, config["hidden_size"])
    random = np.random.default_rng(17)
    clusters = {layer: random_clusters(random, experts, 3, merge) for layer in layers}
    plan = {"format": "hcsmoe-plan/1", "recipe": {"merge": merge}}
    plan["layers"] = [{"layer": layer, "experts": experts, "clusters": clusters[layer]} for layer in layers]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "samples").write_bytes(inputs.astype("<f4").tobytes())
    answers = run_merge(model, tmp_path / "plan.json", tmp_path / "samples", tmp_path / "one", 1, 1)
    assert run_merge(model, tmp_path / "plan.json", tmp_path / "samples", tmp_path / "several", 3, 2) == answers

    units, at, worst = np.frombuffer(answers["units.bin"], "<i4"), 0, 0.0
    index, data = json.loads(answers["tensors.json"]), answers["tensors.bin"]
    for i, number in enumerate(layers):
        layer = Layer(tensors, matches[number], names, inputs[i])
        width = len(layer.experts[0][0])
        for k, cluster in enumerate(clusters[number]):
            members = len(cluster["members"])
            found = [tensors_of(index, data, f"{matches[number]}{k}.{part}") for part in names]
            if members == 1:
                assert all(ours.equal(theirs) for ours, theirs in zip(found, layer.experts[cluster["members"][0]]))
                continue
            unit_map = units[at : at + members * width].reshape(members, width)
            at += members * width
            check_map(layer, cluster, merge, unit_map)
            for ours, theirs in zip(found, merged_expert(layer, cluster, unit_map)):
                rounding = torch.finfo(ours.dtype).eps / 2 * np.abs(theirs) if ours.dtype != torch.float32 else 0
                excess = (np.abs(ours.double().numpy() - theirs) - rounding).max()
                worst = max(worst, excess / np.abs(theirs).max())
    assert at == len(units)
    print(f"{name}, {merge}: largest error of a merged weight beyond the rounding to its type, of the largest weight: {worst:.1e}")
    assert worst < 1e-6


def tensors_of(index, data, name):
    entry = index[name]
    dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
    return torch.frombuffer(bytearray(data), dtype=dtype, count=int(np.prod(shape)), offset=entry["begin"]).reshape(shape)
